/* Matrix products by cublasLt, and the linear layers made of them.
 *
 * cublasLt is column-major. A row-major matrix read column by column is its transpose, so the library is asked for
 * outᵀ = bᵀ aᵀ, and nothing is moved:
 *
 *      row-major                           the same memory, column-major
 *
 *      out (n,m) = a (n,k) b (k,m)         D (m,n) = A (m,k) B (k,n)         A is b, B is a, D is out, C the addend
 *      x (r,c) with last stride 1          (c,r) as it lies: CUBLAS_OP_N; ld is the row stride
 *      x (r,c), a transposed view          lies as (r,c): CUBLAS_OP_T; ld is the column stride
 *      a vector along out's rows (m)       a vector along D's columns: what the epilogues call the bias
 *      the sums of a's rows (n)            the sums of B's columns: epilogue BGRADB
 *
 *      op                  a       b      addend    epilogue
 *      linear              x       wᵀ     addend    BIAS
 *      linear_gelu         x       wᵀ               GELU_AUX_BIAS or GELU_AUX, aux = pre         sm_90 and later
 *      linear_gelu_grad    dout    w                DGELU, aux = pre                             sm_90 and later
 *      linear_grad_input   dout    w
 *      linear_grad_weight  doutᵀ   x      dw        BGRADB, bias = dbias
 *
 * Whether the library does a combination is asked of its heuristic, once for all shapes, strides, types, alignments and
 * epilogue together: the answer, an algorithm or a no, stays in a table with the descriptors. A no is never an error.
 * An epilogue becomes a product and a pass of its own, and a product that the library does not do is done by a plain
 * kernel (gemm_plain.cu); so are products over no terms.
 *
 * The library is not asked for what its header excludes (cublasLtMatmulDescAttributes_t): a bias of another type than
 * D's, an aux whose rows are not a multiple of 8 elements. Nor for epilogues on matrices that are not aligned to 16
 * bytes, of which it says nothing. The GELU epilogues are left alone before sm_90, where they are slower than a pass of
 * their own (llm.c, pull request 338).
 *
 * A bias is f32. Beside bf16 matrices it is rounded to bf16 for the epilogue, as the working weights are. Sums are
 * fp32, with neither TF32 nor partial sums in bf16. One device with one version of the library gives the same bits
 * every time.
 */
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/cublaslt.h"
#include "cuda/gemm_plain.h"
#include "cuda/sweep.cuh"

namespace {

enum { SLOTS = 1024, FULL = SLOTS * 3 / 4 };
#ifdef CUDA_ON_CPU
constexpr size_t WORKSPACE_BYTES = 64 << 10;
constexpr int64_t LINEAR_SUM_BYTES = 16 << 10;
#else
constexpr size_t WORKSPACE_BYTES = 32 << 20;  /* what NVIDIA recommends for sm_90 */
constexpr int64_t LINEAR_SUM_BYTES = 8 << 20; /* stays in the second-level cache */
#endif
constexpr int AUX_UNIT = 8; /* elements */
constexpr int GELU_CAPABILITY = 90;

enum class Epilogue : int { NONE, BIAS, GELU, GELU_GRAD, BIAS_GRAD };

/* out = alpha a·b + beta addend, and what the epilogue does to it. Tensors as op_matmul takes them. */
struct Product {
    Tensor out, a, b, addend; /* addend: may be absent; then beta is 0 */
    MatmulScale scale;
    Epilogue epilogue;
    Tensor bias; /* BIAS, GELU: is added (GELU: may be absent). BIAS_GRAD: is written. f32 */
    Tensor aux;  /* GELU: is written. GELU_GRAD: is read */
};

Product product(Tensor out, Tensor a, Tensor b) {
    Product p = {};
    p.out = out, p.a = a, p.b = b;
    p.scale = {1, 0};
    p.epilogue = Epilogue::NONE;
    return p;
}

Product product_added(Tensor out, Tensor a, Tensor b, Tensor addend) {
    Product p = product(out, a, b);
    p.addend = addend;
    if (tensor_present(addend)) p.scale.beta = 1;
    return p;
}

/* ---- plans ------------------------------------------------------------------------------------------------------- */

/* A matrix or a batch of them as it lies, column-major. */
struct Stored {
    int64_t rows, columns, ld, batch_stride;
    DType dtype;
    int alignment; /* bytes: 2, 4, 8 or 16 */
};

/* Everything that a plan depends on. Compared and hashed as bytes. */
struct Key {
    Stored a, b, c, d;
    int batch;
    bool transpose_a, transpose_b, has_bias;
    Epilogue epilogue;
};

struct Plan {
    Key key;
    cublasLtMatmulDesc_t operation; /* NULL: a free slot */
    cublasLtMatrixLayout_t a, b, c, d;
    cublasLtMatmulAlgo_t algorithm;
    bool supported;
};

} // namespace

struct CudaGemm {
    CublasLt lt;
    cublasLtHandle_t handle;
    void *workspace;
    int used;
    Plan plans[SLOTS];
};

namespace {

uint64_t hash_of(const Key &key) { /* FNV-1a */
    const unsigned char *bytes = reinterpret_cast<const unsigned char *>(&key);
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof key; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

/* The slot that holds the key, or the free one where it belongs. */
Plan *find(CudaGemm *gemm, const Key &key) {
    for (uint64_t i = hash_of(key);; i++) {
        Plan *plan = &gemm->plans[i % SLOTS];
        if (!plan->operation || memcmp(&plan->key, &key, sizeof key) == 0) return plan;
    }
}

void destroy_plan(const CublasLt &lt, Plan *plan) {
    for (cublasLtMatrixLayout_t layout : {plan->a, plan->b, plan->c, plan->d})
        if (layout) lt.cublasLtMatrixLayoutDestroy(layout);
    if (plan->operation) lt.cublasLtMatmulDescDestroy(plan->operation);
    memset(plan, 0, sizeof *plan);
}

void empty_table(CudaGemm *gemm) {
    for (Plan &plan : gemm->plans) destroy_plan(gemm->lt, &plan);
    gemm->used = 0;
}

cudaDataType_t type_of(DType dtype) {
    return dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

cublasStatus_t make_layout(const CublasLt &lt, cublasLtMatrixLayout_t *layout, const Stored &x, int32_t batch) {
    cublasStatus_t status = lt.cublasLtMatrixLayoutCreate(layout, type_of(x.dtype), static_cast<uint64_t>(x.rows),
                                                          static_cast<uint64_t>(x.columns), x.ld);
    if (!status)
        status = lt.cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch);
    if (!status)
        status = lt.cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                     &x.batch_stride, sizeof x.batch_stride);
    return status;
}

template <class T>
cublasStatus_t describe(const CublasLt &lt, cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute,
                        T value) {
    return lt.cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value);
}

cublasLtEpilogue_t library_epilogue(const Key &key) {
    switch (key.epilogue) {
    case Epilogue::BIAS:
        return CUBLASLT_EPILOGUE_BIAS;
    case Epilogue::GELU:
        return key.has_bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    case Epilogue::GELU_GRAD:
        return CUBLASLT_EPILOGUE_DGELU;
    case Epilogue::BIAS_GRAD:
        return CUBLASLT_EPILOGUE_BGRADB;
    case Epilogue::NONE:
        break;
    }
    return CUBLASLT_EPILOGUE_DEFAULT;
}

cublasStatus_t make_operation(const CublasLt &lt, cublasLtMatmulDesc_t *operation, const Key &key) {
    cublasStatus_t status = lt.cublasLtMatmulDescCreate(operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!status)
        status =
            describe<int32_t>(lt, *operation, CUBLASLT_MATMUL_DESC_TRANSA, key.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (!status)
        status =
            describe<int32_t>(lt, *operation, CUBLASLT_MATMUL_DESC_TRANSB, key.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (!status) status = describe<uint32_t>(lt, *operation, CUBLASLT_MATMUL_DESC_EPILOGUE, library_epilogue(key));
    return status;
}

/* The vectors and matrices of the epilogue: they may be others in every call. */
cublasStatus_t set_epilogue_pointers(const CublasLt &lt, cublasLtMatmulDesc_t operation, const Product &p) {
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    if (tensor_present(p.bias)) {
        status = describe<int32_t>(lt, operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(p.bias.dtype));
        if (!status) status = describe(lt, operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias.data);
    }
    if (!status && tensor_present(p.aux)) {
        status = describe(lt, operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.aux.shape[1]);
        if (!status) status = describe(lt, operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux.data);
    }
    return status;
}

struct Preference {
    cublasLtMatmulPreferenceAttributes_t attribute;
    uint32_t value;
};

cublasStatus_t make_preference(const CublasLt &lt, cublasLtMatmulPreference_t *preference, const Key &key) {
    const Preference preferences[] = {
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE}, /* sums stay fp32 */
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(key.a.alignment)},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(key.b.alignment)},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(key.c.alignment)},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(key.d.alignment)},
    };
    const size_t workspace = WORKSPACE_BYTES;
    cublasStatus_t status = lt.cublasLtMatmulPreferenceCreate(preference);
    if (!status)
        status = lt.cublasLtMatmulPreferenceSetAttribute(*preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                         &workspace, sizeof workspace);
    for (const Preference &p : preferences)
        if (!status)
            status = lt.cublasLtMatmulPreferenceSetAttribute(*preference, p.attribute, &p.value, sizeof p.value);
    return status;
}

/* Asks for the best algorithm. Finding none is not a failure. */
cublasStatus_t choose_algorithm(CudaGemm *gemm, Plan *plan) {
    const CublasLt &lt = gemm->lt;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    cublasStatus_t status = make_preference(lt, &preference, plan->key);
    if (!status) {
        cublasStatus_t answer = lt.cublasLtMatmulAlgoGetHeuristic(gemm->handle, plan->operation, plan->a, plan->b,
                                                                  plan->c, plan->d, preference, 1, &result, &found);
        plan->supported = !answer && found == 1 && !result.state;
        plan->algorithm = result.algo;
    }
    if (preference) lt.cublasLtMatmulPreferenceDestroy(preference);
    return status;
}

/* Fills a free slot. After a failure it is free again. */
cublasStatus_t make_plan(CudaGemm *gemm, Plan *plan, const Key &key, const Product &p) {
    const CublasLt &lt = gemm->lt;
    memcpy(&plan->key, &key, sizeof key);
    cublasStatus_t status = make_operation(lt, &plan->operation, key);
    if (!status) status = set_epilogue_pointers(lt, plan->operation, p); /* the choice depends on their alignment */
    if (!status) status = make_layout(lt, &plan->a, key.a, key.batch);
    if (!status) status = make_layout(lt, &plan->b, key.b, key.batch);
    if (!status) status = make_layout(lt, &plan->c, key.c, key.batch);
    if (!status) status = make_layout(lt, &plan->d, key.d, key.batch);
    if (!status) status = choose_algorithm(gemm, plan);
    if (status)
        destroy_plan(lt, plan);
    else
        gemm->used++;
    return status;
}

/* ---- one product, or one batch at constant strides --------------------------------------------------------------- */

bool is_transposed(Tensor x) {
    return x.shape[x.ndim - 1] > 1 && x.stride[x.ndim - 1] != 1;
}

int alignment_of(const void *data) {
    int alignment = 16;
    while (reinterpret_cast<uintptr_t>(data) % alignment) alignment /= 2;
    return alignment;
}

/* x (batch, r, c). A leading dimension is at least a column long, also where there is only one column. */
Stored stored(Tensor x) {
    if (is_transposed(x)) x = tensor_transpose(x);
    Stored s = {x.shape[2], x.shape[1], x.shape[1] > 1 ? x.stride[1] : x.shape[2], 0, x.dtype, alignment_of(x.data)};
    if (x.shape[0] > 1) s.batch_stride = x.stride[0];
    return s;
}

Key key_of(const Product &p) {
    Key key;
    memset(static_cast<void *>(&key), 0, sizeof key); /* the padding too */
    key.a = stored(p.b), key.b = stored(p.a), key.d = stored(p.out);
    key.c = tensor_present(p.addend) ? stored(p.addend) : key.d;
    key.batch = static_cast<int>(p.out.shape[0]);
    key.transpose_a = is_transposed(p.b), key.transpose_b = is_transposed(p.a);
    key.has_bias = tensor_present(p.bias);
    key.epilogue = p.epilogue;
    return key;
}

bool columns_are_aligned(const Stored &x) {
    return x.alignment == 16 && x.ld * dtype_size(x.dtype) % 16 == 0;
}

bool epilogue_may_be_asked_for(const Key &key, const Product &p) {
    if (key.epilogue == Epilogue::NONE) return true;
    bool bias_fits = !tensor_present(p.bias) || (p.bias.dtype == key.d.dtype && is_aligned(p.bias.data));
    bool aux_fits = !tensor_present(p.aux) || (p.aux.shape[1] % AUX_UNIT == 0 && is_aligned(p.aux.data));
    bool aligned = columns_are_aligned(key.a) && columns_are_aligned(key.b) && columns_are_aligned(key.c) &&
                   columns_are_aligned(key.d);
    return key.batch == 1 && bias_fits && aux_fits && aligned;
}

/* False, and nothing is done, where the library does not do it. p's tensors are 3-d. */
bool multiply_by_library(Backend *be, const Product &p) {
    CudaGemm *gemm = cuda_state(be)->gemm;
    Key key = key_of(p);
    if (p.a.shape[2] == 0 || !epilogue_may_be_asked_for(key, p)) return false;
    if (gemm->used >= FULL) empty_table(gemm);
    Plan *plan = find(gemm, key);
    cublasStatus_t status =
        plan->operation ? set_epilogue_pointers(gemm->lt, plan->operation, p) : make_plan(gemm, plan, key, p);
    if (!status && !plan->supported) return false;
    const Tensor &c = tensor_present(p.addend) ? p.addend : p.out; /* beta 0: not read */
    if (!status)
        status = gemm->lt.cublasLtMatmul(gemm->handle, plan->operation, &p.scale.alpha, p.b.data, plan->a, p.a.data,
                                         plan->b, &p.scale.beta, c.data, plan->c, p.out.data, plan->d, &plan->algorithm,
                                         gemm->workspace, WORKSPACE_BYTES, cuda_state(be)->stream);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) {
        plan->supported = false;
        return false;
    }
    if (status)
        backend_fail(be, "matmul",
                     status_error(STATUS_DEVICE, "cublasLt cannot multiply %lld x %lld x %lld matrices: %s",
                                  static_cast<long long>(p.out.shape[1]), static_cast<long long>(p.a.shape[2]),
                                  static_cast<long long>(p.out.shape[2]), gemm->lt.cublasLtGetStatusString(status)));
    return true;
}

/* ---- products of any batch --------------------------------------------------------------------------------------- */

/* True if the two batch dimensions of a 4-d tensor are one of constant stride. */
bool is_one_batch(Tensor x) {
    return !tensor_present(x) || x.shape[0] == 1 || x.shape[1] == 1 || x.stride[0] == x.shape[1] * x.stride[1];
}

Tensor as_one_batch(Tensor x) {
    if (!tensor_present(x)) return x;
    Tensor merged = tensor_index(x, 0);
    if (x.shape[1] == 1) merged.stride[0] = x.stride[0];
    merged.shape[0] = x.shape[0] * x.shape[1];
    return merged;
}

Tensor batch_of(Tensor x, int64_t i) {
    return tensor_present(x) ? tensor_index(x, i) : x;
}

void multiply_batch(Backend *be, const Product &p) {
    if (!multiply_by_library(be, p)) cuda_multiply_plainly(be, p.out, p.a, p.b, p.addend, p.scale);
}

/* For products without an epilogue: those with one are matrices, not batches. */
void multiply(Backend *be, Product p) {
    if (tensor_numel(p.out) == 0) return;
    p.out = tensor_pad_4d(p.out), p.a = tensor_pad_4d(p.a), p.b = tensor_pad_4d(p.b),
    p.addend = tensor_pad_4d(p.addend);
    if (is_one_batch(p.out) && is_one_batch(p.a) && is_one_batch(p.b) && is_one_batch(p.addend)) {
        p.out = as_one_batch(p.out), p.a = as_one_batch(p.a), p.b = as_one_batch(p.b);
        p.addend = as_one_batch(p.addend);
        multiply_batch(be, p);
        return;
    }
    for (int64_t i = 0; i < p.out.shape[0]; i++) {
        Product inner = p;
        inner.out = batch_of(p.out, i), inner.a = batch_of(p.a, i), inner.b = batch_of(p.b, i);
        inner.addend = batch_of(p.addend, i);
        multiply_batch(be, inner);
    }
}

/* A product of matrices with its epilogue, or nothing and false. */
bool multiply_with_epilogue(Backend *be, Product p) {
    if (tensor_numel(p.out) == 0) return false;
    Tensor *const matrices[] = {&p.out, &p.a, &p.b, &p.addend};
    for (Tensor *x : matrices)
        if (tensor_present(*x)) *x = batch_of(tensor_pad_4d(*x), 0);
    return multiply_by_library(be, p);
}

/* ---- what an epilogue does, where there is none ------------------------------------------------------------------ */

struct Finish {
    __device__ void operator()(float &out, float sum, float bias, float addend) const { out = sum + bias + addend; }
};

void finish_linear(Backend *be, Tensor out, Tensor sum, Tensor bias, Tensor addend) {
    Tensor every_row = out; /* whose rows are all the bias */
    every_row.data = bias.data, every_row.dtype = DTYPE_F32, every_row.stride[0] = 0;
    by_dtype(out.dtype, [&](auto zero) {
        using T = decltype(zero);
        auto finish = [&](auto added) {
            cuda_sweep(be, "finish_linear", Finish(), writes<T>(out), reads<float>(sum), reads<float>(every_row),
                       added);
        };
        if (tensor_present(addend))
            finish(reads<T>(addend));
        else
            finish(absent());
    });
}

/* As many rows at a time as LINEAR_SUM_BYTES of fp32 sums have, so that the result is rounded once. */
void linear_by_way_of_sums(Backend *be, Tensor out, Tensor x, Tensor w, Tensor bias, Tensor addend) {
    const int64_t N = out.shape[0], O = out.shape[1], row_bytes = O * static_cast<int64_t>(sizeof(float));
    const int64_t fitting = LINEAR_SUM_BYTES / row_bytes, step = fitting > 1 ? fitting : 1;
    for (int64_t n = 0; n < N; n += step) {
        int64_t rows = N - n < step ? N - n : step;
        Tensor sum = tensor_2d(cuda_scratch(be, rows * row_bytes), DTYPE_F32, rows, O);
        multiply(be, product(sum, tensor_slice(x, 0, n, rows), tensor_transpose(w)));
        finish_linear(be, tensor_slice(out, 0, n, rows), sum, bias,
                      tensor_present(addend) ? tensor_slice(addend, 0, n, rows) : addend);
    }
}

/* The sum of a matrix's rows: SUM_ROWS_PARTS ranges of rows are summed each by itself, then their sums in order.
 *
 *      block (x, part): 32 columns, one to a lane; its 8 warps take every eighth row of the range
 */
constexpr int SUM_ROWS_PARTS = 32, SUM_ROWS_WARPS = 8;

template <class T>
__global__ void __launch_bounds__(WARP *SUM_ROWS_WARPS)
    sum_rows_kernel(float *parts, const T *x, int64_t rows, int64_t columns) {
    CU_SHARED(float, of_warp, [SUM_ROWS_WARPS][WARP]);
    const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
    const int64_t column = static_cast<int64_t>(blockIdx.x) * WARP + lane, part = blockIdx.y;
    const int64_t range = ceil_div(rows, SUM_ROWS_PARTS), end = min(rows, (part + 1) * range);
    float sum = 0;
    if (column < columns)
        for (int64_t row = part * range + warp; row < end; row += SUM_ROWS_WARPS)
            sum += to_float(x[row * columns + column]);
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    for (int i = 1; i < SUM_ROWS_WARPS; i++) sum += of_warp[i][lane];
    parts[part * columns + column] = sum;
}

__global__ void __launch_bounds__(256) sum_parts_kernel(float *sum, const float *parts, int64_t columns, bool add) {
    int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    float value = add ? sum[column] : 0.0f;
    for (int64_t part = 0; part < SUM_ROWS_PARTS; part++) value += parts[part * columns + column];
    sum[column] = value;
}

int64_t sum_rows_bytes(int64_t columns) {
    return SUM_ROWS_PARTS * columns * static_cast<int64_t>(sizeof(float));
}

void sum_rows(Backend *be, Tensor sum, Tensor x, GradientMode mode) {
    int64_t columns = x.shape[1];
    float *parts = static_cast<float *>(cuda_scratch(be, sum_rows_bytes(columns)));
    by_dtype(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        cuda_launch(be, "sum_rows", sum_rows_kernel<T>, dim3(int_of(ceil_div(columns, WARP)), SUM_ROWS_PARTS),
                    dim3(WARP, SUM_ROWS_WARPS), 0, parts, data_of<const T>(x), x.shape[0], columns);
    });
    cuda_launch(be, "sum_parts", sum_parts_kernel, dim3(int_of(ceil_div(columns, 256))), dim3(256), 0,
                data_of<float>(sum), parts, columns, mode == GRADIENT_ADD);
}

/* ---- the ops ----------------------------------------------------------------------------------------------------- */

void matmul(Backend *be, Tensor out, Tensor a, Tensor b, Tensor addend, MatmulScale s) {
    Product p = product(out, a, b);
    p.scale.alpha = s.alpha;
    if (tensor_present(addend) && s.beta != 0)
        p.addend = addend, p.scale.beta = s.beta; /* beta 0: not read, NaN or not */
    multiply(be, p);
}

/* The bias as the library takes it beside `dtype` matrices. */
Tensor bias_for_epilogue(Backend *be, Tensor bias, DType dtype) {
    if (!tensor_present(bias) || dtype == DTYPE_F32) return bias;
    Tensor rounded = tensor_1d(cuda_scratch(be, bias.shape[0] * dtype_size(dtype)), dtype, bias.shape[0]);
    be->ops.copy(be, rounded, bias);
    return rounded;
}

void linear(Backend *be, Tensor out, Tensor x, Tensor w, Tensor bias, Tensor addend) {
    Product p = product_added(out, x, tensor_transpose(w), addend);
    if (!tensor_present(bias)) {
        multiply(be, p);
        return;
    }
    p.epilogue = Epilogue::BIAS;
    p.bias = bias_for_epilogue(be, bias, out.dtype);
    if (!multiply_with_epilogue(be, p)) linear_by_way_of_sums(be, out, x, w, bias, addend);
}

bool has_gelu_epilogue(Backend *be) {
    return cuda_state(be)->compute_capability >= GELU_CAPABILITY;
}

void linear_gelu(Backend *be, Tensor out, Tensor pre, Tensor x, Tensor w, Tensor bias) {
    if (has_gelu_epilogue(be)) {
        Product p = product(out, x, tensor_transpose(w));
        p.epilogue = Epilogue::GELU;
        p.bias = bias_for_epilogue(be, bias, out.dtype);
        p.aux = pre;
        if (multiply_with_epilogue(be, p)) return;
    }
    linear(be, pre, x, w, bias, tensor_none());
    be->ops.gelu(be, out, pre);
}

void linear_grad_input(Backend *be, Tensor dx, Tensor dout, Tensor w) {
    multiply(be, product(dx, dout, w));
}

void linear_gelu_grad(Backend *be, Tensor dpre, Tensor dout, Tensor w, Tensor pre) {
    Product p = product(dpre, dout, w);
    if (has_gelu_epilogue(be)) {
        Product with_gelu = p;
        with_gelu.epilogue = Epilogue::GELU_GRAD;
        with_gelu.aux = pre;
        if (multiply_with_epilogue(be, with_gelu)) return;
    }
    multiply(be, p);
    be->ops.gelu_grad(be, dpre, dpre, pre);
}

struct Add {
    __device__ void operator()(float &x, float y) const { x += y; }
};

/* The epilogue writes its sums, so those that are to be added take the way over scratch. */
bool multiply_with_bias_grad(Backend *be, Product p, Tensor dbias, GradientMode mode) {
    p.epilogue = Epilogue::BIAS_GRAD;
    p.bias = dbias;
    if (mode == GRADIENT_ADD) p.bias.data = cuda_scratch(be, tensor_bytes(dbias));
    if (!multiply_with_epilogue(be, p)) return false;
    if (mode == GRADIENT_ADD) cuda_sweep(be, "add_dbias", Add(), updates<float>(dbias), reads<float>(p.bias));
    return true;
}

void linear_grad_weight(Backend *be, Tensor dw, Tensor dbias, Tensor dout, Tensor x, GradientMode mode) {
    Product p = product_added(dw, tensor_transpose(dout), x, mode == GRADIENT_ADD ? dw : tensor_none());
    if (tensor_present(dbias) && multiply_with_bias_grad(be, p, dbias, mode)) return;
    multiply(be, p);
    if (tensor_present(dbias)) sum_rows(be, dbias, dout, mode);
}

} // namespace

void cuda_fill_gemm(BackendOps *ops) {
    ops->matmul = matmul;
    ops->linear = linear;
    ops->linear_grad_input = linear_grad_input;
    ops->linear_grad_weight = linear_grad_weight;
    ops->linear_gelu = linear_gelu;
    ops->linear_gelu_grad = linear_gelu_grad;
}

int64_t cuda_gemm_scratch_bytes(const Backend *be, const OpLimits *limits) {
    (void)be;
    int64_t dbias =
        sum_rows_bytes(limits->width > limits->vocab ? limits->width : limits->vocab); /* many rows' worth */
    return dbias > LINEAR_SUM_BYTES ? dbias : LINEAR_SUM_BYTES;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

Status cuda_gemm_open(Backend *be) {
    CudaGemm *gemm = static_cast<CudaGemm *>(calloc(1, sizeof(CudaGemm)));
    if (!gemm) return status_error(STATUS_OUT_OF_MEMORY, "no memory for the plans of matrix products");
    cuda_state(be)->gemm = gemm; /* cuda_gemm_close undoes what is done so far */
    Status status = cuda_cublaslt_open(&gemm->lt);
    if (status.code) return status;
    if (cublasStatus_t failure = gemm->lt.cublasLtCreate(&gemm->handle))
        return status_error(STATUS_DEVICE, "cublasLt does not start on this device: %s",
                            gemm->lt.cublasLtGetStatusString(failure));
    if (cudaError_t error = cudaMalloc(&gemm->workspace, WORKSPACE_BYTES))
        return status_error(STATUS_OUT_OF_MEMORY, "no memory on the device for cublasLt's workspace of %zu bytes: %s",
                            WORKSPACE_BYTES, cudaGetErrorString(error));
    return status_ok();
}

void cuda_gemm_close(Backend *be) {
    CudaGemm *gemm = cuda_state(be)->gemm;
    if (!gemm) return;
    if (gemm->handle) {
        empty_table(gemm);
        gemm->lt.cublasLtDestroy(gemm->handle);
    }
    cudaFree(gemm->workspace);
    cuda_cublaslt_close(&gemm->lt);
    free(gemm);
    cuda_state(be)->gemm = NULL;
}

/* A version is 10000 major + 100 minor + patch. */
void cuda_gemm_describe(const Backend *be, char *buffer, size_t size) {
    size_t version = cuda_state(be)->gemm->lt.cublasLtGetVersion();
    snprintf(buffer, size, "cublasLt %zu.%zu", version / 10000, version / 100 % 100);
}
