/* What gemm.cu falls back to where cublasLt does not multiply. */
#pragma once

#include "cuda/cuda.h"

/* As op_matmul; the addend may be absent, and then beta is not read. */
void cuda_multiply_plainly(Backend *be, Tensor out, Tensor a, Tensor b, Tensor addend, MatmulScale scale);
