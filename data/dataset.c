/* One stream of windows over many shards, or over the synthetic language; see dataset.h.
 *
 * A window is context + 1 tokens: context inputs and, shifted by one, their targets. Windows overlap by the one token
 * that is target of one and input of the next, and never cross from one shard into another.
 *
 *      evaluation   | 0 ------- | 1 ------- | 2 ------- |..        the grid begins at token 0
 *      epoch 0      ....| ------- | ------- |.............         at a random offset instead, so that a token is seen
 *      epoch 1      .| ------- | ------- |................         at another position in each epoch
 *                    <- offset                     rest ->
 *
 * Shard s has W_s = max(1, count_s / context - 1) windows in every epoch (none if it is shorter than one window), one
 * fewer than its evaluation grid may have: that leaves room for at least `context` offsets, makes all epochs equally
 * long, and over the epochs every token but a shard's first becomes a target. W = sum of W_s. Then sample i is
 *
 *      epoch    e = i div W                                        key = rng_u64(seed, RNG_DATA_ORDER, e)
 *      window   w = rng_permute(key, RNG_DATA_ORDER, i mod W, W)   the v-th window of shard s, s by binary search
 *      offset   o = rng_u64(key, RNG_DATA_ORDER, 2^64 - 1 - s) mod (count_s - W_s context)
 *      first token: o + v context
 *
 * These formulas are part of the reproducibility promise: a change to them changes every run.
 */
#include "data/dataset.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "data/shard.h"
#include "data/synthetic.h"

enum { SYNTHETIC_EVALUATION_TOKENS = 65536 }; /* of one evaluation: enough for a standard error below 0.01 nats */

typedef enum { GRID_EVALUATION, GRID_EPOCH, GRID_COUNT } Grid;

typedef struct {
    Shard shard;
    int64_t first[GRID_COUNT]; /* windows of all shards before this one */
    int64_t windows[GRID_COUNT];
} Source;

struct Dataset {
    int64_t vocab, context;
    uint64_t seed;

    int64_t source_count; /* 0: the synthetic language */
    Source *sources;
    SyntheticLanguage language;
    SyntheticSplit split;

    DatasetFacts facts;
};

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static Status open_synthetic(Dataset *dataset, const DataConfig *config, bool validation) {
    SyntheticLanguage *language = &dataset->language;
    Status status =
        synthetic_init(language, dataset->vocab, config->synthetic_states, config->synthetic_zipf, dataset->seed);
    if (status.code) return status;
    dataset->facts.entropy_floor = language->entropy;
    dataset->split = validation ? SYNTHETIC_VALIDATION : SYNTHETIC_TRAIN;
    dataset->facts.windows = (SYNTHETIC_EVALUATION_TOKENS + dataset->context - 1) / dataset->context;
    dataset->facts.tokens = validation ? dataset->facts.windows * dataset->context : 0;

    const uint64_t identity[] = {(uint64_t)language->vocab, (uint64_t)language->states, language->seed,
                                 (uint64_t)dataset->split};
    uint64_t hash = file_hash(FILE_HASH_START, identity, sizeof identity);
    dataset->facts.fingerprint = file_hash(hash, &language->zipf, sizeof language->zipf);
    snprintf(dataset->facts.description, sizeof dataset->facts.description,
             "synthetic language, %lld tokens in %lld states, Zipf exponent %g, entropy %.4f nats a token",
             (long long)language->vocab, (long long)language->states, language->zipf, language->entropy);
    return status;
}

static Status open_shards(Dataset *dataset, const FileList *files) {
    dataset->sources = calloc((size_t)files->count, sizeof *dataset->sources);
    if (!dataset->sources) return NO_MEMORY("no memory for a list of %lld token files", (long long)files->count);
    for (int64_t i = 0; i < files->count; i++) {
        Status status = shard_open(&dataset->sources[i].shard, files->paths[i]);
        if (status.code) return status;
        dataset->source_count = i + 1; /* what dataset_close closes */
    }
    return status_ok();
}

/* Numbers the windows of both grids, and hashes the shards in their order. */
static void lay_out_windows(Dataset *dataset) {
    dataset->facts.fingerprint = FILE_HASH_START;
    dataset->facts.entropy_floor = (double)NAN;
    for (int64_t i = 0; i < dataset->source_count; i++) {
        Source *source = &dataset->sources[i];
        int64_t count = source->shard.count, context = dataset->context;
        int64_t complete = (count - 1) / context;
        source->windows[GRID_EVALUATION] = complete;
        source->windows[GRID_EPOCH] = complete < 2 ? complete : count / context - 1;
        source->first[GRID_EVALUATION] = dataset->facts.windows;
        source->first[GRID_EPOCH] = dataset->facts.epoch;
        dataset->facts.windows += source->windows[GRID_EVALUATION];
        dataset->facts.epoch += source->windows[GRID_EPOCH];
        dataset->facts.tokens += count;
        dataset->facts.fingerprint = shard_hash(&source->shard, dataset->facts.fingerprint);
    }
}

/* Reads all tokens once if there are not too many; shard_read checks those that it hands out in any case. */
static Status check_tokens(const Dataset *dataset) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < dataset->source_count; i++) bytes += dataset->sources[i].shard.bytes;
    if (bytes > DATASET_CHECK_BYTES) return status_ok();
    for (int64_t i = 0; i < dataset->source_count; i++) {
        const Shard *shard = &dataset->sources[i].shard;
        shard_expect(shard, SHARD_SEQUENTIAL);
        Status status = shard_check_tokens(shard, dataset->vocab);
        if (status.code) return status;
    }
    return status_ok();
}

static Status open_files(Dataset *dataset, const char *pattern, bool validation) {
    FileList files = {0};
    Status status;
    if (FAILED(status, file_glob(pattern, &files)))
        return status_error(status.code, "%s; `./train_gpt prepare OUT_DIR FILE...` makes token files from text",
                            status.message);
    if (FAILED(status, open_shards(dataset, &files))) goto done;
    if (FAILED(status, check_tokens(dataset))) goto done;
    lay_out_windows(dataset);
    if (dataset->facts.windows == 0) {
        status = BAD_INPUT("%s: %lld tokens in %lld file%s, but none holds the %lld of one window: model.context + 1",
                           pattern, (long long)dataset->facts.tokens, (long long)files.count,
                           files.count == 1 ? "" : "s", (long long)(dataset->context + 1));
        goto done;
    }
    for (int64_t i = 0; i < dataset->source_count; i++)
        shard_expect(&dataset->sources[i].shard, validation ? SHARD_SEQUENTIAL : SHARD_RANDOM);
    snprintf(dataset->facts.description, sizeof dataset->facts.description, "%lld token file%s, %lld tokens (%s)",
             (long long)files.count, files.count == 1 ? "" : "s", (long long)dataset->facts.tokens, pattern);
done:
    file_list_free(&files);
    return status;
}

Status dataset_open(Dataset **dataset, const char *source, int64_t vocab, int64_t context, int64_t seed,
                    const DataConfig *config, bool validation) {
    CHECK(vocab >= 1 && context >= 1, "vocab %lld, context %lld", (long long)vocab, (long long)context);
    Dataset *opened = calloc(1, sizeof *opened);
    if (!opened) return NO_MEMORY("no memory for a data set");
    opened->vocab = vocab;
    opened->context = context;
    opened->seed = (uint64_t)seed;
    Status status = strcmp(source, "synthetic") == 0 ? open_synthetic(opened, config, validation)
                                                     : open_files(opened, source, validation);
    if (status.code)
        dataset_close(opened);
    else
        *dataset = opened;
    return status;
}

void dataset_close(Dataset *dataset) {
    if (!dataset) return;
    for (int64_t i = 0; i < dataset->source_count; i++) shard_close(&dataset->sources[i].shard);
    free(dataset->sources);
    synthetic_free(&dataset->language);
    free(dataset);
}

/* ---- windows ---------------------------------------------------------------------------------------------------- */

/* Copies context + 1 tokens into two arrays of context. */
static Status read_window(const Dataset *dataset, const Shard *shard, int64_t first, int32_t *tokens,
                          int32_t *targets) {
    int64_t context = dataset->context;
    Status status = shard_read(shard, first, context, dataset->vocab, tokens);
    if (status.code) return status;
    memcpy(targets, tokens + 1, (size_t)(context - 1) * sizeof *targets);
    return shard_read(shard, first + context, 1, dataset->vocab, targets + context - 1);
}

/* The source of window `index` of a grid: the last that begins at or before it. */
static int64_t find_source(const Dataset *dataset, Grid grid, int64_t index) {
    int64_t low = 0, high = dataset->source_count - 1;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2;
        if (dataset->sources[middle].first[grid] <= index)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

Status dataset_train_sample(const Dataset *dataset, int64_t index, int32_t *tokens, int32_t *targets) {
    CHECK(index >= 0, "sample %lld", (long long)index);
    int64_t context = dataset->context, epoch_windows = dataset->facts.epoch;
    if (dataset->source_count == 0) {
        synthetic_sample(&dataset->language, dataset->split, index, context, tokens, targets);
        return status_ok();
    }
    uint64_t key = rng_u64(dataset->seed, RNG_DATA_ORDER, (uint64_t)(index / epoch_windows));
    int64_t window =
        (int64_t)rng_permute(key, RNG_DATA_ORDER, (uint64_t)(index % epoch_windows), (uint64_t)epoch_windows);

    int64_t place = find_source(dataset, GRID_EPOCH, window);
    const Source *source = &dataset->sources[place];
    int64_t room = source->shard.count - source->windows[GRID_EPOCH] * context;
    uint64_t offset = rng_u64(key, RNG_DATA_ORDER, UINT64_MAX - (uint64_t)place) % (uint64_t)room;
    int64_t first = (int64_t)offset + (window - source->first[GRID_EPOCH]) * context;
    return read_window(dataset, &source->shard, first, tokens, targets);
}

Status dataset_window(const Dataset *dataset, int64_t index, int32_t *tokens, int32_t *targets) {
    CHECK(index >= 0 && index < dataset->facts.windows, "window %lld of %lld", (long long)index,
          (long long)dataset->facts.windows);
    if (dataset->source_count == 0) {
        synthetic_sample(&dataset->language, dataset->split, index, dataset->context, tokens, targets);
        return status_ok();
    }
    const Source *source = &dataset->sources[find_source(dataset, GRID_EVALUATION, index)];
    int64_t first = (index - source->first[GRID_EVALUATION]) * dataset->context;
    return read_window(dataset, &source->shard, first, tokens, targets);
}

const DatasetFacts *dataset_facts(const Dataset *dataset) {
    return &dataset->facts;
}
