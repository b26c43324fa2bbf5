/* Stands in for the CUDA backend in builds without nvcc. */
#include "cuda/open.h"

const bool cuda_is_built = false;

Status cuda_backend_open(Backend *be, BackendRequest request) {
    (void)be, (void)request;
    return status_error(STATUS_DEVICE,
                        "this build has no CUDA backend (nvcc was not found when it was built); use device=cpu");
}

int64_t cuda_scratch_bytes(const Backend *be, const OpLimits *limits) {
    (void)be, (void)limits;
    return 0;
}
