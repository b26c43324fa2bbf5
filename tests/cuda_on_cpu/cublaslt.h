/* What cublasLt's stand-in was asked, for test programs. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
int64_t cublaslt_products(int epilogue); /* so far, with this cublasLtEpilogue_t */
int64_t cublaslt_questions(void);        /* to the heuristic, so far */
#ifdef __cplusplus
}
#endif
