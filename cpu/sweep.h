/* Sweep: one pass over the same elements of several tensors, cut into pieces that threads share out.
 *
 * Dimensions that lie one behind the other in every tensor are merged, so that contiguous tensors become one long row
 * and a view of a matrix keeps its rows. A chunk is at most SWEEP_CHUNK elements of one row:
 *
 *      FOR_CHUNKS(c, copy_row(c.row[0], c.row[1], c.n), dst, src);
 *
 * calls copy_row on threads, for each chunk c: c.row[0] and c.row[1] point to c.n elements of dst and src.
 */
#pragma once

#include "ops/tensor.h"

enum { SWEEP_TENSORS = 5, SWEEP_CHUNK = 8192 };

typedef struct {
    int count;
    Tensor tensor[SWEEP_TENSORS]; /* padded to 4 dimensions and merged */
    int64_t chunks_per_row;
    int64_t chunks;
} Sweep;

typedef struct {
    int64_t n;
    void *row[SWEEP_TENSORS];
} Chunk;

/* The tensors have one shape and last strides of 1. Absent ones are allowed behind the first: their rows are NULL. */
Sweep sweep_over(int count, const Tensor *tensors);
Chunk sweep_chunk(const Sweep *sweep, int64_t i);

#define FOR_CHUNKS(chunk, call, ...)                                                                                   \
    do {                                                                                                               \
        const Tensor tensors[] = {__VA_ARGS__};                                                                        \
        const Sweep sweep = sweep_over(sizeof tensors / sizeof tensors[0], tensors);                                   \
        SWEEP_ON_THREADS                                                                                               \
        for (int64_t index = 0; index < sweep.chunks; index++) {                                                       \
            const Chunk chunk = sweep_chunk(&sweep, index);                                                            \
            call;                                                                                                      \
        }                                                                                                              \
    } while (0)
#define SWEEP_ON_THREADS _Pragma("omp parallel for schedule(static) if (sweep.chunks > 1)")
