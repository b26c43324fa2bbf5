/* Measured, then allocated once; see arena.h. */
#include "ops/arena.h"

#include "base/integer.h"

enum { ALIGNMENT = 64 }; /* a cache line, and the widest SIMD vector */

/* What a layout too large to count is taken for: no machine has it, and sums of several arenas still fit. */
static const int64_t MOST_BYTES = INT64_MAX / 16 / ALIGNMENT * ALIGNMENT;

Arena arena_measure_for(const char *name, const char *remedy) {
    return (Arena){.name = name, .remedy = remedy};
}

Arena arena_measure(const char *name) {
    return arena_measure_for(name, NULL);
}

Status arena_allocate(Arena *arena, Backend *be) {
    CHECK(!arena->base, "arena %s is allocated already", arena->name);
    void *memory = NULL;
    Status status = backend_alloc_for(be, &memory, arena->used, arena->name, arena->remedy);
    if (status.code) return status;
    arena->backend = be, arena->base = memory;
    arena->size = arena->used, arena->used = 0;
    return status;
}

void arena_free(Arena *arena) {
    if (arena->base) backend_free(arena->backend, arena->base, arena->size);
    *arena = arena_measure_for(arena->name, arena->remedy);
}

int64_t arena_bytes(const Arena *arena) {
    return arena->base ? arena->size : arena->used;
}

/* Of a contiguous tensor, up to the next boundary. A configuration may ask for more than 64 bits count. */
static int64_t padded_bytes(DType dtype, int ndim, const int64_t *shape) {
    int64_t bytes = dtype_size(dtype);
    for (int i = 0; i < ndim; i++)
        if (__builtin_mul_overflow(bytes, shape[i], &bytes) || bytes > MOST_BYTES) return MOST_BYTES;
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

Tensor arena_take(Arena *arena, DType dtype, int ndim, const int64_t *shape) {
    char *data = arena->base ? arena->base + arena->used : NULL;
    arena->used = smaller(arena->used + padded_bytes(dtype, ndim, shape), MOST_BYTES);
    CHECK(!arena->base || arena->used <= arena->size, "arena %s is laid out larger than it was measured", arena->name);
    switch (ndim) {
    case 1:
        return tensor_1d(data, dtype, shape[0]);
    case 2:
        return tensor_2d(data, dtype, shape[0], shape[1]);
    case 3:
        return tensor_3d(data, dtype, shape[0], shape[1], shape[2]);
    default:
        return tensor_4d(data, dtype, shape[0], shape[1], shape[2], shape[3]);
    }
}

Tensor arena_take_1d(Arena *arena, DType dtype, int64_t a) {
    return arena_take(arena, dtype, 1, (int64_t[]){a});
}
Tensor arena_take_2d(Arena *arena, DType dtype, int64_t a, int64_t b) {
    return arena_take(arena, dtype, 2, (int64_t[]){a, b});
}
Tensor arena_take_3d(Arena *arena, DType dtype, int64_t a, int64_t b, int64_t c) {
    return arena_take(arena, dtype, 3, (int64_t[]){a, b, c});
}
