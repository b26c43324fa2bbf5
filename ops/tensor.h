/* Tensor: a typed, strided view of memory that somebody else owns (an arena, mostly). Passed by value.
 *
 * Invariants: 1 <= ndim <= 4; shape[i] >= 0; strides are counted in elements; data == NULL means "absent", which is how
 * optional arguments are left out. The memory may be a device's: only a backend dereferences data.
 *
 *      a (3,4) block inside a (5,8) matrix:  shape {3,4}, stride {8,1}
 *      its transpose:                        shape {4,3}, stride {1,8}     (tensor_transpose moves no data)
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef enum { DTYPE_F32, DTYPE_BF16, DTYPE_I32 } DType;

enum { TENSOR_MAX_DIMS = 4 };

typedef struct {
    void *data;
    DType dtype;
    int ndim;
    int64_t shape[TENSOR_MAX_DIMS];
    int64_t stride[TENSOR_MAX_DIMS];
} Tensor;

/* A tensor and what a checkpoint calls it: how optimizer state travels from optim/ to model/checkpoint. */
typedef struct {
    char name[96];
    Tensor tensor;
    bool optional; /* of a measurement: a checkpoint may lack it */
} NamedTensor;

int64_t dtype_size(DType dtype);
const char *dtype_name(DType dtype);

/* Contiguous, row-major views of `data`. */
Tensor tensor_of(void *data, DType dtype, int ndim, const int64_t *shape);
Tensor tensor_1d(void *data, DType dtype, int64_t a);
Tensor tensor_2d(void *data, DType dtype, int64_t a, int64_t b);
Tensor tensor_3d(void *data, DType dtype, int64_t a, int64_t b, int64_t c);
Tensor tensor_4d(void *data, DType dtype, int64_t a, int64_t b, int64_t c, int64_t d);
Tensor tensor_none(void);

static inline bool tensor_present(Tensor t) {
    return t.data != NULL;
}
int64_t tensor_numel(Tensor t);
int64_t tensor_bytes(Tensor t); /* of the elements, were they contiguous */
bool tensor_is_contiguous(Tensor t);

/* Views of the same memory. */
Tensor tensor_slice(Tensor t, int dim, int64_t start, int64_t count); /* shape[dim] = count */
Tensor tensor_index(Tensor t, int64_t i);                             /* t[i]: drops the first dimension */
Tensor tensor_transpose(Tensor t);                                    /* swaps the last two dimensions */
Tensor tensor_reshape(Tensor t, int ndim, const int64_t *shape);      /* contiguous tensors only */
Tensor tensor_as_2d(Tensor t, int64_t rows, int64_t columns);         /* contiguous tensors only */
Tensor tensor_as_3d(Tensor t, int64_t a, int64_t b, int64_t c);
Tensor tensor_as_4d(Tensor t, int64_t a, int64_t b, int64_t c, int64_t d);

/* Leading dimensions of size 1 in front, so that every elementwise loop is a loop over 4 dimensions. */
Tensor tensor_pad_4d(Tensor t);

/* 4-dimensional tensors of one shape, absent ones among them: dimensions that lie one behind the other in every tensor
 * become one, the last, and leading ones of size 1 take their place. A loop over rows then has long rows. A last stride
 * is 1, or 0 for an element that repeats. */
void tensors_merge(Tensor *tensors, int count);

/* "f32 (4,8)" into a buffer of the caller, for messages. Returns the buffer. */
char *tensor_describe(Tensor t, char *buffer, int64_t size);

/* bf16 is the upper half of an fp32. Rounding is to nearest, ties to even; NaN stays NaN (its payload may change). */
typedef uint16_t bf16;

static inline float bf16_to_f32(bf16 h) {
    uint32_t bits = (uint32_t)h << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline bf16 bf16_from_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40u; /* rounding could carry a NaN's low payload bits away into infinity */
    return (bf16)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}
