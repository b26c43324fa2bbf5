/* Private to probe/: copies of matrices in host memory. What is computed with them is in dense.h. */
#pragma once

#include "core/params.h"

static inline int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static inline int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* The whole matrix of every layer of a run, row-major at `host`, one behind the other, whatever the run's split,
 * strides and dtype. host: backend_alloc_host; it holds them after backend_sync, or later as backend_to_host_later
 * says. stage: a matrix of f32 in the backend's memory. */
void fetch_run(Backend *be, void *stage, Tensor run, HeadAxis axis, float *host);
