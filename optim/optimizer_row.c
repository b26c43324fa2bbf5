/* The table of optimizers, which OPTIMIZER_LIST makes, and shapes by their sides; see optimizer_row.h. */
#include "optim/optimizer_row.h"

#define DECLARE_ROW(ID, name) extern const OptimizerRow optimizer_##name;
OPTIMIZER_LIST(DECLARE_ROW)

#define ROW(ID, name) [OPTIMIZER_##ID] = &optimizer_##name,
static const OptimizerRow *const rows[OPTIMIZER_COUNT] = {OPTIMIZER_LIST(ROW)};

#define NAME(ID, name) [OPTIMIZER_##ID] = #name,
static const char *const names[OPTIMIZER_COUNT] = {OPTIMIZER_LIST(NAME)};

const OptimizerRow *optimizer_row(OptimizerKind kind) {
    return rows[kind];
}

const char *optimizer_name(OptimizerKind kind) {
    return names[kind];
}

int row_state_count(const OptimizerRow *row) {
    int count = 0;
    while (count < STATE_MAX && row->state[count].name) count++;
    return count;
}

static int64_t side_length(char side, const int64_t *matrices) {
    CHECK(side == 'n' || side == 'm' || side == '1', "'%c' is not a side", side);
    return side == 'n' ? matrices[2] : side == 'm' ? matrices[3] : 1;
}

Tensor take_by_sides(Arena *arena, const int64_t *matrices, const char *sides) {
    const int64_t shape[4] = {matrices[0], matrices[1], side_length(sides[0], matrices),
                              side_length(sides[1], matrices)};
    return arena_take(arena, DTYPE_F32, 4, shape);
}
