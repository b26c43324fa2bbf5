/* Matrix products: what the ops mean in terms of one product, and the detour through fp32 for dtypes and shapes that
 * the library does not take (bf16 in CBLAS, or in oneDNN on a processor without AVX-512; products over no terms).
 *
 * The detour cuts out, a and b into tiles of at most TILE x TILE and works on fp32 copies in scratch, so it costs three
 * tiles of memory whatever the shapes:
 *
 *      for each tile of out:  c = sum over k of  f32(a tile) · f32(b tile);   out = alpha c + beta addend + bias
 *
 *      scratch:  | a tile | b tile | c tile |
 */
#include <omp.h>

#include "base/integer.h"
#include "cpu/cpu.h"
#include "cpu/simd.h"

enum { TILE = 512 };

int64_t cpu_gemm_scratch_bytes(const Backend *be, const OpLimits *limits) {
    int64_t tiles = 3 * (int64_t)TILE * TILE * (int64_t)sizeof(float);
    return larger(tiles, cpu_partial_bytes(be, larger(limits->vocab, limits->width))); /* or dbias */
}

/* ---- the detour through fp32 ------------------------------------------------------------------------------------ */

INLINE void to_f32_row(DType t, float *dst, const void *src, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) dst[i] = load(t, src, i);
}

/* An fp32 copy of a matrix in `memory`, transposed there if it is here. */
static Tensor to_f32(Tensor x, float *memory) {
    if (x.stride[1] != 1) return tensor_transpose(to_f32(tensor_transpose(x), memory));
    int64_t rows = x.shape[0], columns = x.shape[1];
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        BY_DTYPE(x.dtype, to_f32_row, memory + r * columns, at(x.dtype, x.data, r * x.stride[0]), columns);
    return tensor_2d(memory, DTYPE_F32, rows, columns);
}

INLINE void finish_row(DType t, void *out, const float *c, const void *addend, const float *bias, int64_t n,
                       float alpha, float beta) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float value = alpha * c[i];
        if (addend) value += beta * load(t, addend, i);
        if (bias) value += bias[i];
        store(t, out, i, value);
    }
}

/* A tile of the 2-d product p, whose out, addend and bias are cut to it already. */
static void detour_tile(Backend *be, const Product *p) {
    float *a_tile = be->scratch, *b_tile = a_tile + TILE * TILE, *c_tile = b_tile + TILE * TILE;
    int64_t rows = p->out.shape[0], columns = p->out.shape[1], terms = p->a.shape[1];
    Tensor c = tensor_2d(c_tile, DTYPE_F32, rows, columns);
    memset(c_tile, 0, (size_t)tensor_bytes(c));
    for (int64_t k = 0; k < terms; k += TILE) {
        int64_t count = smaller(TILE, terms - k);
        Product part = {.out = c, .addend = c, .bias = tensor_none(), .alpha = 1, .beta = 1};
        part.a = to_f32(tensor_slice(p->a, 1, k, count), a_tile);
        part.b = to_f32(tensor_slice(p->b, 0, k, count), b_tile);
        cpu_library_multiply(be, &part);
    }
    DType dtype = p->out.dtype;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        void *out = at(dtype, p->out.data, r * p->out.stride[0]);
        void *addend = tensor_present(p->addend) ? at(dtype, p->addend.data, r * p->addend.stride[0]) : NULL;
        BY_DTYPE(dtype, finish_row, out, c_tile + r * columns, addend, p->bias.data, columns, p->alpha, p->beta);
    }
}

static Tensor cut(Tensor x, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    return tensor_present(x) ? tensor_slice(tensor_slice(x, 0, row, rows), 1, column, columns) : x;
}

static void detour_matrix(Backend *be, const Product *p) {
    int64_t N = p->out.shape[0], M = p->out.shape[1], K = p->a.shape[1];
    for (int64_t n = 0; n < N; n += TILE) {
        for (int64_t m = 0; m < M; m += TILE) {
            int64_t rows = smaller(TILE, N - n), columns = smaller(TILE, M - m);
            Product tile = *p;
            tile.out = cut(p->out, n, rows, m, columns);
            tile.addend = cut(p->addend, n, rows, m, columns);
            tile.a = cut(p->a, n, rows, 0, K);
            tile.b = cut(p->b, 0, K, m, columns);
            if (tensor_present(p->bias)) tile.bias = tensor_slice(p->bias, 0, m, columns);
            detour_tile(be, &tile);
        }
    }
}

static Tensor matrix_of_batch(Tensor x, int64_t i, int64_t j) {
    return tensor_present(x) ? tensor_index(tensor_index(tensor_pad_4d(x), i), j) : x;
}

static void detour(Backend *be, const Product *p) {
    CHECK(be->scratch, "backend_reserve comes before the first product of %s", dtype_name(p->a.dtype));
    Tensor batch = tensor_pad_4d(p->out);
    for (int64_t i = 0; i < batch.shape[0]; i++) {
        for (int64_t j = 0; j < batch.shape[1]; j++) {
            Product matrix = *p;
            matrix.out = matrix_of_batch(p->out, i, j);
            matrix.addend = matrix_of_batch(p->addend, i, j);
            matrix.a = matrix_of_batch(p->a, i, j);
            matrix.b = matrix_of_batch(p->b, i, j);
            detour_matrix(be, &matrix);
        }
    }
}

static void multiply(Backend *be, const Product *p) {
    if (tensor_numel(p->out) == 0) return;
    if (tensor_numel(p->a) > 0 && cpu_library_multiplies(be, p->a.dtype))
        cpu_library_multiply(be, p);
    else
        detour(be, p);
}

/* ---- the ops ---------------------------------------------------------------------------------------------------- */

void cpu_matmul(Backend *be, Tensor out, Tensor a, Tensor b, Tensor addend, MatmulScale s) {
    bool added = tensor_present(addend) && s.beta != 0; /* beta 0: the addend is not read, NaN or not */
    Product p = {.out = out, .a = a, .b = b, .bias = tensor_none(), .alpha = s.alpha};
    p.addend = added ? addend : tensor_none();
    p.beta = added ? s.beta : 0;
    multiply(be, &p);
}

void cpu_linear(Backend *be, Tensor out, Tensor x, Tensor w, Tensor bias, Tensor addend) {
    Product p = {.out = out, .a = x, .b = tensor_transpose(w), .addend = addend, .bias = bias, .alpha = 1};
    p.beta = tensor_present(addend) ? 1 : 0;
    multiply(be, &p);
}

void cpu_linear_grad_input(Backend *be, Tensor dx, Tensor dout, Tensor w) {
    multiply(be, &(Product){.out = dx, .a = dout, .b = w, .addend = tensor_none(), .bias = tensor_none(), .alpha = 1});
}

/* sum = or += the sum of x's rows. */
static void sum_rows(Backend *be, Tensor sum, Tensor x, GradientMode mode) {
    int64_t N = x.shape[0], O = x.shape[1];
    if (mode == GRADIENT_SET) memset(sum.data, 0, (size_t)tensor_bytes(sum));
#pragma omp parallel num_threads(be->threads)
    {
        int part = omp_get_thread_num();
        float *mine = cpu_partial(be, part, O);
        Range rows = range_of(N, part, omp_get_num_threads());
        memset(mine, 0, (size_t)O * sizeof(float));
        for (int64_t n = rows.begin; n < rows.end; n++)
            BY_DTYPE(x.dtype, accumulate_row, mine, at(x.dtype, x.data, n * O), O);
#pragma omp barrier
        cpu_add_partials(be, sum.data, O, 0, O);
    }
}

/* doutᵀ goes to the library as a view: its own packing of the transpose costs 5 to 20 % of a bf16 product and
 * nothing measurable in fp32 (docs/performance.md), about what a transposition in a pass of its own would cost. */
void cpu_linear_grad_weight(Backend *be, Tensor dw, Tensor dbias, Tensor dout, Tensor x, GradientMode mode) {
    bool add = mode == GRADIENT_ADD;
    Product p = {.out = dw, .a = tensor_transpose(dout), .b = x, .bias = tensor_none(), .alpha = 1};
    p.addend = add ? dw : tensor_none();
    p.beta = add ? 1 : 0;
    multiply(be, &p);
    if (tensor_present(dbias)) sum_rows(be, dbias, dout, mode);
}
