/* Measured, then allocated once; see arena.h. */
#include "ops/arena.h"

#include <string.h>

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

Arena arena_measure_host(const char *name, const char *remedy) {
    return (Arena){.name = name, .remedy = remedy, .on_host = true};
}

static Status allocate_host(const Arena *arena, Backend *be, void **memory) {
    *memory = backend_alloc_host(be, arena->used + 1); /* never 0: NULL means out of memory */
    if (!*memory)
        return NO_MEMORY("%s: no memory for %lld bytes on the host; %s", arena->name, (long long)arena->used,
                         arena->remedy);
    memset(*memory, 0, (size_t)arena->used);
    return status_ok();
}

Status arena_allocate(Arena *arena, Backend *be) {
    CHECK(!arena->base, "arena %s is allocated already", arena->name);
    void *memory = NULL;
    Status status = arena->on_host ? allocate_host(arena, be, &memory)
                                   : backend_alloc(be, &memory, arena->used, arena->name, arena->remedy);
    if (status.code) return status;
    arena->backend = be;
    arena->base = memory;
    arena->size = arena->used;
    arena->used = 0;
    return status;
}

void arena_free(Arena *arena) {
    if (arena->base && arena->on_host)
        backend_free_host(arena->backend, arena->base);
    else if (arena->base)
        backend_free(arena->backend, arena->base, arena->size);
    *arena = (Arena){.name = arena->name, .remedy = arena->remedy, .on_host = arena->on_host};
}

int64_t arena_bytes(const Arena *arena) {
    return arena->base ? arena->size : arena->used;
}

/* Up to the next boundary. A configuration may ask for more than 64 bits count. */
static int64_t padded_bytes(int64_t element, int ndim, const int64_t *shape) {
    int64_t bytes = element;
    for (int i = 0; i < ndim; i++)
        if (__builtin_mul_overflow(bytes, shape[i], &bytes) || bytes > MOST_BYTES) return MOST_BYTES;
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* The next piece of memory of that size; NULL while measuring. */
static char *take(Arena *arena, int64_t bytes) {
    char *data = arena->base ? arena->base + arena->used : NULL;
    arena->used = smaller(arena->used + bytes, MOST_BYTES);
    CHECK(!arena->base || arena->used <= arena->size, "arena %s is laid out larger than it was measured", arena->name);
    return data;
}

Tensor arena_take(Arena *arena, DType dtype, int ndim, const int64_t *shape) {
    return tensor_of(take(arena, padded_bytes(dtype_size(dtype), ndim, shape)), dtype, ndim, shape);
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

void *arena_take_host(Arena *arena, int64_t count, size_t size) {
    return take(arena, padded_bytes((int64_t)size, 1, &count));
}
