/* What every launch needs beside its kernel: errors become the backend's failure, and scratch memory; see cuda.h. */
#include "cuda/cuda.h"

Status cuda_status(cudaError_t error) {
    if (error == cudaSuccess) return status_ok();
    return status_error(STATUS_DEVICE, "%s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
}

bool cuda_check(Backend *be, const char *what, cudaError_t error) {
    if (error != cudaSuccess) backend_fail(be, what, cuda_status(error));
    return error == cudaSuccess;
}

void *cuda_scratch(Backend *be, int64_t bytes) {
    CHECK(bytes <= be->scratch_bytes, "%lld bytes of scratch memory, %lld are reserved", static_cast<long long>(bytes),
          static_cast<long long>(be->scratch_bytes));
    return be->scratch;
}
