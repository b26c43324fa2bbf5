/* Text files to byte-level token shards: one token per byte, vocabulary 256.
 *
 *      OUT_DIR/train_000001.bin, train_000002.bin ...   the first part of all files, one after the other
 *      OUT_DIR/val_000000.bin (val_000001.bin ...)      the last part: `validation_fraction` of the bytes
 *      OUT_DIR/tokenizer.bin                            bytes of the tokens
 *
 * All or nothing: files are written in OUT_DIR/prepare.tmp/ and moved out when the last is complete. Shards of these
 * names from an earlier call are replaced, all of them: a glob never sees two corpora mixed. After a failure OUT_DIR is
 * as it was, and absent if it was absent.
 */
#pragma once

#include <stdio.h>

#include "base/status.h"

typedef struct {
    double validation_fraction; /* in (0, 0.5) */
    int64_t shard_tokens;       /* of the largest shard; in [1, 2^31 - 1] */
} PrepareOptions;

PrepareOptions prepare_defaults(void); /* a tenth; 100 million */

/* `log` gets a line for each file read and shard written. Refuses no files, files that cannot be read, fewer than two
 * bytes in all, options out of range and a folder that cannot be written. Both splits hold at least one token. */
Status prepare_corpus(const char *out_dir, int file_count, char **files, PrepareOptions options, FILE *log);
