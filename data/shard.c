/* Token shards: memory-mapped reading, streaming writing; the byte table is in shard.h.
 *
 * Nothing here trusts the file: the header is compared with the exact size before a token is touched, and tokens are
 * compared with the vocabulary whenever they are copied out.
 */
#include "data/shard.h"

#include <fcntl.h>
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
        return BAD_INPUT("%s is not a token file: found the magic number %d at offset 0, expected %d (uint16) or %d "
                         "(uint32); `./train_gpt prepare OUT_DIR FILE...` makes token files from text",
                         shard->path, header->magic, token_formats[TOKEN_U16].magic, token_formats[TOKEN_U32].magic);
    if (header->version != shard->format->version)
        return BAD_INPUT("%s: found version %d at offset 4, expected %d after the magic number %d", shard->path,
                         header->version, shard->format->version, header->magic);
    if (header->count < 1)
        return BAD_INPUT("%s: found a token count of %d at offset 8, expected at least 1", shard->path, header->count);
    shard->count = header->count;

    int64_t expected = SHARD_HEADER_BYTES + shard->count * shard->format->width;
    if (shard->bytes == expected) return status_ok();
    return BAD_INPUT("%s: %s: the header (offset 8) announces %lld %s tokens, which end at offset %lld, but the file "
                     "has %lld bytes",
                     shard->path, shard->bytes < expected ? "truncated" : "trailing bytes", (long long)shard->count,
                     shard->format->name, (long long)expected, (long long)shard->bytes);
}

static Status check_file(Shard *shard, int file) {
    struct stat info;
    if (fstat(file, &info)) return file_error(shard->path, "examine");
    if (!S_ISREG(info.st_mode))
        return BAD_INPUT("%s: not a regular file; token files are mapped into memory", shard->path);
    shard->bytes = (int64_t)info.st_size;
    if (shard->bytes == 0)
        return BAD_INPUT("%s: the file is empty; a token file begins with a header of %d bytes", shard->path,
                         SHARD_HEADER_BYTES);
    if (shard->bytes < SHARD_HEADER_BYTES)
        return BAD_INPUT("%s: the file ends at offset %lld, inside the header of %d bytes of a token file", shard->path,
                         (long long)shard->bytes, SHARD_HEADER_BYTES);
    return status_ok();
}

Status shard_open(Shard *shard, const char *path) {
    *shard = (Shard){0};
    Status status = status_ok();
    if (snprintf(shard->path, sizeof shard->path, "%s", path) >= PATH_SIZE)
        return BAD_INPUT("%s: the path is longer than %d bytes", path, PATH_SIZE - 1);

    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return file_error(path, "open the token file");
    if (!FAILED(status, check_file(shard, file))) {
        void *map = mmap(NULL, (size_t)shard->bytes, PROT_READ, MAP_SHARED, file, 0);
        if (map == MAP_FAILED)
            status = file_error(path, "map into memory");
        else
            shard->map = map;
    }
    close(file); /* the map holds the file */
    if (!status.code) status = check_header(shard);
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

static inline uint32_t token_of(const Shard *shard, const void *tokens, int64_t i) {
    return shard->format->type == TOKEN_U16 ? ((const uint16_t *)tokens)[i] : ((const uint32_t *)tokens)[i];
}

uint32_t shard_token(const Shard *shard, int64_t index) {
    CHECK(index >= 0 && index < shard->count, "token %lld of %lld", (long long)index, (long long)shard->count);
    return token_of(shard, token_bytes(shard, 0), index);
}

uint32_t shard_largest_token(const Shard *shard) {
    const void *tokens = token_bytes(shard, 0);
    uint32_t largest = 0;
#pragma omp parallel for reduction(max : largest) schedule(static)
    for (int64_t i = 0; i < shard->count; i++) {
        uint32_t token = token_of(shard, tokens, i);
        largest = token > largest ? token : largest;
    }
    return largest;
}

/* The message for the first token of [first, first + count) that is >= vocab; there is one. */
static Status bad_token(const Shard *shard, int64_t first, int64_t count, int64_t vocab) {
    int64_t index = first;
    while (index < first + count - 1 && (int64_t)shard_token(shard, index) < vocab) index++;
    return BAD_INPUT("%s: token %lld (offset %lld) is %u, but the vocabulary has %lld: raise model.vocab or prepare "
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
        uint32_t token = token_of(shard, source, i);
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

Status shard_writer_open(ShardWriter *writer, const char *path, TokenType type) {
    static const ShardHeader empty;
    *writer = (ShardWriter){.format = &token_formats[type]};
    Status status = file_writer_open(&writer->out, path);
    return status.code ? status : file_writer_put(&writer->out, &empty, sizeof empty);
}

static Status put_u16(FileWriter *out, const int32_t *tokens, int64_t count) {
    enum { PIECE = 4096 };
    uint16_t piece[PIECE];
    for (int64_t done = 0; done < count; done += PIECE) {
        int64_t length = smaller(count - done, PIECE);
        for (int64_t i = 0; i < length; i++) {
            CHECK(tokens[done + i] >= 0 && tokens[done + i] <= UINT16_MAX, "token %d", tokens[done + i]);
            piece[i] = (uint16_t)tokens[done + i];
        }
        Status status = file_writer_put(out, piece, length * (int64_t)sizeof *piece);
        if (status.code) return status;
    }
    return status_ok();
}

Status shard_writer_add(ShardWriter *writer, const int32_t *tokens, int64_t count) {
    if (count > INT32_MAX - writer->count) {
        shard_writer_abandon(writer);
        return BAD_INPUT("%s: the file would hold more than %d tokens, the most its header can hold", writer->out.path,
                         INT32_MAX);
    }
    writer->count += count;
    return writer->format->type == TOKEN_U16 ? put_u16(&writer->out, tokens, count)
                                             : file_writer_put(&writer->out, tokens, count * (int64_t)sizeof *tokens);
}

Status shard_writer_finish(ShardWriter *writer) {
    if (writer->count == 0) {
        shard_writer_abandon(writer);
        return BAD_INPUT("%s: there are no tokens to write", writer->out.path);
    }
    ShardHeader header = {writer->format->magic, writer->format->version, (int32_t)writer->count, {0}};
    rewind(writer->out.file); /* a write that fails here fails again in finish, which tells of it */
    Status status = file_writer_put(&writer->out, &header, sizeof header);
    return status.code ? status : file_writer_finish(&writer->out);
}

void shard_writer_abandon(ShardWriter *writer) {
    file_writer_abandon(&writer->out);
}
