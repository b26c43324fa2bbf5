/* Token shards: memory-mapped reading, streaming writing; the byte table is in shard.h.
 *
 * Nothing here trusts the file: the header is compared with the exact size before a token is touched, and tokens are
 * compared with the vocabulary whenever they are copied out.
 */
#include "data/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/integer.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token files are little-endian and are mapped as they are");

typedef struct {
    int32_t magic, version, count;
    int32_t unused[253];
} ShardHeader;

_Static_assert(sizeof(ShardHeader) == SHARD_HEADER_BYTES, "the header has no padding");

const TokenFormat token_formats[2] = {
    [TOKEN_U16] = {TOKEN_U16, "uint16", 20240520, 1, 2, (int64_t)1 << 16},
    [TOKEN_U32] = {TOKEN_U32, "uint32", 20240801, 7, 4, (int64_t)1 << 32},
};

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static const TokenFormat *find_format(int32_t magic) {
    for (int i = 0; i < 2; i++)
        if (token_formats[i].magic == magic) return &token_formats[i];
    return NULL;
}

static Status check_header(Shard *shard) {
    const ShardHeader *header = shard->map;
    shard->format = find_format(header->magic);
    if (!shard->format)
        return status_error(STATUS_BAD_INPUT,
                            "%s is not a token file: found the magic number %d at offset 0, expected %d (uint16) or %d "
                            "(uint32); `./train_gpt prepare OUT_DIR FILE...` makes token files from text",
                            shard->path, header->magic, token_formats[TOKEN_U16].magic, token_formats[TOKEN_U32].magic);
    if (header->version != shard->format->version)
        return status_error(STATUS_BAD_INPUT, "%s: found version %d at offset 4, expected %d after the magic number %d",
                            shard->path, header->version, shard->format->version, header->magic);
    if (header->count < 1)
        return status_error(STATUS_BAD_INPUT, "%s: found a token count of %d at offset 8, expected at least 1",
                            shard->path, header->count);
    shard->count = header->count;

    int64_t expected = SHARD_HEADER_BYTES + shard->count * shard->format->width;
    if (shard->bytes == expected) return status_ok();
    return status_error(
        STATUS_BAD_INPUT,
        "%s: %s: the header (offset 8) announces %lld %s tokens, which end at offset %lld, but the file "
        "has %lld bytes",
        shard->path, shard->bytes < expected ? "truncated" : "trailing bytes", (long long)shard->count,
        shard->format->name, (long long)expected, (long long)shard->bytes);
}

static Status check_file(Shard *shard, int file) {
    struct stat info;
    if (fstat(file, &info)) return status_error(STATUS_IO, "%s: cannot examine: %s", shard->path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return status_error(STATUS_BAD_INPUT, "%s: not a regular file; token files are mapped into memory",
                            shard->path);
    shard->bytes = (int64_t)info.st_size;
    if (shard->bytes == 0)
        return status_error(STATUS_BAD_INPUT, "%s: the file is empty; a token file begins with a header of %d bytes",
                            shard->path, SHARD_HEADER_BYTES);
    if (shard->bytes < SHARD_HEADER_BYTES)
        return status_error(STATUS_BAD_INPUT,
                            "%s: the file ends at offset %lld, inside the header of %d bytes of a token file",
                            shard->path, (long long)shard->bytes, SHARD_HEADER_BYTES);
    return status_ok();
}

Status shard_open(Shard *shard, const char *path) {
    *shard = (Shard){0};
    Status status = status_ok();
    if (snprintf(shard->path, sizeof shard->path, "%s", path) >= PATH_SIZE)
        return status_error(STATUS_BAD_INPUT, "%s: the path is longer than %d bytes", path, PATH_SIZE - 1);

    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return status_error(STATUS_IO, "%s: cannot open the token file: %s", path, strerror(errno));
    if (FAILED(status, check_file(shard, file))) goto done;
    void *map = mmap(NULL, (size_t)shard->bytes, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) {
        status = status_error(STATUS_IO, "%s: cannot map its %lld bytes into memory: %s", path, (long long)shard->bytes,
                              strerror(errno));
        goto done;
    }
    shard->map = map;
    status = check_header(shard);
done:
    close(file); /* the map holds the file */
    if (status.code) shard_close(shard);
    return status;
}

void shard_close(Shard *shard) {
    if (shard->map) munmap(shard->map, (size_t)shard->bytes);
    *shard = (Shard){0};
}

void shard_expect(const Shard *shard, ShardAccess access) {
    madvise(shard->map, (size_t)shard->bytes, access == SHARD_RANDOM ? MADV_RANDOM : MADV_SEQUENTIAL);
}

static const void *token_bytes(const Shard *shard, int64_t index) {
    return (const char *)shard->map + SHARD_HEADER_BYTES + index * shard->format->width;
}

uint32_t shard_token(const Shard *shard, int64_t index) {
    CHECK(index >= 0 && index < shard->count, "token %lld of %lld", (long long)index, (long long)shard->count);
    const void *token = token_bytes(shard, index);
    return shard->format->type == TOKEN_U16 ? *(const uint16_t *)token : *(const uint32_t *)token;
}

static uint32_t largest_u16(const uint16_t *tokens, int64_t count) {
    uint16_t largest = 0;
#pragma omp parallel for reduction(max : largest) schedule(static)
    for (int64_t i = 0; i < count; i++) largest = tokens[i] > largest ? tokens[i] : largest;
    return largest;
}

static uint32_t largest_u32(const uint32_t *tokens, int64_t count) {
    uint32_t largest = 0;
#pragma omp parallel for reduction(max : largest) schedule(static)
    for (int64_t i = 0; i < count; i++) largest = tokens[i] > largest ? tokens[i] : largest;
    return largest;
}

uint32_t shard_largest_token(const Shard *shard) {
    const void *tokens = token_bytes(shard, 0);
    return shard->format->type == TOKEN_U16 ? largest_u16(tokens, shard->count) : largest_u32(tokens, shard->count);
}

/* The message for the first token of [first, first + count) that is >= vocab; there is one. */
static Status bad_token(const Shard *shard, int64_t first, int64_t count, int64_t vocab) {
    int64_t index = first;
    while (index < first + count - 1 && (int64_t)shard_token(shard, index) < vocab) index++;
    return status_error(STATUS_BAD_INPUT,
                        "%s: token %lld (offset %lld) is %u, but the vocabulary has %lld: raise model.vocab or prepare "
                        "the text again",
                        shard->path, (long long)index, (long long)(SHARD_HEADER_BYTES + index * shard->format->width),
                        shard_token(shard, index), (long long)vocab);
}

Status shard_read(const Shard *shard, int64_t first, int64_t count, int64_t vocab, int32_t *tokens) {
    CHECK(first >= 0 && count >= 1 && count <= shard->count - first, "[%lld, +%lld) of %lld", (long long)first,
          (long long)count, (long long)shard->count);
    CHECK(vocab >= 1 && vocab <= (int64_t)1 << 31, "vocab is %lld", (long long)vocab);
    const void *source = token_bytes(shard, first);
    uint32_t largest = 0;
    /* The values that are compared are those that were copied: a file that changes meanwhile cannot slip through. */
    for (int64_t i = 0; i < count; i++) {
        uint32_t token =
            shard->format->type == TOKEN_U16 ? ((const uint16_t *)source)[i] : ((const uint32_t *)source)[i];
        largest = token > largest ? token : largest;
        tokens[i] = (int32_t)token;
    }
    return (int64_t)largest < vocab ? status_ok() : bad_token(shard, first, count, vocab);
}

Status shard_check_tokens(const Shard *shard, int64_t vocab) {
    if (vocab >= shard->format->limit) return status_ok();
    if ((int64_t)shard_largest_token(shard) < vocab) return status_ok();
    return bad_token(shard, 0, shard->count, vocab);
}

uint64_t shard_hash(const Shard *shard, uint64_t hash) {
    enum { PIECES = 64, PIECE_TOKENS = 1024 };
    hash = file_hash(hash, &shard->bytes, sizeof shard->bytes);
    hash = file_hash(hash, &shard->count, sizeof shard->count);
    int64_t length = smaller(shard->count, PIECE_TOKENS);
    for (int64_t i = 0; i < PIECES; i++) {
        int64_t first = (shard->count - length) * i / (PIECES - 1);
        hash = file_hash(hash, token_bytes(shard, first), length * shard->format->width);
    }
    return hash;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static Status write_failure(ShardWriter *writer) {
    Status status = status_error(STATUS_IO, "%s: cannot write the token file: %s", writer->path, strerror(errno));
    shard_writer_abandon(writer);
    return status;
}

Status shard_writer_open(ShardWriter *writer, const char *path, TokenType type) {
    *writer = (ShardWriter){.format = &token_formats[type]};
    if (snprintf(writer->path, sizeof writer->path, "%s", path) >= PATH_SIZE)
        return status_error(STATUS_BAD_INPUT, "%s: the path is longer than %d bytes", path, PATH_SIZE - 1);
    snprintf(writer->temporary, sizeof writer->temporary, "%s.tmp", writer->path);

    writer->file = fopen(writer->temporary, "wb");
    if (!writer->file) return write_failure(writer);
    static const ShardHeader empty;
    return fwrite(&empty, sizeof empty, 1, writer->file) == 1 ? status_ok() : write_failure(writer);
}

static bool write_u16(FILE *file, const int32_t *tokens, int64_t count) {
    enum { PIECE = 4096 };
    uint16_t piece[PIECE];
    for (int64_t done = 0; done < count; done += PIECE) {
        int64_t length = smaller(count - done, PIECE);
        for (int64_t i = 0; i < length; i++) {
            CHECK(tokens[done + i] >= 0 && tokens[done + i] <= UINT16_MAX, "token %d", tokens[done + i]);
            piece[i] = (uint16_t)tokens[done + i];
        }
        if (fwrite(piece, sizeof *piece, (size_t)length, file) != (size_t)length) return false;
    }
    return true;
}

Status shard_writer_add(ShardWriter *writer, const int32_t *tokens, int64_t count) {
    if (count > INT32_MAX - writer->count) {
        shard_writer_abandon(writer);
        return status_error(STATUS_BAD_INPUT,
                            "%s: the file would hold more than %d tokens, the most its header can hold", writer->path,
                            INT32_MAX);
    }
    bool written = writer->format->type == TOKEN_U16
                       ? write_u16(writer->file, tokens, count)
                       : fwrite(tokens, sizeof *tokens, (size_t)count, writer->file) == (size_t)count;
    if (!written) return write_failure(writer);
    writer->count += count;
    return status_ok();
}

Status shard_writer_finish(ShardWriter *writer) {
    if (writer->count == 0) {
        shard_writer_abandon(writer);
        return status_error(STATUS_BAD_INPUT, "%s: there are no tokens to write", writer->path);
    }
    ShardHeader header = {writer->format->magic, writer->format->version, (int32_t)writer->count, {0}};
    FILE *file = writer->file;
    bool written = fflush(file) == 0 && fsync(fileno(file)) == 0 && fseek(file, 0, SEEK_SET) == 0 &&
                   fwrite(&header, sizeof header, 1, file) == 1 && fflush(file) == 0 && fsync(fileno(file)) == 0;
    if (!written) return write_failure(writer);
    writer->file = NULL;
    if (fclose(file) || rename(writer->temporary, writer->path)) {
        Status status = write_failure(writer);
        remove(writer->temporary);
        return status;
    }
    return status_ok();
}

void shard_writer_abandon(ShardWriter *writer) {
    if (!writer->file) return;
    fclose(writer->file);
    remove(writer->temporary);
    writer->file = NULL;
}
