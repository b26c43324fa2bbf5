/* Arena: one allocation for everything of one lifetime (parameters, gradients, optimizer state, activations).
 *
 * The same function lays the tensors out and measures them, so the plan that --dry-run prints is the memory that is
 * used:
 *
 *      Arena arena = arena_measure("activations");
 *      layout(&arena, &model);                         // tensors get no memory; arena.used grows
 *      if (FAILED(st, arena_allocate(&arena, be))) ...
 *      layout(&arena, &model);                         // the same calls again, now with memory
 */
#pragma once

#include "ops/backend.h"

typedef struct {
    const char *name;   /* appears in memory plans and in out-of-memory messages */
    const char *remedy; /* of backend_alloc; or NULL */
    bool on_host;       /* host memory, which a device copies to by itself */
    Backend *backend;
    char *base;   /* NULL while measuring */
    int64_t used; /* bytes handed out so far */
    int64_t size; /* bytes allocated */
} Arena;

Arena arena_measure(const char *name);
Arena arena_measure_for(const char *name, const char *remedy);  /* what the user can do if there is no memory for it */
Arena arena_measure_host(const char *name, const char *remedy); /* of backend_alloc_host, for arena_take_host */
Status arena_allocate(Arena *arena, Backend *be);               /* allocates what was measured, zeroed, and rewinds */
void arena_free(Arena *arena);
int64_t arena_bytes(const Arena *arena); /* measured or allocated */

/* The next tensor, contiguous, on a 64-byte boundary; while measuring it has a shape and no memory (data == NULL). A
 * layout of more bytes than an int64_t counts measures as more than any machine has: arena_allocate then fails. */
Tensor arena_take(Arena *arena, DType dtype, int ndim, const int64_t *shape);
Tensor arena_take_1d(Arena *arena, DType dtype, int64_t a);
Tensor arena_take_2d(Arena *arena, DType dtype, int64_t a, int64_t b);
Tensor arena_take_3d(Arena *arena, DType dtype, int64_t a, int64_t b, int64_t c);
/* The next `count` items of `size` bytes in host memory, zeroed, on a 64-byte boundary; NULL while measuring. */
void *arena_take_host(Arena *arena, int64_t count, size_t size);
