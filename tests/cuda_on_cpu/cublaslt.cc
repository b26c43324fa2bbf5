/* cublasLt without a device: stand-ins for the four functions that need one. Descriptors, layouts and preferences are
 * the real library's own, which work without a driver, so NVIDIA's code checks attribute names, sizes and values.
 *
 * The stand-ins hold a request against what NVIDIA documents (cuBLAS 13, "cublasLtMatmul" and the comments in
 * cublasLt.h). A request outside of that stops the program with a message: the real library might refuse it, or worse.
 *
 *      compute, scale      A, B       C, D       bias
 *      COMPUTE_32F, 32F    16BF       16BF       16BF
 *      COMPUTE_32F, 32F    16BF       32F        32F
 *      COMPUTE_32F, 32F    32F        32F        32F
 *
 *      all             column-major, ld >= rows, one batch count; pointers as aligned as the preference promised
 *      C and D         one shape and type; in place they have one layout
 *      epilogues       BIAS, GELU_AUX, GELU_AUX_BIAS, DGELU, BGRADB. No batch; 16 bytes for every pointer and ld
 *      aux             D's type, ld >= D's rows and a multiple of 8
 *
 * Beside that the heuristic says no to bf16 matrices with an odd leading dimension. The real one may do them; here they
 * show that a no is taken for an answer.
 *
 * Sums are fp32 in another order than a plain loop's. What an algorithm may use of the workspace is overwritten.
 */
#include <cublasLt.h>

#include <math.h>
#include <string.h>

#include <map>
#include <vector>

extern "C" {
#include "ops/tensor.h"
}
#include "tests/cuda_on_cpu/cublaslt.h"
#include "tests/cuda_on_cpu/internal.h"

namespace {

using emulator::fail;

enum : size_t { WORKSPACE_BYTES = 4096 };

std::map<uint32_t, int64_t> products; /* by epilogue */
int64_t questions;

/* ---- the request, read back from the descriptors ----------------------------------------------------------------- */

struct Matrix {
    cudaDataType_t type;
    int64_t rows, columns, ld, batch_stride;
    int32_t batch;
    char *data;
};

struct Request {
    Matrix a, b, c, d;
    bool transpose_a, transpose_b;
    uint32_t epilogue;
    cudaDataType_t bias_type;
    char *bias, *aux;
    int64_t aux_ld;
    float alpha, beta;
    char *workspace;
    int64_t M, N, K;
};

/* What the heuristic knew: cublasLtMatmulAlgo_t is 8 opaque words. */
struct Algorithm {
    uint64_t alignment[4]; /* of A, B, C, D, as promised */
    uint64_t unused[4];
};
static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t), "fits");

template <class T> T layout_attribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute) {
    T value;
    size_t written;
    if (cublasLtMatrixLayoutGetAttribute(layout, attribute, &value, sizeof value, &written))
        fail("cublasLt: layout attribute %d cannot be read", attribute);
    return value;
}

template <class T> T operation_attribute(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute) {
    T value;
    size_t written;
    if (cublasLtMatmulDescGetAttribute(operation, attribute, &value, sizeof value, &written))
        fail("cublasLt: operation attribute %d cannot be read", attribute);
    return value;
}

template <class T>
T preference_attribute(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute) {
    T value;
    size_t written;
    if (cublasLtMatmulPreferenceGetAttribute(preference, attribute, &value, sizeof value, &written))
        fail("cublasLt: preference %d cannot be read", attribute);
    return value;
}

Matrix matrix_of(const char *name, cublasLtMatrixLayout_t layout, const void *data) {
    Matrix m = {};
    m.type = static_cast<cudaDataType_t>(layout_attribute<uint32_t>(layout, CUBLASLT_MATRIX_LAYOUT_TYPE));
    m.rows = layout_attribute<int64_t>(layout, CUBLASLT_MATRIX_LAYOUT_ROWS);
    m.columns = layout_attribute<int64_t>(layout, CUBLASLT_MATRIX_LAYOUT_COLS);
    m.ld = layout_attribute<int64_t>(layout, CUBLASLT_MATRIX_LAYOUT_LD);
    m.batch = layout_attribute<int32_t>(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT);
    m.batch_stride = layout_attribute<int64_t>(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET);
    m.data = static_cast<char *>(const_cast<void *>(data));
    if (layout_attribute<int32_t>(layout, CUBLASLT_MATRIX_LAYOUT_ORDER) != CUBLASLT_ORDER_COL)
        fail("cublasLt: %s is not column-major", name);
    if (m.rows < 1 || m.columns < 1 || m.ld < m.rows)
        fail("cublasLt: %s is %ld x %ld with a leading dimension of %ld", name, m.rows, m.columns, m.ld);
    return m;
}

void read_operation(Request *r, cublasLtMatmulDesc_t operation) {
    if (operation_attribute<int32_t>(operation, CUBLASLT_MATMUL_DESC_COMPUTE_TYPE) != CUBLAS_COMPUTE_32F ||
        operation_attribute<int32_t>(operation, CUBLASLT_MATMUL_DESC_SCALE_TYPE) != CUDA_R_32F)
        fail("cublasLt: the product is not computed in fp32");
    if (operation_attribute<int32_t>(operation, CUBLASLT_MATMUL_DESC_POINTER_MODE) != CUBLASLT_POINTER_MODE_HOST)
        fail("cublasLt: alpha and beta are not host memory");
    r->transpose_a = operation_attribute<int32_t>(operation, CUBLASLT_MATMUL_DESC_TRANSA) != CUBLAS_OP_N;
    r->transpose_b = operation_attribute<int32_t>(operation, CUBLASLT_MATMUL_DESC_TRANSB) != CUBLAS_OP_N;
    r->epilogue = operation_attribute<uint32_t>(operation, CUBLASLT_MATMUL_DESC_EPILOGUE);
    r->bias = operation_attribute<char *>(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
    r->aux = operation_attribute<char *>(operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER);
    r->aux_ld = operation_attribute<int64_t>(operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD);
    int32_t bias_type = operation_attribute<int32_t>(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
    r->bias_type = bias_type == -1 ? r->d.type : static_cast<cudaDataType_t>(bias_type);
    int32_t aux_type = operation_attribute<int32_t>(operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE);
    if (aux_type != -1 && aux_type != r->d.type) fail("cublasLt: aux has another type than D");
}

/* ---- what is documented ------------------------------------------------------------------------------------------ */

struct TypeRow {
    cudaDataType_t ab, cd, bias;
};
const TypeRow type_rows[] = {{CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF},
                             {CUDA_R_16BF, CUDA_R_32F, CUDA_R_32F},
                             {CUDA_R_32F, CUDA_R_32F, CUDA_R_32F}};

bool has_bias(const Request &r) {
    return r.epilogue == CUBLASLT_EPILOGUE_BIAS || r.epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS ||
           r.epilogue == CUBLASLT_EPILOGUE_BGRADB;
}

bool has_aux(const Request &r) {
    return r.epilogue == CUBLASLT_EPILOGUE_GELU_AUX || r.epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS ||
           r.epilogue == CUBLASLT_EPILOGUE_DGELU;
}

void check_types(const Request &r) {
    for (const TypeRow &row : type_rows)
        if (r.a.type == row.ab && r.b.type == row.ab && r.c.type == row.cd && r.d.type == row.cd) {
            if (has_bias(r) && r.bias_type != row.bias)
                fail("cublasLt: a bias of type %d beside D of type %d", r.bias_type, r.d.type);
            return;
        }
    fail("cublasLt: no product of types %d, %d into %d, %d", r.a.type, r.b.type, r.c.type, r.d.type);
}

void check_shapes(Request *r) {
    r->M = r->transpose_a ? r->a.columns : r->a.rows, r->K = r->transpose_a ? r->a.rows : r->a.columns;
    r->N = r->transpose_b ? r->b.rows : r->b.columns;
    int64_t terms = r->transpose_b ? r->b.columns : r->b.rows;
    if (terms != r->K || r->d.rows != r->M || r->d.columns != r->N || r->c.rows != r->M || r->c.columns != r->N)
        fail("cublasLt: %ld x %ld times %ld x %ld into %ld x %ld", r->M, r->K, terms, r->N, r->d.rows, r->d.columns);
    if (r->a.batch != r->d.batch || r->b.batch != r->d.batch || r->c.batch != r->d.batch)
        fail("cublasLt: batches of %d, %d, %d, %d matrices", r->a.batch, r->b.batch, r->c.batch, r->d.batch);
}

int64_t size_of(cudaDataType_t type) {
    return type == CUDA_R_16BF ? 2 : 4;
}

bool is_aligned(const void *data, size_t alignment) {
    return reinterpret_cast<uintptr_t>(data) % alignment == 0;
}

void check_epilogue(const Request &r) {
    if (r.epilogue == CUBLASLT_EPILOGUE_DEFAULT) return;
    if (!has_bias(r) && !has_aux(r)) fail("cublasLt: epilogue %u is not among those used", r.epilogue);
    if (r.d.batch != 1) fail("cublasLt: an epilogue for a batch");
    for (const Matrix *m : {&r.a, &r.b, &r.c, &r.d})
        if (m->ld * size_of(m->type) % 16) fail("cublasLt: an epilogue with a leading dimension of %ld", m->ld);
    if (has_bias(r) && (!r.bias || !is_aligned(r.bias, 16))) fail("cublasLt: bias at %p", static_cast<void *>(r.bias));
    if (has_aux(r) && (!r.aux || !is_aligned(r.aux, 16) || r.aux_ld % 8 || r.aux_ld < r.M))
        fail("cublasLt: aux at %p with a leading dimension of %ld", static_cast<void *>(r.aux), r.aux_ld);
}

Request read_request(cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a, const void *A, cublasLtMatrixLayout_t b,
                     const void *B, cublasLtMatrixLayout_t c, const void *C, cublasLtMatrixLayout_t d, void *D) {
    Request r = {};
    r.a = matrix_of("A", a, A), r.b = matrix_of("B", b, B), r.c = matrix_of("C", c, C), r.d = matrix_of("D", d, D);
    read_operation(&r, operation);
    check_types(r);
    check_shapes(&r);
    check_epilogue(r);
    return r;
}

void check_pointers(const Request &r, const Algorithm &algorithm) {
    const Matrix *matrices[] = {&r.a, &r.b, &r.c, &r.d};
    for (int i = 0; i < 4; i++) {
        size_t alignment = r.epilogue == CUBLASLT_EPILOGUE_DEFAULT ? algorithm.alignment[i] : 16;
        if (!matrices[i]->data || !is_aligned(matrices[i]->data, alignment))
            fail("cublasLt: matrix %c at %p, %zu bytes of alignment were promised", "ABCD"[i],
                 static_cast<void *>(matrices[i]->data), alignment);
    }
    if (r.c.data == r.d.data && (r.c.ld != r.d.ld || r.c.batch_stride != r.d.batch_stride))
        fail("cublasLt: C is D, but their layouts differ");
}

/* ---- computing --------------------------------------------------------------------------------------------------- */

float load(const char *data, cudaDataType_t type, int64_t i) {
    if (type == CUDA_R_32F) return reinterpret_cast<const float *>(data)[i];
    uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t *>(data)[i]) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void store(char *data, cudaDataType_t type, int64_t i, float value) {
    if (type == CUDA_R_32F)
        reinterpret_cast<float *>(data)[i] = value;
    else
        reinterpret_cast<uint16_t *>(data)[i] = bf16_from_f32(value);
}

/* op(m) or its transpose as fp32, with the terms of a sum side by side. */
std::vector<float> lines_of(const Matrix &m, int64_t batch, bool terms_are_rows) {
    int64_t lines = terms_are_rows ? m.columns : m.rows, terms = terms_are_rows ? m.rows : m.columns;
    std::vector<float> values(static_cast<size_t>(lines * terms));
    for (int64_t line = 0; line < lines; line++)
        for (int64_t term = 0; term < terms; term++)
            values[static_cast<size_t>(line * terms + term)] = load(
                m.data, m.type, batch * m.batch_stride + (terms_are_rows ? line * m.ld + term : term * m.ld + line));
    return values;
}

float dot(const float *x, const float *y, int64_t count) {
    enum { LANES = 8 };
    float sum[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int lane = 0; lane < LANES; lane++) sum[lane] += x[i + lane] * y[i + lane];
    for (; i < count; i++) sum[i % LANES] += x[i] * y[i];
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

float sum_of(const float *x, int64_t count) {
    float sum = 0;
    for (int64_t i = 0; i < count; i++) sum += x[i];
    return sum;
}

/* gelu in its tanh form, as the library has it, and its derivative. */
float gelu(float x) {
    return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

float gelu_slope(float x) {
    float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.7978845608f * (1 + 3 * 0.044715f * x * x);
}

float apply_epilogue(const Request &r, int64_t row, int64_t column, float value) {
    int64_t aux = column * r.aux_ld + row;
    if (has_bias(r) && r.epilogue != CUBLASLT_EPILOGUE_BGRADB) value += load(r.bias, r.bias_type, row);
    if (r.epilogue == CUBLASLT_EPILOGUE_DGELU) return value * gelu_slope(load(r.aux, r.d.type, aux));
    if (!has_aux(r)) return value;
    store(r.aux, r.d.type, aux, value);
    return gelu(value);
}

void multiply(const Request &r, int64_t batch) {
    std::vector<float> a = lines_of(r.a, batch, r.transpose_a), b = lines_of(r.b, batch, !r.transpose_b);
    for (int64_t column = 0; column < r.N; column++)
        for (int64_t row = 0; row < r.M; row++) {
            float value = r.alpha * dot(&a[static_cast<size_t>(row * r.K)], &b[static_cast<size_t>(column * r.K)], r.K);
            if (r.beta != 0)
                value += r.beta * load(r.c.data, r.c.type, batch * r.c.batch_stride + column * r.c.ld + row);
            store(r.d.data, r.d.type, batch * r.d.batch_stride + column * r.d.ld + row,
                  apply_epilogue(r, row, column, value));
        }
    if (r.epilogue != CUBLASLT_EPILOGUE_BGRADB) return;
    for (int64_t column = 0; column < r.N; column++)
        store(r.bias, r.bias_type, column, sum_of(&b[static_cast<size_t>(column * r.K)], r.K));
}

void run(void *argument) {
    Request *r = static_cast<Request *>(argument);
    if (!emulator::options.launches_only) {
        emulator::fill_with_nan(r->workspace, WORKSPACE_BYTES);
        for (int64_t batch = 0; batch < r->d.batch; batch++) multiply(*r, batch);
    }
    delete r;
}

bool is_declined(const Request &r) {
    return r.a.type == CUDA_R_16BF && (r.a.ld % 2 || r.b.ld % 2);
}

} // namespace

extern "C" {

int64_t cublaslt_products(int epilogue) {
    return products[static_cast<uint32_t>(epilogue)];
}

int64_t cublaslt_questions(void) {
    return questions;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = reinterpret_cast<cublasLtHandle_t>(new char);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete reinterpret_cast<char *>(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int *found) {
    Request r = read_request(operation, a, nullptr, b, nullptr, c, nullptr, d, nullptr);
    *found = 0;
    questions++;
    if (requested < 1) return CUBLAS_STATUS_INVALID_VALUE;
    if (is_declined(r)) return CUBLAS_STATUS_NOT_SUPPORTED;
    Algorithm algorithm = {};
    const cublasLtMatmulPreferenceAttributes_t promises[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (int i = 0; i < 4; i++) algorithm.alignment[i] = preference_attribute<uint32_t>(preference, promises[i]);
    results[0] = {};
    memcpy(&results[0].algo, &algorithm, sizeof algorithm);
    results[0].state = CUBLAS_STATUS_SUCCESS;
    results[0].workspaceSize = WORKSPACE_BYTES;
    if (preference_attribute<uint64_t>(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) < WORKSPACE_BYTES)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b, const void *beta,
                              const void *C, cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
    Algorithm algorithm;
    memcpy(&algorithm, algo, sizeof algorithm);
    Request *r = new Request(read_request(operation, a, A, b, B, c, C, d, D));
    check_pointers(*r, algorithm);
    if (!workspace || workspace_bytes < WORKSPACE_BYTES) fail("cublasLt: the algorithm needs a workspace");
    r->alpha = *static_cast<const float *>(alpha), r->beta = *static_cast<const float *>(beta);
    r->workspace = static_cast<char *>(workspace);
    products[r->epilogue]++;
    emulator::submit(stream, run, r);
    return CUBLAS_STATUS_SUCCESS;
}

} // extern "C"
