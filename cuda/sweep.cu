/* Merging dimensions; see sweep.cuh. */
#include "cuda/sweep.cuh"

/* True if dimension d+1 continues dimension d in memory, in every tensor. */
static bool mergeable(const Merged &m, int d) {
    for (int i = 0; i < m.count; i++) {
        const Tensor &t = m.tensor[i];
        bool continues = t.stride[d] == t.shape[d + 1] * t.stride[d + 1];
        if (tensor_present(t) && t.shape[d] != 1 && !continues) return false;
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

Merged cuda_merge(int count, const Tensor *tensors) {
    CHECK(count >= 1 && count <= SWEEP_TENSORS, "%d tensors", count);
    Merged m = {};
    m.count = count;
    for (int i = 0; i < count; i++) {
        Tensor *t = &m.tensor[i];
        *t = tensor_pad_4d(tensors[i]);
        if (t->shape[3] == 1 && t->stride[3] != 0) t->stride[3] = 1; /* a single element may have any */
    }
    for (int d = 2, merges = 0; d >= merges; d--) {
        if (!mergeable(m, d)) continue;
        for (int i = 0; i < count; i++) merge(&m.tensor[i], d);
        merges++;
        d++; /* another dimension has moved to d */
    }
    return m;
}
