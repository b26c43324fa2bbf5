/* See file.h. Every error reads "PATH: cannot VERB: REASON": the path first, then what was tried, then the system's
 * words.
 */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

Status file_error(const char *path, const char *verb) {
    return status_error(STATUS_IO, "%s: cannot %s: %s", path, verb, strerror(errno));
}

/* ---- whole files ------------------------------------------------------------------------------------------------ */

static Status path_too_long(const char *path) {
    return BAD_INPUT("%s: the path is longer than %d bytes", path, PATH_SIZE - 1);
}

static Status read_open_file(FILE *file, const char *path, int64_t limit, char **data, int64_t *size) {
    struct stat info;
    if (fstat(fileno(file), &info) < 0) return file_error(path, "read");
    if (!S_ISREG(info.st_mode)) return status_error(STATUS_IO, "%s: cannot read: not a regular file", path);
    const long long expected = info.st_size;
    if (expected > limit)
        return BAD_INPUT("%s: the file has %lld bytes; at most %lld are allowed here", path, expected,
                         (long long)limit);
    char *buffer = malloc((size_t)expected + 1);
    if (!buffer) return NO_MEMORY("%s: no memory for its %lld bytes", path, expected);
    const size_t count = fread(buffer, 1, (size_t)expected, file);
    if (count == (size_t)expected) {
        buffer[count] = '\0';
        *data = buffer;
        *size = expected;
        return status_ok();
    }
    Status status = ferror(file)
                        ? file_error(path, "read")
                        : status_error(STATUS_IO, "%s: cannot read: it shrank from %lld to %zu bytes meanwhile", path,
                                       expected, count);
    free(buffer);
    return status;
}

Status file_read(const char *path, int64_t limit, char **data, int64_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) return file_error(path, "open");
    Status status = read_open_file(file, path, limit, data, size);
    fclose(file);
    return status;
}

Status file_write(const char *path, const void *data, int64_t size) {
    FileWriter w;
    Status status;
    if (FAILED(status, file_writer_open(&w, path))) return status;
    if (FAILED(status, file_writer_put(&w, data, size))) return status;
    return file_writer_finish(&w);
}

bool file_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0;
}

/* ---- files in pieces -------------------------------------------------------------------------------------------- */

Status file_writer_open(FileWriter *w, const char *path) {
    *w = (FileWriter){0};
    if (snprintf(w->path, sizeof w->path, "%s", path) >= PATH_SIZE) return path_too_long(path);
    snprintf(w->temporary, sizeof w->temporary, "%s.tmp", w->path);
    w->file = fopen(w->temporary, "wb");
    return w->file ? status_ok() : file_error(w->temporary, "create");
}

Status file_writer_put(FileWriter *w, const void *data, int64_t size) {
    if (fwrite(data, 1, (size_t)size, w->file) == (size_t)size) return status_ok();
    Status status = file_error(w->temporary, "write");
    file_writer_abandon(w);
    return status;
}

Status file_writer_finish(FileWriter *w) {
    Status status = status_ok();
    /* fsync before the rename: otherwise a crash may leave the new name on a file whose bytes never reached the disk */
    if (fflush(w->file) != 0 || fsync(fileno(w->file)) < 0) status = file_error(w->temporary, "write");
    if (fclose(w->file) != 0 && !status.code) status = file_error(w->temporary, "write");
    w->file = NULL;
    if (!status.code && rename(w->temporary, w->path) < 0) status = file_error(w->path, "replace");
    if (status.code) unlink(w->temporary);
    return status;
}

void file_writer_abandon(FileWriter *w) {
    if (!w->file) return;
    fclose(w->file);
    w->file = NULL;
    unlink(w->temporary);
}

/* ---- folders ---------------------------------------------------------------------------------------------------- */

static bool is_folder(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

/* mkdir of each prefix in turn. Others may create the same folders at the same time: that is not an error. */
Status folder_create(const char *path) {
    char prefix[PATH_SIZE];
    size_t length = strlen(path);
    if (length == 0) return BAD_INPUT("cannot create a folder without a name");
    if (length >= sizeof prefix) return path_too_long(path);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(prefix, path, i);
        prefix[i] = '\0';
        if (mkdir(prefix, 0777) == 0) continue;
        int reason = errno; /* looking for a folder sets another one */
        if (is_folder(prefix)) continue;
        errno = reason == EEXIST ? ENOTDIR : reason;
        return file_error(prefix, "create the folder");
    }
    return status_ok();
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *walk) {
    (void)info, (void)type, (void)walk;
    return remove(path);
}

Status folder_remove(const char *path) {
    enum { OPEN_FOLDERS = 16 };
    struct stat info;
    if (lstat(path, &info) < 0) return errno == ENOENT ? status_ok() : file_error(path, "remove");
    /* FTW_PHYS: a link is removed, never followed */
    if (nftw(path, remove_entry, OPEN_FOLDERS, FTW_DEPTH | FTW_PHYS) != 0) return file_error(path, "remove");
    return status_ok();
}

Status folder_sync(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return file_error(path, "open the folder");
    Status status = status_ok();
    /* some network file systems cannot sync a folder and say EINVAL: nothing more can be done there */
    if (fsync(fd) < 0 && errno != EINVAL) status = file_error(path, "sync the folder");
    close(fd);
    return status;
}

/* ---- globs ------------------------------------------------------------------------------------------------------ */

static int compare_paths(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

Status file_glob(const char *pattern, FileList *list) {
    glob_t found;
    int code = glob(pattern, GLOB_NOSORT, NULL, &found);
    if (code == GLOB_NOMATCH) return BAD_INPUT("%s: no file matches", pattern);
    if (code == GLOB_NOSPACE) return NO_MEMORY("%s: no memory for the list", pattern);
    if (code != 0) return file_error(pattern, "search");
    /* by bytes, not by locale: the order of shards is part of the order of training data */
    qsort(found.gl_pathv, found.gl_pathc, sizeof *found.gl_pathv, compare_paths);
    *list = (FileList){.paths = found.gl_pathv, .count = (int64_t)found.gl_pathc, .found = found};
    return status_ok();
}

void file_list_free(FileList *list) {
    if (list->paths) globfree(&list->found);
    *list = (FileList){0};
}

/* ---- checksums and paths ---------------------------------------------------------------------------------------- */

uint64_t file_hash(uint64_t hash, const void *data, int64_t size) {
    const uint64_t prime = 0x100000001b3u;
    const unsigned char *bytes = data;
    for (int64_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * prime;
    return hash;
}

Status path_join(char *buffer, const char *dir, const char *name) {
    size_t length = strlen(dir);
    const char *separator = length > 0 && dir[length - 1] == '/' ? "" : "/";
    int needed = snprintf(buffer, PATH_SIZE, "%s%s%s", dir, separator, name);
    if (needed < 0 || needed >= PATH_SIZE)
        return BAD_INPUT("%s%s%s: the path is longer than %d bytes", dir, separator, name, PATH_SIZE - 1);
    return status_ok();
}
