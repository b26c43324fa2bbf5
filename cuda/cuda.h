/* The inside of backend "cuda": its state, launching kernels, scratch memory, and the families of ops.
 *
 *      backend.cu               device, memory, copies; fills the table from CUDA_FAMILIES
 *      launch.cu                errors, scratch memory
 *      gemm.cu gemm_plain.cu    products: cublasLt, and a kernel for what it does not do
 *      attention_*.cu           forward and backward: on tensor cores, and plainly in fp32
 *      the rest                 a family of ops each
 *
 * Invariants
 *   * Every op is work on one stream, in order. So an op may use the whole scratch memory from its start: the op before
 *     it is done with it, and nothing in it outlives the op.
 *   * No op waits for the device and none allocates. Only the memory slots (to_host, from_host, sync) touch the host.
 *   * An op is deterministic: no float atomics, and its order of summation does not depend on the device's size.
 *
 * The same sources are compiled by nvcc for the device, and by g++ with -DCUDA_ON_CPU for the tests.
 */
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

extern "C" {
#include "ops/backend.h"
}

struct CudaGemm;    /* cublasLt and its plans: gemm.cu */
struct CudaStaging; /* pinned memory between host and device: backend.cu */

struct CudaState {
    int device;
    int multiprocessors;
    int compute_capability; /* 90 for sm_90 */
    size_t shared_limit;    /* bytes of shared memory that a block may have, when it asks (opt-in) */
    cudaStream_t stream;
    cudaEvent_t marks[MARK_COUNT];
    CudaGemm *gemm;
    CudaStaging *staging;
};

static inline CudaState *cuda_state(const Backend *be) {
    return static_cast<CudaState *>(be->state);
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

Status cuda_status(cudaError_t error); /* ok if there was none */

/* An error becomes the backend's sticky failure, with `what` (a kernel, a call) in its text. True if there was none. */
bool cuda_check(Backend *be, const char *what, cudaError_t error);

/* ---- scratch ----------------------------------------------------------------------------------------------------- */

/* The backend's scratch memory, 256-byte aligned: `bytes` must be within what cuda_*_scratch_bytes reserved. */
void *cuda_scratch(Backend *be, int64_t bytes);

/* ---- launching --------------------------------------------------------------------------------------------------- */

enum { CUDA_SHARED_WITHOUT_ASKING = 48 * 1024 }; /* dynamic shared memory that any kernel may have */

/* kernel<<<grid, block, shared>>>(args...) on the backend's stream. A failure is sticky and names the kernel; an empty
 * grid does nothing. */
template <class... P, class... A>
void cuda_launch(Backend *be, const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
    if (be->failure.code || grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    if (shared > CUDA_SHARED_WITHOUT_ASKING &&
        !cuda_check(be, name,
                    cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared))))
        return;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = cuda_state(be)->stream;
    cuda_check(be, name, cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...));
}

/* ---- families --------------------------------------------------------------------------------------------------- */

/* Families of ops, a file each. cuda_fill_<family> is at its end; cuda_<family>_scratch_bytes is what it needs at most
 * for ops within `limits`. That reads nothing of `be` but compute_dtype, since the plan of a run is also made where
 * there is no device; so no size may depend on the device. */
#define CUDA_FAMILIES(X)                                                                                               \
    X(elementwise)                                                                                                     \
    X(gemm)                                                                                                            \
    X(symmetric)                                                                                                       \
    X(norm)                                                                                                            \
    X(embedding)                                                                                                       \
    X(attention_forward)                                                                                               \
    X(attention_backward)                                                                                              \
    X(census)                                                                                                          \
    X(loss)                                                                                                            \
    X(optimizer)

#define X(family)                                                                                                      \
    void cuda_fill_##family(BackendOps *ops);                                                                          \
    int64_t cuda_##family##_scratch_bytes(const Backend *be, const OpLimits *limits);
CUDA_FAMILIES(X)
#undef X

/* cublasLt, loaded once a device is there, and its plans. */
Status cuda_gemm_open(Backend *be);
void cuda_gemm_close(Backend *be);
void cuda_gemm_describe(const Backend *be, char *buffer, size_t size); /* "cublasLt 13.0" */
