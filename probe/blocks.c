/* Watched blocks: which, their slots, host copies, and work in parallel; see blocks.h. */
#include "probe/blocks.h"

#include <stdlib.h>
#include <string.h>

#include "base/integer.h"
#include "probe/singular_values.h"

enum { HOST_ELEMENTS = 1 << 24 }; /* about as many as a chunk has, or one layer */

/* ---- which blocks ----------------------------------------------------------------------------------------------- */

bool blocks_watched(const WatchedBlocks *blocks, int kind) {
    return blocks->first_slot[kind] >= 0;
}

int64_t blocks_slot(const WatchedBlocks *blocks, int kind, int64_t layer) {
    return blocks->first_slot[kind] + layer;
}

/* Of a kind's blocks. */
static int64_t top_of(const WatchedBlocks *b, const BlockKind *kind) {
    return smaller(b->top, smaller(kind->rows, kind->columns));
}

static Triples place_triples(const WatchedBlocks *b, int kind, double *memory) {
    const BlockKind *block = &b->params->kinds[kind];
    return triples_place(memory, block->rows, block->columns, top_of(b, block));
}

static bool is_listed(const ProbeConfig *config, const char *name) {
    for (int i = 0; i < config->blocks_count; i++)
        if (strcmp(config->blocks[i], name) == 0) return true;
    return false;
}

/* Slots, and the sizes of everything. */
static void plan(WatchedBlocks *b, const ProbeConfig *config) {
    int64_t most_layers = 0;
    for (int i = 0; i < b->params->kind_count; i++) {
        const BlockKind *kind = &b->params->kinds[i];
        b->first_slot[i] = -1;
        if (!params_is_hidden_matrix(kind) || !is_listed(config, kind->name)) continue;
        const int64_t rows = kind->rows, columns = kind->columns, top = top_of(b, kind);
        const int64_t values = spectrum_workspace_size(rows, columns);
        b->first_slot[i] = b->slots;
        b->slots += kind->layers;
        most_layers = larger(most_layers, kind->layers);
        b->elements = larger(b->elements, rows * columns);
        b->found_size = larger(b->found_size, triples_size(rows, columns, top));
        b->work.size = larger(b->work.size, larger(values, triples_workspace_size(rows, columns, top)));
    }
    if (b->slots > 0) b->chunk = smaller(most_layers, larger(1, HOST_ELEMENTS / (BLOCK_SETS * b->elements)));
}

Status blocks_plan(WatchedBlocks **out, const ParamTable *params, const ProbeConfig *config, Backend *be) {
    WatchedBlocks *b = calloc(1, sizeof *b);
    if (!b) return NO_MEMORY("no memory for the probes of blocks");
    b->params = params;
    b->be = be;
    b->top = config->collision_top;
    plan(b, config);
    if (b->slots == 0) free(b), b = NULL;
    *out = b;
    return status_ok();
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

Triples *blocks_layout_triples(const WatchedBlocks *b, Arena *host) {
    Triples *all = arena_take_host(host, b->slots, sizeof *all);
    for (int kind = 0; kind < b->params->kind_count; kind++) {
        const BlockKind *block = &b->params->kinds[kind];
        const int64_t size = triples_size(block->rows, block->columns, top_of(b, block));
        for (int64_t layer = 0; blocks_watched(b, kind) && layer < block->layers; layer++) {
            double *memory = arena_take_host(host, size, sizeof *memory);
            if (memory) all[blocks_slot(b, kind, layer)] = place_triples(b, kind, memory); /* else measuring */
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
    workspaces_layout(&b->work, b->be, host);
    b->stage = arena_take_1d(&memory->device, DTYPE_F32, b->elements);
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

static float *host_matrix(const WatchedBlocks *b, int set, int64_t place) {
    return b->host + (set * b->chunk + place) * b->elements;
}

const float *blocks_matrix(const WatchedLayer *at, int set) {
    return host_matrix(at->blocks, set, at->place);
}

Triples blocks_found(const WatchedLayer *at, int set) {
    const WatchedBlocks *b = at->blocks;
    return place_triples(b, at->kind, b->found + (set * b->chunk + at->place) * b->found_size);
}

typedef struct {
    WatchedBlocks *blocks;
    int kind;
    int64_t first, layers; /* of the model */
    BlockTask *task;
    void *context;
} Chunk;

static void fetch(const Chunk *c, int set, Tensor run) {
    WatchedBlocks *b = c->blocks;
    for (int64_t i = 0; i < c->layers; i++)
        fetch_run(b->be, b->stage.data, tensor_slice(run, 0, i, 1), b->params->kinds[c->kind].head_axis,
                  host_matrix(b, set, i));
}

static WatchedLayer layer_of(const Chunk *c, int64_t place) {
    const int64_t layer = c->first + place;
    return (WatchedLayer){c->blocks, c->kind, layer, blocks_slot(c->blocks, c->kind, layer), place};
}

/* Set after set. */
static void find(void *context, int64_t i, double *workspace) {
    const Chunk *c = context;
    const WatchedLayer at = layer_of(c, i % c->layers);
    const int set = (int)(i / c->layers);
    Triples t = blocks_found(&at, set);
    triples_find(&t, blocks_matrix(&at, set), workspace);
}

static void measure(void *context, int64_t i, double *workspace) {
    const Chunk *c = context;
    const WatchedLayer at = layer_of(c, i);
    c->task(c->context, &at, workspace);
}

void blocks_measure(WatchedBlocks *b, const Route *route, const Tensor *runs, int count, int found, BlockTask *task,
                    void *context) {
    CHECK(count <= BLOCK_SETS && blocks_watched(b, route->kind), "%d sets of kind %d", count, route->kind);
    for (int64_t start = 0; start < route->layers; start += b->chunk) {
        const int64_t layers = smaller(b->chunk, route->layers - start);
        Chunk c = {b, route->kind, route->first + start, layers, task, context};
        for (int set = 0; set < count; set++) fetch(&c, set, tensor_slice(runs[set], 0, start, layers));
        backend_sync(b->be);
        workspaces_run(&b->work, found * layers, find, &c);
        workspaces_run(&b->work, layers, measure, &c);
    }
}

/* ---- triples that stay ------------------------------------------------------------------------------------------ */

static void keep(void *to, const WatchedLayer *at, double *workspace) {
    (void)workspace;
    const Triples found = blocks_found(at, 0);
    triples_copy(&((Triples *)to)[at->slot], &found);
}

void blocks_keep(WatchedBlocks *b, const Route *route, Tensor run, Triples *to) {
    blocks_measure(b, route, &run, 1, 1, keep, to);
}

void blocks_begin(WatchedBlocks *b) {
    memset(b->weights_known, 0, (size_t)b->slots * sizeof *b->weights_known);
}

void blocks_keep_weights(WatchedBlocks *b, const Route *route, Tensor weights) {
    bool *known = b->weights_known + blocks_slot(b, route->kind, route->first);
    if (memchr(known, false, (size_t)route->layers) == NULL) return;
    blocks_keep(b, route, weights, b->weights);
    memset(known, true, (size_t)route->layers);
}
