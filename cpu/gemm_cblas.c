/* The matrix product by CBLAS (OpenBLAS), where oneDNN is absent. CBLAS knows fp32 only; bf16 comes here as fp32 tiles.
 */
#if !HAVE_ONEDNN

#include <stdio.h>

#include <cblas.h>

#include "cpu/cpu.h"
#include "cpu/simd.h"

/* How CBLAS sees a matrix with one stride of 1: row-major as it is, or transposed. */
typedef struct {
    CBLAS_TRANSPOSE transpose;
    int lead;
} Layout;

static Layout layout_of(Tensor x) {
    bool plain = x.stride[1] == 1;
    int64_t lead = plain ? x.stride[0] : x.stride[1], least = plain ? x.shape[1] : x.shape[0];
    CHECK(lead <= INT32_MAX && least <= INT32_MAX, "stride %lld", (long long)lead);
    return (Layout){plain ? CblasNoTrans : CblasTrans, (int)(lead > least ? lead : least)};
}

static void multiply_matrix(Tensor out, Tensor a, Tensor b, float alpha, float beta) {
    Layout la = layout_of(a), lb = layout_of(b), lo = layout_of(out);
    int rows = (int)out.shape[0], columns = (int)out.shape[1], terms = (int)a.shape[1];
    cblas_sgemm(CblasRowMajor, la.transpose, lb.transpose, rows, columns, terms, alpha, a.data, la.lead, b.data,
                lb.lead, beta, out.data, lo.lead);
}

/* out (N,O) += bias, row by row. */
static void add_bias(Backend *be, Tensor out, const float *bias) {
#pragma omp parallel for schedule(static) num_threads(be->threads)
    for (int64_t n = 0; n < out.shape[0]; n++)
        accumulate_row(DTYPE_F32, at(DTYPE_F32, out.data, n * out.stride[0]), bias, out.shape[1]);
}

void cpu_library_multiply(Backend *be, const Product *p) {
    bool elsewhere = tensor_present(p->addend) && p->addend.data != p->out.data;
    if (elsewhere) be->ops.copy(be, p->out, p->addend);
    Tensor out = tensor_pad_4d(p->out), a = tensor_pad_4d(p->a), b = tensor_pad_4d(p->b);
    for (int64_t i = 0; i < out.shape[0]; i++)
        for (int64_t j = 0; j < out.shape[1]; j++)
            multiply_matrix(tensor_index(tensor_index(out, i), j), tensor_index(tensor_index(a, i), j),
                            tensor_index(tensor_index(b, i), j), p->alpha, p->beta);
    if (tensor_present(p->bias)) add_bias(be, p->out, p->bias.data);
}

void cpu_library_describe(const Backend *be, char *text, size_t size) {
    snprintf(text, size, "OpenBLAS%s", be->compute_dtype == DTYPE_BF16 ? " (bf16 through fp32)" : "");
}

Status cpu_library_open(Backend *be) {
    return status_ok();
}

void cpu_library_close(Backend *be) {}

bool cpu_library_multiplies(const Backend *be, DType dtype) {
    return dtype == DTYPE_F32;
}

#endif
