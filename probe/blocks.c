/* Watched blocks: which, their slots, host copies, and work in parallel; see blocks.h. */
#include "probe/blocks.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/integer.h"
#include "probe/matrix.h"
#include "probe/singular_values.h"

enum { HOST_ELEMENTS = 1 << 24 }; /* about as many as a chunk has, or one layer */

/* ---- which blocks ----------------------------------------------------------------------------------------------- */

bool blocks_watched(const WatchedBlocks *blocks, int kind) {
    return blocks->first_slot[kind] >= 0;
}

int64_t blocks_slot(const WatchedBlocks *blocks, int kind, int64_t layer) {
    return blocks->first_slot[kind] + layer;
}

int64_t blocks_rows(const WatchedBlocks *blocks, int kind) {
    return blocks->params->kinds[kind].rows;
}

int64_t blocks_columns(const WatchedBlocks *blocks, int kind) {
    return blocks->params->params[blocks->params->kinds[kind].param].columns;
}

int64_t blocks_top(const WatchedBlocks *blocks, int kind) {
    return smaller(blocks->top, smaller(blocks_rows(blocks, kind), blocks_columns(blocks, kind)));
}

static bool is_listed(const ProbeConfig *config, const char *name) {
    for (int i = 0; i < config->blocks_count; i++)
        if (strcmp(config->blocks[i], name) == 0) return true;
    return false;
}

/* Slots, and the sizes of everything. */
static void plan(WatchedBlocks *b, const ProbeConfig *config) {
    int64_t most_layers = 0;
    for (int kind = 0; kind < b->params->kind_count; kind++) {
        const BlockKind *block = &b->params->kinds[kind];
        b->first_slot[kind] = -1;
        if (!params_is_hidden_matrix(block) || !is_listed(config, block->name)) continue;
        const int64_t rows = blocks_rows(b, kind), columns = blocks_columns(b, kind);
        const int64_t layers = params_kind_layers(b->params, kind);
        const int64_t values = smaller(rows, columns) + singular_workspace_size(rows, columns);
        const int64_t triples = triples_workspace_size(rows, columns, blocks_top(b, kind));
        b->first_slot[kind] = b->slots;
        b->slots += layers;
        most_layers = larger(most_layers, layers);
        b->elements = larger(b->elements, rows * columns);
        b->found_size = larger(b->found_size, triples_size(rows, columns, blocks_top(b, kind)));
        b->workspace_size = larger(b->workspace_size, larger(values, triples));
    }
    if (b->slots > 0) b->chunk = smaller(most_layers, larger(1, HOST_ELEMENTS / (BLOCK_SETS * b->elements)));
}

Status blocks_plan(WatchedBlocks **out, const ParamTable *params, const ProbeConfig *config, Backend *be) {
    WatchedBlocks *b = calloc(1, sizeof *b);
    if (!b) return status_error(STATUS_OUT_OF_MEMORY, "no memory for the probes of blocks");
    b->params = params;
    b->be = be;
    b->threads = be->threads > 0 ? be->threads : omp_get_max_threads();
    b->top = config->collision_top;
    plan(b, config);
    if (b->slots == 0) free(b), b = NULL;
    *out = b;
    return status_ok();
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static int64_t triples_size_of(const WatchedBlocks *b, int kind) {
    return triples_size(blocks_rows(b, kind), blocks_columns(b, kind), blocks_top(b, kind));
}

Triples *blocks_layout_triples(const WatchedBlocks *b, Arena *host) {
    Triples *all = arena_take_host(host, b->slots, sizeof *all);
    for (int kind = 0; kind < b->params->kind_count; kind++) {
        for (int64_t layer = 0; blocks_watched(b, kind) && layer < params_kind_layers(b->params, kind); layer++) {
            double *memory = arena_take_host(host, triples_size_of(b, kind), sizeof *memory);
            if (!memory) continue; /* measuring */
            all[blocks_slot(b, kind, layer)] =
                triples_place(memory, blocks_rows(b, kind), blocks_columns(b, kind), blocks_top(b, kind));
        }
    }
    return all;
}

void blocks_layout(WatchedBlocks *b, ProbeMemory *memory) {
    Arena *host = &memory->host;
    b->host = arena_take_host(host, BLOCK_SETS * b->chunk * b->elements, sizeof *b->host);
    b->found = arena_take_host(host, BLOCK_SETS * b->chunk * b->found_size, sizeof *b->found);
    b->weights = blocks_layout_triples(b, host);
    b->weights_known = arena_take_host(host, b->slots, sizeof *b->weights_known);
    b->workspaces = arena_take_host(host, b->threads * b->workspace_size, sizeof *b->workspaces);
    b->stage = arena_take_1d(&memory->device, DTYPE_F32, b->elements);
}

/* ---- copies and work -------------------------------------------------------------------------------------------- */

static float *host_matrix(const WatchedBlocks *b, int set, int64_t layer) {
    return b->host + (set * b->chunk + layer) * b->elements;
}

void blocks_fetch(WatchedBlocks *b, int set, int kind, Tensor run) {
    CHECK(set < BLOCK_SETS && run.shape[0] <= b->chunk && blocks_watched(b, kind), "set %d, %lld layers of kind %d",
          set, (long long)run.shape[0], kind);
    for (int64_t layer = 0; layer < run.shape[0]; layer++)
        fetch_run(b->be, b->stage.data, tensor_slice(run, 0, layer, 1), b->params->kinds[kind].head_axis,
                  host_matrix(b, set, layer));
    backend_sync(b->be);
}

const float *blocks_matrix(const WatchedBlocks *b, int set, int64_t layer) {
    return host_matrix(b, set, layer);
}

void blocks_parallel(WatchedBlocks *b, int64_t count, BlockTask *task, void *context) {
    int threads_before = blas_begin_serial();
#pragma omp parallel for schedule(dynamic) num_threads(b->threads)
    for (int64_t i = 0; i < count; i++) task(context, i, b->workspaces + omp_get_thread_num() * b->workspace_size);
    blas_end_serial(threads_before);
}

/* ---- triples ---------------------------------------------------------------------------------------------------- */

Triples blocks_found(const WatchedBlocks *b, int set, int kind, int64_t layer) {
    return triples_place(b->found + (set * b->chunk + layer) * b->found_size, blocks_rows(b, kind),
                         blocks_columns(b, kind), blocks_top(b, kind));
}

typedef struct {
    const WatchedBlocks *blocks;
    int kind;
    int64_t layers;
} Search;

static void find(void *context, int64_t i, double *workspace) {
    const Search *s = context;
    const int set = (int)(i / s->layers);
    Triples t = blocks_found(s->blocks, set, s->kind, i % s->layers);
    triples_find(&t, blocks_matrix(s->blocks, set, i % s->layers), workspace);
}

void blocks_find(WatchedBlocks *b, int sets, int kind, int64_t layers) {
    blocks_parallel(b, sets * layers, find, &(Search){b, kind, layers});
}

void blocks_begin(WatchedBlocks *b) {
    for (int64_t slot = 0; slot < b->slots; slot++) b->weights_known[slot] = false;
}

void blocks_keep_weights(WatchedBlocks *b, int kind, int64_t first_layer, Tensor weights) {
    for (int64_t start = 0; start < weights.shape[0]; start += b->chunk) {
        const int64_t layers = smaller(b->chunk, weights.shape[0] - start);
        const int64_t slot = blocks_slot(b, kind, first_layer + start);
        int64_t known = 0;
        while (known < layers && b->weights_known[slot + known]) known++;
        if (known == layers) continue;
        blocks_fetch(b, 0, kind, tensor_slice(weights, 0, start, layers));
        blocks_find(b, 1, kind, layers);
        for (int64_t layer = 0; layer < layers; layer++) {
            const Triples found = blocks_found(b, 0, kind, layer);
            triples_copy(&b->weights[slot + layer], &found);
            b->weights_known[slot + layer] = true;
        }
    }
}
