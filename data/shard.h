/* Token shards in the llm.c format, read through a memory map and written as a stream.
 *
 *      offset   bytes   meaning                                    little-endian
 *      0        4       magic: 20240520 (uint16 tokens) or 20240801 (uint32 tokens)
 *      4        4       version: 1 (uint16) or 7 (uint32)
 *      8        4       number of tokens N, int32, >= 1
 *      12       1012    zero
 *      1024     N * w   tokens, w = 2 or 4 bytes each; the file ends with the last one
 *
 * All sizes, indices and offsets are int64: shards beyond 2 GiB are common. A Shard that was opened has its exact size
 * and at least one token; the file must not be truncated while it is open (the map's pages would be gone: SIGBUS).
 */
#pragma once

#include "base/file.h"

enum { SHARD_HEADER_BYTES = 1024 };

typedef enum { TOKEN_U16, TOKEN_U32 } TokenType;

typedef struct {
    TokenType type;
    const char *name; /* "uint16" */
    int32_t magic, version;
    int64_t width; /* bytes of a token */
    int64_t limit; /* tokens are below this */
} TokenFormat;

extern const TokenFormat token_formats[2]; /* by TokenType */

/* ---- reading ---------------------------------------------------------------------------------------------------- */

typedef struct {
    char path[PATH_SIZE];
    const TokenFormat *format;
    int64_t count; /* tokens */
    int64_t bytes; /* of the file, header included */
    void *map;     /* the whole file, read-only */
} Shard;

/* STATUS_IO: the file cannot be opened or mapped. STATUS_BAD_INPUT: it is not a token file, or has another size than
 * its header says. Messages name file, offset, what was found and what was expected. */
Status shard_open(Shard *shard, const char *path);
void shard_close(Shard *shard);

/* Tells the kernel how the file will be read; a hint without other effect. */
typedef enum { SHARD_SEQUENTIAL, SHARD_RANDOM } ShardAccess;
void shard_expect(const Shard *shard, ShardAccess access);

uint32_t shard_token(const Shard *shard, int64_t index);
uint32_t shard_largest_token(const Shard *shard); /* reads the whole file, on all OpenMP threads */

/* Copies `count` tokens from index `first` on. A token >= vocab is STATUS_BAD_INPUT with its index and byte offset.
 * vocab <= 2^31. */
Status shard_read(const Shard *shard, int64_t first, int64_t count, int64_t vocab, int32_t *tokens);

/* Every token of the file is < vocab, or the first that is not is reported. */
Status shard_check_tokens(const Shard *shard, int64_t vocab);

/* FNV-1a of size, count and up to 64 evenly spaced pieces of the tokens, chained onto `hash`. */
uint64_t shard_hash(const Shard *shard, uint64_t hash);

/* ---- writing ---------------------------------------------------------------------------------------------------- */

/* Tokens go to path.tmp behind an empty header, which no reader accepts; shard_writer_finish fills the header in and
 * renames. Every open is followed by one finish or abandon; a finish that fails has abandoned. */
typedef struct {
    FileWriter out;
    const TokenFormat *format;
    int64_t count;
} ShardWriter;

Status shard_writer_open(ShardWriter *writer, const char *path, TokenType type);
Status shard_writer_add(ShardWriter *writer, const int32_t *tokens, int64_t count); /* tokens in range of the type */
Status shard_writer_finish(ShardWriter *writer);                                    /* refuses a shard without tokens */
void shard_writer_abandon(ShardWriter *writer); /* removes the temporary file; does nothing after finish */
