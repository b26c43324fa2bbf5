/* Backend "ref": every op as plain loops over plain element access. It is the specification: the other backends are
 * tested against it, so it is written to be read, not to be fast. Sums and formulas are evaluated in double; a result
 * is rounded once, when it is stored.
 *
 * An element is named by its indices, whatever the strides and the dtype:
 *
 *      get2(x, n, c)              x[n][c]
 *      set2(x, n, c, value)       x[n][c] = value
 *      add2(x, n, c, value)       x[n][c] += value
 *      get_flat(x, i)             the i-th element in row-major order, for elementwise loops over any shape
 */
#pragma once

#include "ops/backend.h"

static inline double ref_load(Tensor t, int64_t offset) {
    if (t.dtype == DTYPE_F32) return (double)((const float *)t.data)[offset];
    if (t.dtype == DTYPE_BF16) return (double)bf16_to_f32(((const bf16 *)t.data)[offset]);
    return ((const int32_t *)t.data)[offset];
}

static inline void ref_store(Tensor t, int64_t offset, double value) {
    if (t.dtype == DTYPE_F32)
        ((float *)t.data)[offset] = (float)value;
    else if (t.dtype == DTYPE_BF16)
        ((bf16 *)t.data)[offset] = bf16_from_f32((float)value);
    else
        ((int32_t *)t.data)[offset] = (int32_t)value;
}

static inline double get4(Tensor t, int64_t i, int64_t j, int64_t k, int64_t l) {
    return ref_load(t, i * t.stride[0] + j * t.stride[1] + k * t.stride[2] + l * t.stride[3]);
}
static inline double get3(Tensor t, int64_t i, int64_t j, int64_t k) {
    return get4(t, i, j, k, 0);
}
static inline double get2(Tensor t, int64_t i, int64_t j) {
    return get4(t, i, j, 0, 0);
}
static inline double get1(Tensor t, int64_t i) {
    return get4(t, i, 0, 0, 0);
}

static inline void set4(Tensor t, int64_t i, int64_t j, int64_t k, int64_t l, double value) {
    ref_store(t, i * t.stride[0] + j * t.stride[1] + k * t.stride[2] + l * t.stride[3], value);
}
static inline void set3(Tensor t, int64_t i, int64_t j, int64_t k, double value) {
    set4(t, i, j, k, 0, value);
}
static inline void set2(Tensor t, int64_t i, int64_t j, double value) {
    set4(t, i, j, 0, 0, value);
}
static inline void set1(Tensor t, int64_t i, double value) {
    set4(t, i, 0, 0, 0, value);
}

static inline void add4(Tensor t, int64_t i, int64_t j, int64_t k, int64_t l, double value) {
    set4(t, i, j, k, l, get4(t, i, j, k, l) + value);
}
static inline void add2(Tensor t, int64_t i, int64_t j, double value) {
    add4(t, i, j, 0, 0, value);
}
static inline void add1(Tensor t, int64_t i, double value) {
    add4(t, i, 0, 0, 0, value);
}

static inline int64_t at_flat(Tensor t, int64_t i) {
    int64_t offset = 0;
    for (int dim = t.ndim - 1; dim >= 0; dim--) {
        offset += i % t.shape[dim] * t.stride[dim];
        i /= t.shape[dim];
    }
    return offset;
}
static inline double get_flat(Tensor t, int64_t i) {
    return ref_load(t, at_flat(t, i));
}
static inline void set_flat(Tensor t, int64_t i, double value) {
    ref_store(t, at_flat(t, i), value);
}

/* The ops, ref_fill to ref_apply_update: each has its wrapper's type. */
#define X(ID, slot, need) __typeof__(op_##slot) ref_##slot;
PLAIN_OP_LIST(X)
#undef X
#pragma GCC diagnostic ignored "-Wunused-parameter" /* a slot's type is given: not every op looks at its backend */
