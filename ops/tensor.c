/* Shapes, strides and views; see tensor.h. */
#include "ops/tensor.h"

#include <stdio.h>

#include "base/status.h"

int64_t dtype_size(DType dtype) {
    return dtype == DTYPE_BF16 ? 2 : 4;
}

const char *dtype_name(DType dtype) {
    return dtype == DTYPE_F32 ? "f32" : dtype == DTYPE_BF16 ? "bf16" : "i32";
}

Tensor tensor_of(void *data, DType dtype, int ndim, const int64_t *shape) {
    CHECK(ndim >= 1 && ndim <= TENSOR_MAX_DIMS, "ndim is %d", ndim);
    Tensor t = {.data = data, .dtype = dtype, .ndim = ndim};
    int64_t stride = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        CHECK(shape[i] >= 0, "dimension %d is %lld", i, (long long)shape[i]);
        t.shape[i] = shape[i];
        t.stride[i] = stride;
        stride *= shape[i];
    }
    return t;
}

Tensor tensor_1d(void *data, DType dtype, int64_t a) {
    return tensor_of(data, dtype, 1, (int64_t[]){a});
}
Tensor tensor_2d(void *data, DType dtype, int64_t a, int64_t b) {
    return tensor_of(data, dtype, 2, (int64_t[]){a, b});
}
Tensor tensor_3d(void *data, DType dtype, int64_t a, int64_t b, int64_t c) {
    return tensor_of(data, dtype, 3, (int64_t[]){a, b, c});
}
Tensor tensor_4d(void *data, DType dtype, int64_t a, int64_t b, int64_t c, int64_t d) {
    return tensor_of(data, dtype, 4, (int64_t[]){a, b, c, d});
}
Tensor tensor_none(void) {
    return (Tensor){.data = NULL, .dtype = DTYPE_F32, .ndim = 1};
}

int64_t tensor_numel(Tensor t) {
    int64_t n = 1;
    for (int i = 0; i < t.ndim; i++) n *= t.shape[i];
    return n;
}

int64_t tensor_bytes(Tensor t) {
    return tensor_numel(t) * dtype_size(t.dtype);
}

bool tensor_is_contiguous(Tensor t) {
    int64_t stride = 1;
    for (int i = t.ndim - 1; i >= 0; i--) {
        if (t.shape[i] != 1 && t.stride[i] != stride) return false;
        stride *= t.shape[i];
    }
    return true;
}

static void *advance(Tensor t, int64_t elements) {
    return t.data ? (char *)t.data + elements * dtype_size(t.dtype) : NULL;
}

Tensor tensor_slice(Tensor t, int dim, int64_t start, int64_t count) {
    CHECK(dim >= 0 && dim < t.ndim, "dimension %d of %d", dim, t.ndim);
    CHECK(start >= 0 && count >= 0 && start + count <= t.shape[dim], "[%lld, +%lld) of %lld", (long long)start,
          (long long)count, (long long)t.shape[dim]);
    t.data = advance(t, start * t.stride[dim]);
    t.shape[dim] = count;
    return t;
}

Tensor tensor_index(Tensor t, int64_t i) {
    CHECK(t.ndim >= 2 && i >= 0 && i < t.shape[0], "index %lld of %lld", (long long)i, (long long)t.shape[0]);
    t.data = advance(t, i * t.stride[0]);
    t.ndim--;
    for (int k = 0; k < t.ndim; k++) {
        t.shape[k] = t.shape[k + 1];
        t.stride[k] = t.stride[k + 1];
    }
    return t;
}

Tensor tensor_transpose(Tensor t) {
    CHECK(t.ndim >= 2, "ndim is %d", t.ndim);
    int a = t.ndim - 2, b = t.ndim - 1;
    int64_t shape = t.shape[a], stride = t.stride[a];
    t.shape[a] = t.shape[b], t.stride[a] = t.stride[b];
    t.shape[b] = shape, t.stride[b] = stride;
    return t;
}

Tensor tensor_reshape(Tensor t, int ndim, const int64_t *shape) {
    CHECK(tensor_is_contiguous(t), "reshape of a strided view");
    Tensor r = tensor_of(t.data, t.dtype, ndim, shape);
    CHECK(tensor_numel(r) == tensor_numel(t), "%lld elements from %lld", (long long)tensor_numel(r),
          (long long)tensor_numel(t));
    return r;
}

Tensor tensor_as_2d(Tensor t, int64_t rows, int64_t columns) {
    return tensor_reshape(t, 2, (int64_t[]){rows, columns});
}
Tensor tensor_as_3d(Tensor t, int64_t a, int64_t b, int64_t c) {
    return tensor_reshape(t, 3, (int64_t[]){a, b, c});
}
Tensor tensor_as_4d(Tensor t, int64_t a, int64_t b, int64_t c, int64_t d) {
    return tensor_reshape(t, 4, (int64_t[]){a, b, c, d});
}

Tensor tensor_pad_4d(Tensor t) {
    Tensor r = {.data = t.data, .dtype = t.dtype, .ndim = 4, .shape = {1, 1, 1, 1}};
    int lead = 4 - t.ndim;
    for (int i = 0; i < t.ndim; i++) {
        r.shape[lead + i] = t.shape[i];
        r.stride[lead + i] = t.stride[i];
    }
    for (int i = lead - 1; i >= 0; i--) r.stride[i] = r.shape[i + 1] * r.stride[i + 1];
    return r;
}

/* True if dimension d+1 continues dimension d in memory, in every tensor. */
static bool mergeable(const Tensor *tensors, int count, int d) {
    for (int i = 0; i < count; i++) {
        const Tensor *t = &tensors[i];
        bool continues = t->stride[d] == t->shape[d + 1] * t->stride[d + 1];
        if (tensor_present(*t) && t->shape[d] != 1 && !continues) return false;
    }
    return true;
}

/* Dimension d goes into d+1, and those before it move up by one. */
static void merge(Tensor *t, int d) {
    t->shape[d + 1] *= t->shape[d];
    for (int k = d; k > 0; k--) {
        t->shape[k] = t->shape[k - 1];
        t->stride[k] = t->stride[k - 1];
    }
    t->shape[0] = 1;
}

void tensors_merge(Tensor *tensors, int count) {
    for (int i = 0; i < count; i++) {
        Tensor *t = &tensors[i];
        if (t->shape[3] == 1 && t->stride[3] != 0) t->stride[3] = 1; /* a single element may have any */
    }
    for (int d = 2, merges = 0; d >= merges; d--) {
        if (!mergeable(tensors, count, d)) continue;
        for (int i = 0; i < count; i++) merge(&tensors[i], d);
        merges++;
        d++; /* another dimension has moved to d */
    }
}

char *tensor_describe(Tensor t, char *buffer, int64_t size) {
    int used = snprintf(buffer, (size_t)size, "%s (", dtype_name(t.dtype));
    for (int i = 0; i < t.ndim && used < size; i++)
        used += snprintf(buffer + used, (size_t)(size - used), "%s%lld", i ? "," : "", (long long)t.shape[i]);
    if (used < size) snprintf(buffer + used, (size_t)(size - used), ")");
    return buffer;
}
