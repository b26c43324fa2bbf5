/* Whole reads, atomic writes, folders, globs, checksums; see file.h.
 *
 * Every error reads "PATH: cannot VERB: REASON": the path first, then what was tried, then the system's words.
 */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

Status file_error(const char *path, const char *verb) {
    return status_error(STATUS_IO, "%s: cannot %s: %s", path, verb, strerror(errno));
}

/* ---- whole files ------------------------------------------------------------------------------------------------ */

/* Reads until `size` bytes or the end of the file; -1 on an error. */
static int64_t read_fully(int fd, char *data, int64_t size) {
    int64_t done = 0;
    while (done < size) {
        ssize_t n = read(fd, data + done, (size_t)(size - done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        done += n;
    }
    return done;
}

static bool write_fully(int fd, const char *data, int64_t size) {
    for (int64_t done = 0; done < size;) {
        ssize_t n = write(fd, data + done, (size_t)(size - done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        done += n;
    }
    return true;
}

Status file_read(const char *path, int64_t limit, char **data, int64_t *size) {
    Status status = status_ok();
    char *buffer = NULL;
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return file_error(path, "open");
    if (fstat(fd, &info) < 0) {
        status = file_error(path, "read");
        goto done;
    }
    if (!S_ISREG(info.st_mode)) {
        status = status_error(STATUS_IO, "%s: cannot read: not a regular file", path);
        goto done;
    }
    int64_t expected = info.st_size;
    if (expected > limit) {
        status = status_error(STATUS_BAD_INPUT, "%s: the file has %lld bytes; at most %lld are allowed here", path,
                              (long long)expected, (long long)limit);
        goto done;
    }
    buffer = malloc((size_t)expected + 1);
    if (!buffer) {
        status = status_error(STATUS_OUT_OF_MEMORY, "%s: no memory for its %lld bytes", path, (long long)expected);
        goto done;
    }
    int64_t count = read_fully(fd, buffer, expected);
    if (count < 0) {
        status = file_error(path, "read");
        goto done;
    }
    if (count < expected) {
        status = status_error(STATUS_IO, "%s: cannot read: it shrank from %lld to %lld bytes while it was read", path,
                              (long long)expected, (long long)count);
        goto done;
    }
    buffer[count] = '\0';
    *data = buffer;
    *size = count;
    buffer = NULL;
done:
    free(buffer);
    close(fd);
    return status;
}

Status file_write(const char *path, const void *data, int64_t size) {
    char temporary[PATH_SIZE + sizeof ".tmp"];
    int length = snprintf(temporary, sizeof temporary, "%s.tmp", path);
    if (length < 0 || (size_t)length >= sizeof temporary)
        return status_error(STATUS_BAD_INPUT, "%s: the path is longer than %d bytes", path, PATH_SIZE - 1);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return file_error(temporary, "create");
    Status status = status_ok();
    /* fsync before the rename: otherwise a crash may leave the new name on a file whose bytes never reached the disk */
    if (!write_fully(fd, data, size) || fsync(fd) < 0) status = file_error(temporary, "write");
    if (close(fd) < 0 && !status.code) status = file_error(temporary, "write");
    if (!status.code && rename(temporary, path) < 0) status = file_error(path, "replace");
    if (status.code) unlink(temporary);
    return status;
}

bool file_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0;
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
    if (length == 0) return status_error(STATUS_BAD_INPUT, "cannot create a folder without a name");
    if (length >= sizeof prefix)
        return status_error(STATUS_BAD_INPUT, "%s: the path is longer than %d bytes", path, PATH_SIZE - 1);
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
    if (code == GLOB_NOMATCH) return status_error(STATUS_BAD_INPUT, "%s: no file matches", pattern);
    if (code == GLOB_NOSPACE) return status_error(STATUS_OUT_OF_MEMORY, "%s: no memory for the list", pattern);
    if (code != 0) return file_error(pattern, "search");

    FileList copy = {.paths = calloc(found.gl_pathc, sizeof *copy.paths)};
    bool complete = copy.paths != NULL;
    for (size_t i = 0; complete && i < found.gl_pathc; i++) {
        copy.paths[i] = strdup(found.gl_pathv[i]);
        complete = copy.paths[i] != NULL;
        if (complete) copy.count++;
    }
    globfree(&found);
    if (!complete) {
        file_list_free(&copy);
        return status_error(STATUS_OUT_OF_MEMORY, "%s: no memory for the list", pattern);
    }
    /* by bytes, not by locale: the order of shards is part of the order of training data */
    qsort(copy.paths, (size_t)copy.count, sizeof *copy.paths, compare_paths);
    *list = copy;
    return status_ok();
}

void file_list_free(FileList *list) {
    for (int64_t i = 0; i < list->count; i++) free(list->paths[i]);
    free(list->paths);
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
        return status_error(STATUS_BAD_INPUT, "%s%s%s: the path is longer than %d bytes", dir, separator, name,
                            PATH_SIZE - 1);
    return status_ok();
}
