/* Offsets and views of parameters; see params.h. */
#include "model/params.h"

#include <stdio.h>

#include "base/integer.h"
#include "ops/ops.h"

enum { ALIGN_ELEMENTS = 32 }; /* 64 bytes in bf16, 128 in fp32: rows of every storage start on a cache line */

static int64_t align_up(int64_t n) {
    return (n + ALIGN_ELEMENTS - 1) / ALIGN_ELEMENTS * ALIGN_ELEMENTS;
}

int params_add(ParamTable *table, const char *name, int64_t layers, int64_t rows, int64_t columns) {
    CHECK(table->param_count < PARAM_MAX, "more than %d parameters", PARAM_MAX);
    Param *p = &table->params[table->param_count];
    *p = (Param){.name = name,
                 .per_layer = layers > 0,
                 .vector = columns == 0,
                 .count = layers > 0 ? layers : 1,
                 .rows = rows,
                 .columns = larger(columns, 1),
                 .offset = table->elements};
    p->layer_stride = align_up(rows * p->columns);
    table->elements += p->count * p->layer_stride;
    table->count += p->count * rows * p->columns;
    return table->param_count++;
}

int params_add_block(ParamTable *table, const char *name, Role role, int param, int64_t row, int64_t rows, int heads,
                     HeadAxis axis) {
    CHECK(table->kind_count < BLOCK_KIND_MAX, "more than %d kinds of block", BLOCK_KIND_MAX);
    const Param *p = &table->params[param];
    CHECK(row >= 0 && row + rows <= p->rows, "rows [%lld, +%lld) of %s", (long long)row, (long long)rows, p->name);
    int64_t split = axis == HEADS_IN_ROWS ? rows : p->columns;
    CHECK(heads >= 1 && split % heads == 0, "%s: %lld rows or columns in %d heads", name, (long long)split, heads);
    table->kinds[table->kind_count] = (BlockKind){.name = name,
                                                  .role = role,
                                                  .param = param,
                                                  .layers = p->count,
                                                  .row = row,
                                                  .rows = rows,
                                                  .columns = p->columns,
                                                  .heads = heads,
                                                  .head_axis = axis};
    return table->kind_count++;
}

void params_layout(ParamTable *table, Arena *weights, Arena *gradients, DType compute_dtype) {
    table->master = arena_take_1d(weights, DTYPE_F32, table->elements);
    table->work = compute_dtype == DTYPE_F32 ? table->master : arena_take_1d(weights, compute_dtype, table->elements);
    table->grad = arena_take_1d(gradients, DTYPE_F32, table->elements);
}

/* ---- views ------------------------------------------------------------------------------------------------------ */

Tensor params_tensor(const ParamTable *table, Tensor storage, int param, int64_t layer) {
    const Param *p = &table->params[param];
    CHECK(layer >= 0 && layer < p->count, "layer %lld of %s, which has %lld", (long long)layer, p->name,
          (long long)p->count);
    Tensor flat = tensor_slice(storage, 0, p->offset + layer * p->layer_stride, p->rows * p->columns);
    return p->vector ? flat : tensor_as_2d(flat, p->rows, p->columns);
}

Tensor params_stack(const ParamTable *table, Tensor storage, int param) {
    const Param *p = &table->params[param];
    const int64_t size = p->rows * p->columns;
    Tensor first = tensor_as_2d(tensor_slice(storage, 0, p->offset, size), 1, size);
    first.shape[0] = p->count;
    first.stride[0] = p->layer_stride;
    return first;
}

Tensor params_block(const ParamTable *table, Tensor storage, int kind, int64_t layer) {
    return tensor_index(tensor_index(params_block_run(table, storage, kind, layer, 1, SPLIT_WHOLE), 0), 0);
}

Tensor params_block_head(const ParamTable *table, Tensor storage, int kind, int64_t layer, int head) {
    return tensor_index(tensor_index(params_block_run(table, storage, kind, layer, 1, SPLIT_PER_HEAD), 0), head);
}

Tensor params_block_run(const ParamTable *table, Tensor storage, int kind, int64_t first, int64_t layers,
                        BlockSplit split) {
    const BlockKind *b = &table->kinds[kind];
    const Param *p = &table->params[b->param];
    CHECK(first >= 0 && layers >= 1 && first + layers <= p->count, "layers [%lld, +%lld) of %s", (long long)first,
          (long long)layers, p->name);
    int64_t heads = split == SPLIT_PER_HEAD ? b->heads : 1;
    bool in_rows = b->head_axis == HEADS_IN_ROWS;
    int64_t rows = in_rows ? b->rows / heads : b->rows;
    int64_t columns = in_rows ? p->columns : p->columns / heads;
    Tensor start = tensor_slice(storage, 0, p->offset + first * p->layer_stride + b->row * p->columns, 1);
    return (Tensor){.data = start.data,
                    .dtype = storage.dtype,
                    .ndim = 4,
                    .shape = {layers, heads, rows, columns},
                    .stride = {p->layer_stride, in_rows ? rows * p->columns : columns, p->columns, 1}};
}

/* ---- names and classes ------------------------------------------------------------------------------------------ */

int params_find_kind(const ParamTable *table, const char *name) {
    for (int i = 0; i < table->kind_count; i++)
        if (strcmp(table->kinds[i].name, name) == 0) return i;
    return -1;
}

#define MARK(id, name) [ROLE_##id] = true,

bool params_is_hidden_matrix(const BlockKind *kind) {
    static const bool marks[ROLE_COUNT] = {HIDDEN_ROLES(MARK)};
    return marks[kind->role];
}

bool params_has_decay(const BlockKind *kind) {
    static const bool marks[ROLE_COUNT] = {DECAYING_ROLES(MARK)};
    return marks[kind->role];
}

bool params_splits_into_heads(const BlockKind *kind) {
    static const bool marks[ROLE_COUNT] = {HEAD_ROLES(MARK)};
    return marks[kind->role];
}

const char *role_name(Role role) {
    static const char *const names[] = {ROLE_LIST(ROLE_NAME)};
    return names[role];
}

char *params_block_name(const ParamTable *table, int kind, int64_t layer, char *buffer, int64_t size) {
    const BlockKind *b = &table->kinds[kind];
    if (table->params[b->param].per_layer)
        snprintf(buffer, (size_t)size, "layers.%lld.%s", (long long)layer, b->name);
    else
        snprintf(buffer, (size_t)size, "%s", b->name);
    return buffer;
}

void params_refresh_work(Backend *be, const ParamTable *table) {
    if (table->work.data != table->master.data) op_copy(be, table->work, table->master);
}
