/* cuda/ptx.cuh on the CPU: the same functions, whose contract stands there. Lanes leave pointers to their registers;
 * the last to arrive computes for the whole warp. Rows of ldmatrix are read by the lane that gets the value, so that
 * the sanitizers and the race checker see the access as that lane's. */
#pragma once

#include <string.h>

#include <cuda_runtime.h>

#define CU_DEVICE static inline __attribute__((unused))

#define CU_SHARED(T, name, dimensions)                                                                                 \
    static char name##_variable;                                                                                       \
    typedef T name##_type dimensions;                                                                                  \
    name##_type &name =                                                                                                \
        *static_cast<name##_type *>(emulator::shared_static(&name##_variable, sizeof(name##_type), #name))
#define CU_SHARED_DYN(T, name) T *name = static_cast<T *>(emulator::shared_dynamic())

namespace emulator {

inline void require_whole_warp(const char *operation, const void *const in[32]) {
    for (int l = 0; l < 32; l++)
        if (!in[l]) fail("%s takes a whole warp; lane %d has exited or does not exist", operation, l);
}

/* ---- mma --------------------------------------------------------------------------------------------------------- */

struct MmaOperands {
    uint32_t a[4], b[2];
    float c[4];
};

inline void unpack_bf16(uint32_t pair, float *low, float *high) {
    *low = __uint_as_float(pair << 16);
    *high = __uint_as_float(pair & 0xffff0000u);
}

/* The fragment layout drawn in cuda/ptx.cuh; sums in fp32 with k ascending. */
inline void exchange_mma(unsigned, const void *const in[32], void *const out[32]) {
    float a[16][16], b[16][8], d[16][8];
    require_whole_warp("mma", in);
    for (int l = 0; l < 32; l++) {
        const MmaOperands &lane = *static_cast<const MmaOperands *>(in[l]);
        int g = l / 4, k = l % 4 * 2;
        unpack_bf16(lane.a[0], &a[g][k], &a[g][k + 1]);
        unpack_bf16(lane.a[1], &a[g + 8][k], &a[g + 8][k + 1]);
        unpack_bf16(lane.a[2], &a[g][k + 8], &a[g][k + 9]);
        unpack_bf16(lane.a[3], &a[g + 8][k + 8], &a[g + 8][k + 9]);
        unpack_bf16(lane.b[0], &b[k][g], &b[k + 1][g]);
        unpack_bf16(lane.b[1], &b[k + 8][g], &b[k + 9][g]);
    }
    for (int i = 0; i < 16; i++) {
        float row[8] = {};
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 8; n++) row[n] += a[i][k] * b[k][n];
        memcpy(d[i], row, sizeof row);
    }
    for (int l = 0; l < 32; l++) {
        const float *c = static_cast<const MmaOperands *>(in[l])->c;
        float *result = static_cast<float *>(out[l]);
        int g = l / 4, n = l % 4 * 2;
        for (int i = 0; i < 4; i++) result[i] = c[i] + d[g + i / 2 * 8][n + i % 2];
    }
}

/* ---- ldmatrix ---------------------------------------------------------------------------------------------------- */

typedef const unsigned char *Row;

struct MatrixRows {
    Row first[4], second[4]; /* for each matrix the row, or with .trans the two rows, that the lane reads from */
};

/* Row l/4 of each matrix. */
inline void exchange_rows(unsigned, const void *const in[32], void *const out[32]) {
    require_whole_warp("ldmatrix", in);
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++)
            static_cast<MatrixRows *>(out[l])->first[i] = *static_cast<const Row *>(in[i * 8 + l / 4]);
}

/* Rows 2(l%4) and the next of each matrix. */
inline void exchange_rows_trans(unsigned, const void *const in[32], void *const out[32]) {
    require_whole_warp("ldmatrix", in);
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            MatrixRows *rows = static_cast<MatrixRows *>(out[l]);
            rows->first[i] = *static_cast<const Row *>(in[i * 8 + l % 4 * 2]);
            rows->second[i] = *static_cast<const Row *>(in[i * 8 + l % 4 * 2 + 1]);
        }
}

inline MatrixRows collect_rows(const char *operation, const void *row, Exchange exchange, Site site) {
    if (reinterpret_cast<uintptr_t>(row) % 16)
        fail("%s at %s:%d: row address %p is not 16-byte aligned", operation, site.file, site.line, row);
    MatrixRows rows;
    warp_collective(operation, 0xffffffffu, &row, &rows, exchange, site);
    return rows;
}

/* ---- cp.async ---------------------------------------------------------------------------------------------------- */

inline void spoil_16_bytes(void *shared) {
    *static_cast<uint4 *>(shared) = make_uint4(~0u, ~0u, ~0u, ~0u);
}

inline void land_16_bytes(void *shared, const void *global) {
    *static_cast<uint4 *>(shared) = global ? *static_cast<const uint4 *>(global) : make_uint4(0, 0, 0, 0);
}

inline void start_async_copy(void *shared, const void *global, bool valid, Site site) {
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16)
        fail("cp.async at %s:%d: %p <- %p is not 16-byte aligned", site.file, site.line, shared, global);
    spoil_16_bytes(shared);
    async_copy({shared, valid ? global : nullptr, land_16_bytes, 0});
}

} // namespace emulator

CU_DEVICE void mma_m16n8k16_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4],
                                 emulator::Site site = {}) {
    emulator::MmaOperands operands = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
    float result[4];
    emulator::warp_collective("mma.m16n8k16", 0xffffffffu, &operands, result, emulator::exchange_mma, site);
    memcpy(d, result, sizeof result);
}

CU_DEVICE void ldmatrix_x4(uint32_t r[4], const void *row, emulator::Site site = {}) {
    emulator::MatrixRows rows = emulator::collect_rows("ldmatrix.x4", row, emulator::exchange_rows, site);
    int column = emulator::lane() % 4 * 2;
    for (int i = 0; i < 4; i++) r[i] = *reinterpret_cast<const uint32_t *>(rows.first[i] + 2 * column);
}

CU_DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void *row, emulator::Site site = {}) {
    emulator::MatrixRows rows = emulator::collect_rows("ldmatrix.x4.trans", row, emulator::exchange_rows_trans, site);
    int column = emulator::lane() / 4;
    for (int i = 0; i < 4; i++) {
        uint32_t low = *reinterpret_cast<const uint16_t *>(rows.first[i] + 2 * column);
        uint32_t high = *reinterpret_cast<const uint16_t *>(rows.second[i] + 2 * column);
        r[i] = low | high << 16;
    }
}

CU_DEVICE void cp_async16(void *shared, const void *global, emulator::Site site = {}) {
    emulator::start_async_copy(shared, global, true, site);
}

CU_DEVICE void cp_async16_or_zero(void *shared, const void *global, bool valid, emulator::Site site = {}) {
    emulator::start_async_copy(shared, global, valid, site);
}

CU_DEVICE void cp_async_commit() {
    emulator::async_commit();
}

template <int N> CU_DEVICE void cp_async_wait() {
    emulator::async_wait(N);
}

CU_DEVICE float exp2_approximate(float x) {
    return exp2f(x);
}

CU_DEVICE float max_nan(float a, float b) {
    return a > b || isnan(a) ? a : b;
}

CU_DEVICE int anew(int x) {
    return x;
}

CU_DEVICE int thread_anew() {
    return static_cast<int>(threadIdx.x);
}

CU_DEVICE uint3 block_anew() {
    return blockIdx;
}
