/* Tokens to bytes: the llm.c tokenizer file, and the byte-level tokenizer that `prepare` writes.
 *
 *      offset   bytes   meaning                                    little-endian
 *      0        4       magic: 20240328
 *      4        4       version: 2
 *      8        4       number of tokens V, uint32
 *      12       4       the token that ends a text, uint32
 *      16       1008    zero
 *      1024     ...     V times: one byte n, then the n bytes of the token; the file ends with the last one
 *
 * The file knows what a token's bytes are, not how text splits into tokens, so encoding is for byte-level ones only.
 */
#pragma once

#include <stdbool.h>

#include "base/status.h"

enum { TOKENIZER_BYTE_TOKENS = 256 };

typedef struct {
    int64_t count;
    int64_t end_of_text; /* < count */
    int64_t *start;      /* (count + 1) token t is bytes[start[t] .. start[t+1]) */
    uint8_t *bytes;
} Tokenizer;

/* One token for each byte value; NUL, which text does not hold, ends a text. */
Status tokenizer_init_bytes(Tokenizer *tokenizer);
/* STATUS_BAD_INPUT: not such a file, or one that does not end with its last token; file, offset, found, expected. */
Status tokenizer_read(Tokenizer *tokenizer, const char *path);
/* tokenizer.bin in the folder of `path`; if there is none, a tokenizer without tokens. */
Status tokenizer_read_beside(Tokenizer *tokenizer, const char *path);
Status tokenizer_write(const Tokenizer *tokenizer, const char *path);
void tokenizer_free(Tokenizer *tokenizer);

/* The bytes of a token, not NUL-terminated, and how many; none for a token outside the vocabulary. */
const uint8_t *tokenizer_decode(const Tokenizer *tokenizer, int64_t token, int64_t *length);

bool tokenizer_is_byte_level(const Tokenizer *tokenizer);                     /* token t is the one byte t */
void tokenizer_encode_bytes(const void *text, int64_t size, int32_t *tokens); /* size tokens */
