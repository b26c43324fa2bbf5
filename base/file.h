/* Files, as a trainer needs them: whole reads, atomic writes, folders, globs, checksums. Errors name the file. */
#pragma once

#include <glob.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/status.h"

enum { PATH_SIZE = 1024 };

/* STATUS_IO, "PATH: cannot VERB: REASON", the reason from errno: what every failed system call on a file returns. */
Status file_error(const char *path, const char *verb);

/* The whole file, NUL-terminated beyond its end; the caller frees *data. Refuses files over `limit` bytes. */
Status file_read(const char *path, int64_t limit, char **data, int64_t *size);

/* Writes path.tmp, fsyncs, renames: after a crash the old file or the new one is there, never half of one. */
Status file_write(const char *path, const void *data, int64_t size);

/* The same in pieces. After an error, in any of the three, nothing is left of path.tmp, and the writer is closed. */
typedef struct {
    char path[PATH_SIZE], temporary[PATH_SIZE + sizeof ".tmp"];
    FILE *file; /* the temporary one; NULL: closed */
} FileWriter;
Status file_writer_open(FileWriter *w, const char *path);
Status file_writer_put(FileWriter *w, const void *data, int64_t size);
Status file_writer_finish(FileWriter *w);
void file_writer_abandon(FileWriter *w); /* removes path.tmp; does nothing where the writer is closed */

Status folder_create(const char *path); /* with its parents; an existing folder is fine */
Status folder_remove(const char *path); /* with all that is in it; a missing folder is fine */
Status folder_sync(const char *path);   /* fsync: renames in it have reached the disk */
bool file_exists(const char *path);

/* Paths that match `pattern` (shell glob), sorted by name. At least one, or an error that names the pattern. */
typedef struct {
    char **paths;
    int64_t count;
    glob_t found; /* what owns them */
} FileList;
Status file_glob(const char *pattern, FileList *list);
void file_list_free(FileList *list);

/* FNV-1a, 64 bit. Start with FILE_HASH_START and feed pieces. */
#define FILE_HASH_START 0xcbf29ce484222325u
uint64_t file_hash(uint64_t hash, const void *data, int64_t size);

/* "dir/name" into a buffer of PATH_SIZE. Too long a path is an error that shows it. */
Status path_join(char *buffer, const char *dir, const char *name);
