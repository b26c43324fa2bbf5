/* The PTX instructions that the kernels use, as functions: tensor-core products of bf16, the loads that feed them,
 * asynchronous copies into shared memory, and some that C++ has no name for. After the PTX ISA, version 9.2.
 *
 * nvcc compiles the instructions. With -DCUDA_ON_CPU the same functions come from the harness, which exchanges the
 * values between the emulated lanes; kernels are written once, on the names in this file.
 *
 * mma and ldmatrix are an affair of a whole warp: all 32 lanes call them together, converged.
 *
 *
 * mma.m16n8k16 (section 9.7.14.5.8): D (16x8) = A (16x16) B (16x8) + C (16x8). A, B bf16; C, D fp32. Of lane l, with
 * g = l / 4 and t = l % 4, each register of a and b holds two neighbours, the one with the smaller k in the low half:
 *
 *                k = 2t, 2t+1   2t+8, 2t+9                  n = g                         n = 2t   2t+1
 *      row g         a[0]          a[2]        k = 2t, +1    b[0]               row g      d[0]    d[1]
 *      row g+8       a[1]          a[3]        k = 2t+8, +9  b[1]               row g+8    d[2]    d[3]
 *
 * D of one product has the layout of C of the next. Two D tiles side by side (n 0..7 and 8..15), each pair rounded to
 * bf16, are the A of a next product: a[0] from d[0..1], a[1] from d[2..3] of the left tile, a[2], a[3] of the right.
 *
 *
 * ldmatrix.x4: four 8x8 matrices of bf16. Lane 8i + r passes the address of row r of matrix i: 16 bytes, 16-byte
 * aligned, in shared memory. Lane l gets in r[i] the elements 2t, 2t+1 of row g of matrix i; with .trans, of the
 * transposed matrix: rows 2t, 2t+1 of column g.
 *
 *      A of mma from rows of A in memory: matrices 0..3 are (rows 0-7, k 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
 *      B of mma for n 0..15 from memory that holds B transposed, rows n: (n 0-7, k 0-7), (n 0-7, k 8-15), (n 8-15,
 *      k 0-7), (n 8-15, k 8-15) give b[0], b[1] of the left tile in r[0], r[1] and of the right tile in r[2], r[3].
 *      From memory that holds rows k, ldmatrix_x4_trans does it with (k 0-7, n 0-7), (k 8-15, n 0-7), and so on.
 *
 *
 * cp.async: copies 16 bytes from global to shared memory past the registers, both 16-byte aligned. Copies belong to the
 * group that the next cp_async_commit of the same thread closes. cp_async_wait<N> returns when all but the thread's
 * newest N groups have landed. That concerns the thread's own copies: __syncthreads must follow before it reads what
 * other threads have copied.
 */
#pragma once

#include <stdint.h>

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#ifdef CUDA_ON_CPU
#include <ptx_on_cpu.h>
#else

#define CU_DEVICE                      static __device__ __forceinline__

/* Shared memory of a block: CU_SHARED(float, tile, [8][33]); and the part whose size the launch gives. */
#define CU_SHARED(T, name, dimensions) __shared__ T name dimensions
#define CU_SHARED_DYN(T, name)                                                                                         \
    extern __shared__ __align__(16) unsigned char cu_dynamic_shared_memory[];                                          \
    T *name = reinterpret_cast<T *>(cu_dynamic_shared_memory)

CU_DEVICE void mma_m16n8k16_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                   "f"(c[3]));
}

CU_DEVICE uint32_t shared_address(const void *pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

CU_DEVICE void ldmatrix_x4(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

CU_DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

CU_DEVICE void cp_async16(void *shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

/* Zeros where not valid; then nothing is read from `global`, which need not be mapped but must be aligned. */
CU_DEVICE void cp_async16_or_zero(void *shared, const void *global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

CU_DEVICE void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> CU_DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* 2^x to 2 units in the last place; 0 where that is below the normal numbers. */
CU_DEVICE float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* The larger; NaN if either is. */
CU_DEVICE float max_nan(float a, float b) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
}

/* x, though in a loop the compiler cannot know that it is the same each time: what is computed from it is computed
 * again, and not kept in registers that the sums need. */
CU_DEVICE int anew(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

/* threadIdx.x and blockIdx, read anew: what a kernel's end computes from these does not wait in registers from where
 * its beginning has computed the same. */
CU_DEVICE int thread_anew() {
    int x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

CU_DEVICE uint3 block_anew() {
    uint3 block;
    asm volatile("mov.u32 %0, %%ctaid.x; mov.u32 %1, %%ctaid.y; mov.u32 %2, %%ctaid.z;"
                 : "=r"(block.x), "=r"(block.y), "=r"(block.z));
    return block;
}

#endif
