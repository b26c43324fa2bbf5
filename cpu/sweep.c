/* Finding chunks; see sweep.h. */
#include "cpu/sweep.h"

#include "base/integer.h"
#include "base/status.h"

Sweep sweep_over(int count, const Tensor *tensors) {
    CHECK(count >= 1 && count <= SWEEP_TENSORS, "%d tensors", count);
    Sweep s = {.count = count};
    for (int i = 0; i < count; i++) s.tensor[i] = tensor_pad_4d(tensors[i]);
    tensors_merge(s.tensor, count);
    const int64_t *shape = s.tensor[0].shape;
    s.chunks_per_row = (shape[3] + SWEEP_CHUNK - 1) / SWEEP_CHUNK;
    s.chunks = shape[0] * shape[1] * shape[2] * s.chunks_per_row;
    return s;
}

Chunk sweep_chunk(const Sweep *s, int64_t i) {
    const int64_t *shape = s->tensor[0].shape;
    int64_t row = i / s->chunks_per_row, first = i % s->chunks_per_row * SWEEP_CHUNK;
    int64_t c = row % shape[2], b = row / shape[2] % shape[1], a = row / shape[2] / shape[1];
    Chunk chunk = {.n = smaller(SWEEP_CHUNK, shape[3] - first)};
    for (int k = 0; k < s->count; k++) {
        const Tensor *t = &s->tensor[k];
        int64_t offset = a * t->stride[0] + b * t->stride[1] + c * t->stride[2] + first;
        chunk.row[k] = t->data ? (char *)t->data + offset * dtype_size(t->dtype) : NULL;
    }
    return chunk;
}
