/* Text to byte-level token shards; see prepare.h.
 *
 * The files are read once, as one stream, and cut at fixed places:
 *
 *      | file 1      | file 2                  | file 3          |
 *      | train_000001  | train_000002  | train_000003  | val_000000 |
 */
#include "data/prepare.h"

#include <dirent.h>
#include <fnmatch.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/integer.h"
#include "data/shard.h"
#include "data/tokenizer.h"

enum { PIECE_BYTES = 1 << 14 };

typedef struct {
    const char *prefix;
    int64_t first_number; /* of its shards */
    int64_t begin, end;   /* bytes of the stream */
} Split;

/* Where a stream of files stands. */
typedef struct {
    int file_count;
    char **paths;
    int current; /* index of the file that is open, or opened next */
    FILE *file;
} TextStream;

PrepareOptions prepare_defaults(void) {
    return (PrepareOptions){.validation_fraction = 0.1, .shard_tokens = 100 * 1000 * 1000};
}

static Status check_options(int file_count, PrepareOptions options) {
    if (file_count < 1) return BAD_INPUT("prepare: no text file given");
    if (!(options.validation_fraction > 0.0 && options.validation_fraction < 0.5))
        return BAD_INPUT("prepare: expected a validation fraction above 0 and below 0.5, found %g",
                         options.validation_fraction);
    if (options.shard_tokens < 1 || options.shard_tokens > INT32_MAX)
        return BAD_INPUT("prepare: expected a shard size of 1 to %d tokens, found %lld", INT32_MAX,
                         (long long)options.shard_tokens);
    return status_ok();
}

/* ---- input ------------------------------------------------------------------------------------------------------ */

static Status measure_files(int file_count, char **files, FILE *log, int64_t *total) {
    *total = 0;
    for (int i = 0; i < file_count; i++) {
        struct stat info;
        if (stat(files[i], &info)) return file_error(files[i], "read");
        if (!S_ISREG(info.st_mode))
            return BAD_INPUT("%s: not a regular file; write the text to a file first", files[i]);
        fprintf(log, "reads   %s, %lld bytes\n", files[i], (long long)info.st_size);
        *total += (int64_t)info.st_size;
    }
    if (*total >= 2) return status_ok();
    return BAD_INPUT("%s%s: %lld bytes of text; at least 2 are needed, one for training and one for validation",
                     files[0], file_count > 1 ? " and the other files" : "", (long long)*total);
}

/* The next `count` bytes of all files, one after the other. */
static Status read_text(TextStream *stream, uint8_t *text, int64_t count) {
    for (int64_t done = 0; done < count;) {
        if (stream->current == stream->file_count)
            return status_error(STATUS_IO, "%s: a text file shrank while it was read",
                                stream->paths[stream->file_count - 1]);
        const char *path = stream->paths[stream->current];
        if (!stream->file && !(stream->file = fopen(path, "rb"))) return file_error(path, "open");
        done += (int64_t)fread(text + done, 1, (size_t)(count - done), stream->file);
        if (ferror(stream->file)) return file_error(path, "read");
        if (done == count) break;
        fclose(stream->file);
        stream->file = NULL;
        stream->current++;
    }
    return status_ok();
}

/* ---- output ----------------------------------------------------------------------------------------------------- */

static Status write_shard(const char *path, TextStream *stream, int64_t count) {
    uint8_t text[PIECE_BYTES];
    int32_t tokens[PIECE_BYTES];
    ShardWriter writer;
    Status status;
    if (FAILED(status, shard_writer_open(&writer, path, TOKEN_U16))) return status;
    for (int64_t done = 0; done < count; done += PIECE_BYTES) {
        int64_t length = smaller(count - done, PIECE_BYTES);
        if (FAILED(status, read_text(stream, text, length))) goto abandon;
        tokenizer_encode_bytes(text, length, tokens);
        if (FAILED(status, shard_writer_add(&writer, tokens, length))) goto abandon;
    }
    return shard_writer_finish(&writer);
abandon:
    shard_writer_abandon(&writer);
    return status;
}

static Status write_split(const char *folder, TextStream *stream, Split split, int64_t shard_tokens, FILE *log) {
    int64_t number = split.first_number;
    for (int64_t at = split.begin; at < split.end; at += shard_tokens, number++) {
        int64_t count = smaller(split.end - at, shard_tokens);
        char name[64], path[PATH_SIZE];
        snprintf(name, sizeof name, "%s_%06lld.bin", split.prefix, (long long)number);
        Status status;
        if (FAILED(status, path_join(path, folder, name))) return status;
        if (FAILED(status, write_shard(path, stream, count))) return status;
        fprintf(log, "writes  %s, %lld tokens\n", name, (long long)count);
    }
    return status_ok();
}

static Status write_tokenizer(const char *folder) {
    char path[PATH_SIZE];
    Tokenizer tokenizer = {0};
    Status status;
    if (FAILED(status, path_join(path, folder, "tokenizer.bin"))) return status;
    if (FAILED(status, tokenizer_init_bytes(&tokenizer))) return status;
    status = tokenizer_write(&tokenizer, path);
    tokenizer_free(&tokenizer);
    return status;
}

/* ---- from the temporary folder to the real one ------------------------------------------------------------------ */

/* Names that prepare_corpus writes, and so may replace. */
static int is_corpus_file(const struct dirent *entry) {
    static const char *const patterns[] = {"train_[0-9][0-9][0-9][0-9][0-9][0-9].bin",
                                           "val_[0-9][0-9][0-9][0-9][0-9][0-9].bin", "tokenizer.bin"};
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        if (fnmatch(patterns[i], entry->d_name, 0) == 0) return 1;
    return 0;
}

static Status move_file(const char *name, const char *from, const char *to) {
    char old_path[PATH_SIZE], new_path[PATH_SIZE];
    Status status;
    if (FAILED(status, path_join(old_path, from, name))) return status;
    if (FAILED(status, path_join(new_path, to, name))) return status;
    return rename(old_path, new_path) == 0 ? status_ok() : file_error(new_path, "create");
}

static Status move_corpus(const char *from, const char *to) {
    struct dirent **entries = NULL;
    int count = scandir(from, &entries, is_corpus_file, alphasort);
    if (count < 0) return file_error(from, "list the folder");
    Status status = status_ok();
    for (int i = 0; i < count; i++) {
        if (!status.code) status = move_file(entries[i]->d_name, from, to);
        free(entries[i]);
    }
    free(entries);
    return status;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static Status write_corpus(const char *folder, TextStream *stream, int64_t total, PrepareOptions options, FILE *log) {
    /* a fraction below one half leaves at least one byte for training */
    int64_t validation = larger(llround((double)total * options.validation_fraction), 1);
    Split train = {"train", 1, 0, total - validation}, val = {"val", 0, total - validation, total};
    Status status;
    if (FAILED(status, write_split(folder, stream, train, options.shard_tokens, log))) return status;
    if (FAILED(status, write_split(folder, stream, val, options.shard_tokens, log))) return status;
    fprintf(log, "tokens  %lld for training, %lld (%.2f %%) for validation, vocabulary %d\n", (long long)train.end,
            (long long)validation, 100.0 * (double)validation / (double)total, TOKENIZER_BYTE_TOKENS);
    return write_tokenizer(folder);
}

/* An old corpus goes to a folder of its own first and is deleted last: should a move fail, it comes back. */
static Status publish(const char *out_dir, const char *fresh, const char *old) {
    Status status;
    if (FAILED(status, folder_create(old))) return status;
    status = move_corpus(out_dir, old);
    if (!status.code) { /* else what is left in out_dir is the old corpus */
        if (!FAILED(status, move_corpus(fresh, out_dir))) return folder_sync(out_dir);
        move_corpus(out_dir, fresh);
    }
    move_corpus(old, out_dir);
    return status;
}

Status prepare_corpus(const char *out_dir, int file_count, char **files, PrepareOptions options, FILE *log) {
    TextStream stream = {.file_count = file_count, .paths = files};
    char work[PATH_SIZE], fresh[PATH_SIZE], old[PATH_SIZE];
    int64_t total = 0;
    Status status;
    if (FAILED(status, check_options(file_count, options))) return status;
    if (FAILED(status, measure_files(file_count, files, log, &total))) return status;
    if (FAILED(status, path_join(work, out_dir, "prepare.tmp"))) return status;
    if (FAILED(status, path_join(fresh, work, "new"))) return status;
    if (FAILED(status, path_join(old, work, "old"))) return status;

    bool existed = file_exists(out_dir);
    if (FAILED(status, folder_create(out_dir))) return status;
    if (FAILED(status, folder_remove(work))) goto done;
    if (FAILED(status, folder_create(fresh))) goto done;
    if (FAILED(status, write_corpus(fresh, &stream, total, options, log))) goto done;
    status = publish(out_dir, fresh, old);
done:
    if (stream.file) fclose(stream.file);
    Status cleanup = folder_remove(work);
    if (status.code && !existed) rmdir(out_dir);
    return status.code ? status : cleanup;
}
