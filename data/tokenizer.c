/* The llm.c tokenizer file; the byte table is in tokenizer.h. */
#include "data/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/integer.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "tokenizer files are little-endian and are copied as they are");

enum { MAGIC = 20240328, VERSION = 2, FILE_LIMIT = 1 << 28 };

typedef struct {
    uint32_t magic, version, count, end_of_text;
    uint32_t unused[252];
} TokenizerHeader;

_Static_assert(sizeof(TokenizerHeader) == 1024, "the header has no padding");

/* Memory for `count` tokens of `bytes` bytes in all. */
static Status allocate(Tokenizer *tokenizer, int64_t count, int64_t bytes) {
    *tokenizer = (Tokenizer){.count = count};
    tokenizer->start = malloc((size_t)(count + 1) * sizeof *tokenizer->start);
    tokenizer->bytes = malloc((size_t)(bytes + 1)); /* never of size 0, for which malloc may return NULL */
    if (tokenizer->start && tokenizer->bytes) return status_ok();
    tokenizer_free(tokenizer);
    return NO_MEMORY("no memory for a tokenizer of %lld tokens", (long long)count);
}

Status tokenizer_init_bytes(Tokenizer *tokenizer) {
    Status status = allocate(tokenizer, TOKENIZER_BYTE_TOKENS, TOKENIZER_BYTE_TOKENS);
    if (status.code) return status;
    for (int64_t t = 0; t <= TOKENIZER_BYTE_TOKENS; t++) tokenizer->start[t] = t;
    for (int t = 0; t < TOKENIZER_BYTE_TOKENS; t++) tokenizer->bytes[t] = (uint8_t)t;
    return status;
}

static Status check_header(const char *path, const TokenizerHeader *header, int64_t size) {
    if (size < (int64_t)sizeof *header)
        return BAD_INPUT("%s: the file has %lld bytes, fewer than a tokenizer's header of %zu", path, (long long)size,
                         sizeof *header);
    if (header->magic != MAGIC)
        return BAD_INPUT("%s is not a tokenizer file: found the magic number %u at offset 0, expected %d", path,
                         header->magic, MAGIC);
    if (header->version != VERSION)
        return BAD_INPUT("%s: found version %u at offset 4, expected %d", path, header->version, VERSION);
    /* A token takes at least its length byte. */
    if (header->count < 1 || header->count > size - (int64_t)sizeof *header)
        return BAD_INPUT("%s: found a token count of %u at offset 8, impossible in %lld bytes", path, header->count,
                         (long long)size);
    if (header->end_of_text >= header->count)
        return BAD_INPUT("%s: found token %u as the end of text at offset 12, expected one below the token count of %u",
                         path, header->end_of_text, header->count);
    return status_ok();
}

/* Copies the tokens of data[1024 .. size); the header has been checked. */
static Status parse_tokens(Tokenizer *tokenizer, const char *path, const uint8_t *data, int64_t size) {
    int64_t offset = sizeof(TokenizerHeader), used = 0;
    for (int64_t t = 0; t < tokenizer->count; t++) {
        int64_t length = offset < size ? data[offset] : 0;
        if (offset >= size || length > size - offset - 1)
            return BAD_INPUT("%s: truncated: token %lld of %lld at offset %lld runs past the %lld bytes of the file",
                             path, (long long)t, (long long)tokenizer->count, (long long)offset, (long long)size);
        tokenizer->start[t] = used;
        memcpy(tokenizer->bytes + used, data + offset + 1, (size_t)length);
        used += length;
        offset += 1 + length;
    }
    tokenizer->start[tokenizer->count] = used;
    if (offset == size) return status_ok();
    return BAD_INPUT("%s: trailing bytes: the last of %lld tokens ends at offset %lld, the file at %lld", path,
                     (long long)tokenizer->count, (long long)offset, (long long)size);
}

Status tokenizer_read(Tokenizer *tokenizer, const char *path) {
    *tokenizer = (Tokenizer){0};
    char *data = NULL;
    int64_t size = 0;
    Status status;
    if (FAILED(status, file_read(path, FILE_LIMIT, &data, &size))) return status;
    TokenizerHeader header = {0};
    memcpy(&header, data, (size_t)smaller(size, sizeof header));
    if (FAILED(status, check_header(path, &header, size))) goto done;
    if (FAILED(status, allocate(tokenizer, header.count, size))) goto done;
    tokenizer->end_of_text = header.end_of_text;
    if (FAILED(status, parse_tokens(tokenizer, path, (const uint8_t *)data, size))) tokenizer_free(tokenizer);
done:
    free(data);
    return status;
}

Status tokenizer_read_beside(Tokenizer *tokenizer, const char *path) {
    char folder[PATH_SIZE], beside[PATH_SIZE];
    const char *slash = strrchr(path, '/');
    *tokenizer = (Tokenizer){0};
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path + 1) : 2, slash ? path : "./");
    Status status = path_join(beside, folder, "tokenizer.bin");
    return status.code || !file_exists(beside) ? status : tokenizer_read(tokenizer, beside);
}

Status tokenizer_write(const Tokenizer *tokenizer, const char *path) {
    TokenizerHeader header = {MAGIC, VERSION, (uint32_t)tokenizer->count, (uint32_t)tokenizer->end_of_text, {0}};
    int64_t size = (int64_t)sizeof header + tokenizer->count + tokenizer->start[tokenizer->count];
    uint8_t *data = malloc((size_t)size);
    if (!data) return NO_MEMORY("%s: no memory for its %lld bytes", path, (long long)size);
    memcpy(data, &header, sizeof header);
    uint8_t *next = data + sizeof header;
    for (int64_t t = 0; t < tokenizer->count; t++) {
        int64_t length = 0;
        const uint8_t *bytes = tokenizer_decode(tokenizer, t, &length);
        CHECK(length <= UINT8_MAX, "token %lld has %lld bytes", (long long)t, (long long)length);
        *next++ = (uint8_t)length;
        memcpy(next, bytes, (size_t)length);
        next += length;
    }
    Status status = file_write(path, data, size);
    free(data);
    return status;
}

void tokenizer_free(Tokenizer *tokenizer) {
    free(tokenizer->start);
    free(tokenizer->bytes);
    *tokenizer = (Tokenizer){0};
}

const uint8_t *tokenizer_decode(const Tokenizer *tokenizer, int64_t token, int64_t *length) {
    *length = 0;
    if (token < 0 || token >= tokenizer->count) return tokenizer->bytes;
    *length = tokenizer->start[token + 1] - tokenizer->start[token];
    return tokenizer->bytes + tokenizer->start[token];
}

bool tokenizer_is_byte_level(const Tokenizer *tokenizer) {
    if (tokenizer->count != TOKENIZER_BYTE_TOKENS) return false;
    for (int64_t t = 0; t < TOKENIZER_BYTE_TOKENS; t++) {
        int64_t length = 0;
        const uint8_t *bytes = tokenizer_decode(tokenizer, t, &length);
        if (length != 1 || bytes[0] != t) return false;
    }
    return true;
}

void tokenizer_encode_bytes(const void *text, int64_t size, int32_t *tokens) {
    const uint8_t *bytes = text;
    for (int64_t i = 0; i < size; i++) tokens[i] = bytes[i];
}
