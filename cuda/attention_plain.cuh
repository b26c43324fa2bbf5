/* Products q kᵀ in fp32, for tensors of f32 and heads of any size: what attention falls back to, and what the census of
 * logits is made of. Both sum in the same order, so that they agree on every logit's bits.
 *
 * A block of PLAIN_THREADS threads has PLAIN_QUERIES queries of one head and meets PLAIN_KEYS keys at a time. Eight
 * lanes share a row and take every eighth key. The head's columns pass in chunks of 32, so that there may be any number
 * of them.
 */
#pragma once

#include "cuda/attention.cuh"

enum { PLAIN_THREADS = 128, PLAIN_LANES = 8, PLAIN_QUERIES = 16, PLAIN_KEYS = 32, CHUNK = 32, CHUNK_STRIDE = 36 };
enum { PLAIN_KEYS_PER_LANE = PLAIN_KEYS / PLAIN_LANES };

/* The rows from `first` on of a head (T,size). */
template <class T> struct PlainRows {
    const T *head;
    int64_t row_stride;
    int first;
};

/* Columns [column, column + CHUNK) of them; 0 beyond the head's end. */
template <class T, int ROWS>
CU_DEVICE void load_chunk(float (&chunk)[ROWS][CHUNK_STRIDE], const PlainRows<T> &rows, int context, int column,
                          int size) {
    for (int i = (int)threadIdx.x; i < ROWS * CHUNK; i += PLAIN_THREADS) {
        int row = i / CHUNK, c = i % CHUNK;
        bool exists = rows.first + row < context && column + c < size;
        chunk[row][c] = exists ? (float)rows.head[(rows.first + row) * rows.row_stride + column + c] : 0;
    }
}

CU_DEVICE float dot(float4 a, float4 b) {
    return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

CU_DEVICE float4 *four_of(float *row, int lane) {
    return reinterpret_cast<float4 *>(row) + lane;
}

/* s[c] = q·k for the lane's row and the keys lane + 8 c of a tile. */
template <class T>
CU_DEVICE void multiply_keys_plainly(float (&s)[PLAIN_KEYS_PER_LANE], const PlainRows<T> &q, const PlainRows<T> &k,
                                     const AttentionShape &shape) {
    CU_SHARED(float, queries, [PLAIN_QUERIES][CHUNK_STRIDE]);
    CU_SHARED(float, keys, [PLAIN_KEYS][CHUNK_STRIDE]);
    int row = (int)threadIdx.x / PLAIN_LANES, lane = threadIdx.x % PLAIN_LANES;
    for (int c = 0; c < PLAIN_KEYS_PER_LANE; c++) s[c] = 0;
    for (int column = 0; column < shape.D; column += CHUNK) {
        __syncthreads();
        load_chunk(queries, q, shape.T, column, shape.D);
        load_chunk(keys, k, shape.T, column, shape.D);
        __syncthreads();
#pragma unroll
        for (int d = 0; d < CHUNK / 4; d++)
#pragma unroll
            for (int c = 0; c < PLAIN_KEYS_PER_LANE; c++)
                s[c] += dot(*four_of(queries[row], d), *four_of(keys[lane + PLAIN_LANES * c], d));
    }
}
