/* cublasLt, opened at run time: the entry points that gemm.cu calls, as a table of function pointers.
 *
 * The library is not linked, because loading it takes 94 ms that a run without a device need not pay. Its header gives
 * the types, so a library of another major version is used only through functions whose signatures have not changed
 * between 12 and 13.
 */
#pragma once

#include <cublasLt.h>

extern "C" {
#include "base/status.h"
}

#define CUBLASLT_ENTRY_POINTS(X)                                                                                       \
    X(cublasLtCreate)                                                                                                  \
    X(cublasLtDestroy)                                                                                                 \
    X(cublasLtGetStatusString)                                                                                         \
    X(cublasLtGetVersion)                                                                                              \
    X(cublasLtMatmulDescCreate)                                                                                        \
    X(cublasLtMatmulDescDestroy)                                                                                       \
    X(cublasLtMatmulDescSetAttribute)                                                                                  \
    X(cublasLtMatrixLayoutCreate)                                                                                      \
    X(cublasLtMatrixLayoutDestroy)                                                                                     \
    X(cublasLtMatrixLayoutSetAttribute)                                                                                \
    X(cublasLtMatmulPreferenceCreate)                                                                                  \
    X(cublasLtMatmulPreferenceDestroy)                                                                                 \
    X(cublasLtMatmulPreferenceSetAttribute)                                                                            \
    X(cublasLtMatmulAlgoGetHeuristic)                                                                                  \
    X(cublasLtMatmul)

struct CublasLt {
    void *library; /* of dlopen */
#define X(name) decltype(&::name) name;
    CUBLASLT_ENTRY_POINTS(X)
#undef X
};

/* Fills the table, or says which library is missing. */
Status cuda_cublaslt_open(CublasLt *lt);
void cuda_cublaslt_close(CublasLt *lt);
