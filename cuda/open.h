/* Opens backend "cuda", or says why it cannot. In plain C: cuda/none.c stands in for it in builds without nvcc. */
#pragma once

#include "ops/backend.h"

Status cuda_backend_open(Backend *be, BackendRequest request);

extern const bool cuda_is_built; /* false with cuda/none.c: then "auto" passes over cuda without a word */

/* Its scratch, for --dry-run too: needs no device, reads only be->compute_dtype; 0 with cuda/none.c. */
int64_t cuda_scratch_bytes(const Backend *be, const OpLimits *limits);
