/* Dataset: where token sequences come from: llm.c shards on disk, or the built-in synthetic language.
 *
 * Sample i of a training stream is a pure function of (seed, i): not of batch size, micro-batches, threads or ranks.
 * The state of a loader is therefore one number, the samples seen so far.
 *
 * Tokens are checked twice. Sources of up to DATASET_CHECK_BYTES are read through at open, so that a bad file is
 * refused before training starts. Beside that, every window is checked while it is copied, whatever its source's size:
 * what a Dataset hands out is always in [0, vocab), even if a file changes after it was opened.
 */
#pragma once

#include "base/config.h"
#include "base/status.h"

#define DATASET_CHECK_BYTES ((int64_t)1 << 30)

typedef struct Dataset Dataset;

/* `source` is a glob of shards or "synthetic". Fails on a missing, truncated or foreign file, on a token >= vocab
 * (reported with file, index and offset), and on files none of which holds context + 1 tokens. The synthetic language
 * is a function of `seed`: training and validation must be opened with the same one. */
Status dataset_open(Dataset **dataset, const char *source, int64_t vocab, int64_t context, int64_t seed,
                    const DataConfig *config, bool validation);
void dataset_close(Dataset *dataset); /* NULL is fine */

/* Training order: sample `index` (0, 1, 2, ...) as context tokens and their targets, the next tokens. Epoch after
 * epoch, each a new permutation of the windows of a grid at a new offset. tokens, targets: context int32 each; they are
 * undefined after a failure, which can only be a token >= vocab. Safe to call from several threads. */
Status dataset_train_sample(const Dataset *dataset, int64_t index, int32_t *tokens, int32_t *targets);

/* File order: window `index` of dataset_facts()->windows, for evaluation. Outputs and failures as above. */
Status dataset_window(const Dataset *dataset, int64_t index, int32_t *tokens, int32_t *targets);

typedef struct {
    int64_t windows;      /* non-overlapping windows of context tokens that have all targets */
    int64_t epoch;        /* training samples of one epoch; 0: the stream never repeats */
    int64_t tokens;       /* 0: the stream never ends (synthetic training text) */
    double entropy_floor; /* nats per token; NaN where it is not known (real text) */
    /* Of sizes, token counts and sampled contents (or of the language's numbers): a resume compares it. Files may be
     * moved and renamed as long as their order stays. */
    uint64_t fingerprint;
    char description[PATH_SIZE + 128]; /* "2 token files, 1003854 tokens (datasets/shakespeare/train_*.bin)" */
} DatasetFacts;

const DatasetFacts *dataset_facts(const Dataset *dataset);
