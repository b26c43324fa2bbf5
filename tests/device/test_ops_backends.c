/* Every op on every backend against the same op on `ref`, over odd shapes, strided views, both dtypes, with and without
 * optional arguments; and that a NaN in the input is seen in every output that it reaches on `ref`, and in no other.
 *
 * A trial runs on both backends with the same inputs. Gradients get statistics (mean, rstd, lse, out) that are random
 * too: the formulas hold for any, and so no forward's rounding is mixed in.
 *
 * To put another backend under test, add its name to `devices`. One that does not open is skipped, except "cpu".
 */
#include "tests/tensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "ops/ops.h"
#include "device/device.h"

static const char *const devices[] = {"cpu", "cuda"};

/* Large enough for every shape below. */
static const OpLimits limits = {
    .width = 30000, .vocab = 5003, .batch = 2, .context = 700, .heads = 6, .head_size = 264};

/* ---- two backends side by side ---------------------------------------------------------------------------------- */

enum { MAX_OUTPUTS = 4 };

typedef struct {
    Backend be;
    int output_count;
    Tensor outputs[MAX_OUTPUTS];
} Side;

static struct {
    const char *device;
    Side ref[2], device_under_test[2]; /* by dtype: DTYPE_F32, DTYPE_BF16 */
} sides;

typedef struct {
    int64_t n, i, o;              /* rows, columns in, columns out */
    int64_t b, t, h, k, d, e;     /* attention and rope: batch, context, heads, key heads, head sizes */
    float scale, softcap;         /* attention: scale 0 stands for 1/sqrt(d) */
    float steepness;              /* attention: how far logits rise along the keys; 0 leaves them random */
    double slack_f32, slack_bf16; /* what outputs of that type may differ by on top of tolerance_of */
    DType dtype;                  /* of activations */
    bool strided;                 /* where the contract allows it */
    bool aligned;                 /* strided views on 16-byte boundaries */
    bool optional;                /* pass the optional arguments */
    bool poison;                  /* the first input holds a NaN */
    int variant;                  /* of the op: what it means is up to the op */
} Trial;

typedef void (*Run)(Side *, const Trial *);

static Tensor input(Side *s, const Trial *t, DType dtype, Shape shape, uint64_t seed) {
    if (!t->strided) return test_random(&s->be, dtype, shape, seed);
    return t->aligned ? test_random_aligned(&s->be, dtype, shape, seed)
                      : test_random_strided(&s->be, dtype, shape, seed);
}

/* The input that poison goes into, in its middle. */
static Tensor poisoned(Side *s, const Trial *t, Tensor x) {
    if (t->poison) test_set(&s->be, x, tensor_numel(x) / 2, (double)NAN);
    return x;
}

/* Random before the op: "=" has to overwrite and "+=" to add to the same values on both sides. */
static Tensor output(Side *s, Tensor t) {
    s->outputs[s->output_count++] = t;
    return t;
}

/* fp32: a backend may sum up to 300 products of size 1 in fp32 and in another order, 300 * 6e-8; and its exp and tanh
 * may be polynomials of about 1e-6. bf16: the two fp32 results may lie on either side of a rounding boundary, which is
 * one unit in the last place, 2^-7 of the value. */
static Tolerance tolerance_of(DType dtype) {
    return (Tolerance){.absolute = 2e-5, .relative = dtype == DTYPE_BF16 ? 1.0 / 128 : 2e-5};
}

static Tolerance tolerance_of_output(DType dtype, const Trial *t) {
    Tolerance tolerance = tolerance_of(dtype);
    tolerance.absolute += dtype == DTYPE_BF16 ? t->slack_bf16 : t->slack_f32;
    return tolerance;
}

static void compare(const char *op, Run run, Trial t) {
    Side *ref = &sides.ref[t.dtype], *side = &sides.device_under_test[t.dtype];
    ref->output_count = side->output_count = 0;
    run(ref, &t);
    run(side, &t);
    assert_ok(backend_sync(&side->be));
    for (int i = 0; i < ref->output_count; i++) {
        char what[200], shape[64];
        Tensor got = side->outputs[i], expected = ref->outputs[i];
        snprintf(what, sizeof what, "%s on %s, output %d %s%s%s%s%s, variant %d", op, sides.device, i,
                 tensor_describe(got, shape, sizeof shape), t.dtype == DTYPE_BF16 ? " from bf16" : "",
                 t.strided ? " strided" : "", t.optional ? " with options" : "", t.poison ? " poisoned" : "",
                 t.variant);
        const double *a = test_read(&side->be, got), *b = test_read(&ref->be, expected);
        assert_close(what, a, b, tensor_numel(got), tolerance_of_output(got.dtype, &t));
    }
    test_release(&ref->be);
    test_release(&side->be);
}

/* All combinations of the flags, but a NaN only once for each dtype. */
static void compare_flags(const char *op, Run run, Trial t) {
    for (int flags = 0; flags < 16; flags++) {
        t.dtype = flags & 1 ? DTYPE_BF16 : DTYPE_F32;
        t.strided = flags & 2;
        t.optional = flags & 4;
        t.poison = flags & 8;
        if (!t.poison || (t.strided && t.optional)) compare(op, run, t);
    }
}

/* One row, one column, less than a SIMD vector, no multiple of one, rows of whole 16 bytes, several tiles. */
static const Trial matrices[] = {
    {.n = 1, .i = 1, .o = 1},    {.n = 1, .i = 100, .o = 7},  {.n = 7, .i = 1, .o = 33},    {.n = 5, .i = 7, .o = 100},
    {.n = 33, .i = 33, .o = 33}, {.n = 24, .i = 72, .o = 40}, {.n = 70, .i = 257, .o = 40},
};
enum { MATRICES = sizeof matrices / sizeof matrices[0] };

static void compare_matrices_within(double slack_bf16, const char *op, Run run, int variants) {
    for (int m = 0; m < MATRICES; m++)
        for (int variant = 0; variant < variants; variant++) {
            Trial t = matrices[m];
            t.variant = variant;
            t.slack_bf16 = slack_bf16;
            compare_flags(op, run, t);
        }
}

static void compare_matrices(const char *op, Run run, int variants) {
    compare_matrices_within(0, op, run, variants);
}

/* ---- moving ----------------------------------------------------------------------------------------------------- */

static void run_fill(Side *s, const Trial *t) {
    op_fill(&s->be, output(s, input(s, t, t->dtype, shape3(t->n, 2, t->i), 1)), 0.3f);
}

static void run_copy(Side *s, const Trial *t) {
    DType to = t->variant ? DTYPE_F32 : DTYPE_BF16;
    Tensor dst = output(s, input(s, t, to, shape3(2, t->n, t->i), 1));
    op_copy(&s->be, dst, poisoned(s, t, input(s, t, t->dtype, shape3(2, t->n, t->i), 2)));
}

/* Each of two matrices is copied for t->n heads by a stride of 0. */
static void run_copy_to_all(Side *s, const Trial *t) {
    DType to = t->variant ? DTYPE_F32 : DTYPE_BF16;
    Tensor dst = output(s, input(s, t, to, shape4(2, 5, t->n, t->i), 1));
    Tensor src = poisoned(s, t, input(s, t, t->dtype, shape4(2, 5, 1, t->i), 2));
    src.shape[2] = t->n, src.stride[2] = 0;
    op_copy(&s->be, dst, src);
}

static void run_sum_heads(Side *s, const Trial *t) {
    Tensor x = poisoned(s, t, input(s, t, t->dtype, shape3(t->n, t->o, t->i), 1));
    op_sum_heads(&s->be, output(s, input(s, t, t->dtype, shape2(t->n, t->i), 2)), x);
}

static void run_scale(Side *s, const Trial *t) {
    op_scale(&s->be, output(s, poisoned(s, t, input(s, t, t->dtype, shape2(t->n, t->i), 1))), -1.7f);
}

static void run_sums(Side *s, const Trial *t) {
    Tensor x = poisoned(s, t, input(s, t, t->dtype, shape2(t->n, t->i), 1));
    op_sum(&s->be, output(s, test_random(&s->be, DTYPE_F32, shape1(1), 2)), x);
    op_sum_squares(&s->be, output(s, test_random(&s->be, DTYPE_F32, shape1(1), 3)), x);
}

static void moving_ops_match_ref(void **state) {
    (void)state;
    compare_matrices("fill", run_fill, 1);
    compare_matrices("copy", run_copy, 2);
    compare_matrices("copy to all heads", run_copy_to_all, 2);
    compare_matrices("sum_heads", run_sum_heads, 1);
    compare_matrices("scale", run_scale, 1);
    compare_matrices("sum", run_sums, 1);
}

/* ---- matrix products -------------------------------------------------------------------------------------------- */

/* Variants: 1 transposes a, 2 transposes b, 4 gives an f32 result, 8 writes over the addend. Two matrices in a batch.
 */
static void run_matmul(Side *s, const Trial *t) {
    int64_t N = t->n, K = t->i, M = t->o;
    DType to = t->variant & 4 ? DTYPE_F32 : t->dtype;
    Tensor a = t->variant & 1 ? tensor_transpose(input(s, t, t->dtype, shape3(2, K, N), 1))
                              : input(s, t, t->dtype, shape3(2, N, K), 1);
    Tensor b = t->variant & 2 ? tensor_transpose(input(s, t, t->dtype, shape3(2, M, K), 2))
                              : input(s, t, t->dtype, shape3(2, K, M), 2);
    Tensor addend = input(s, t, to, shape3(2, N, M), 3);
    Tensor out = t->variant & 8 ? addend : input(s, t, to, shape3(2, N, M), 4);
    if (!t->optional && !(t->variant & 8)) addend = tensor_none();
    op_matmul(&s->be, output(s, out), poisoned(s, t, a), b, addend, (MatmulScale){.alpha = 0.7f, .beta = -1.3f});
}

static void run_matmul_2d(Side *s, const Trial *t) {
    Tensor a = poisoned(s, t, input(s, t, t->dtype, shape2(t->n, t->i), 1));
    Tensor b = tensor_transpose(input(s, t, t->dtype, shape2(t->o, t->i), 2));
    op_matmul(&s->be, output(s, input(s, t, t->dtype, shape2(t->n, t->o), 3)), a, b, tensor_none(),
              (MatmulScale){.alpha = 1, .beta = 0});
}

/* x xᵀ, as Newton-Schulz needs it, over two batch dimensions. */
static void run_matmul_gram(Side *s, const Trial *t) {
    Tensor x = poisoned(s, t, input(s, t, t->dtype, shape4(2, 3, t->n, t->i), 1));
    op_matmul(&s->be, output(s, input(s, t, t->dtype, shape4(2, 3, t->n, t->n), 2)), x, tensor_transpose(x),
              tensor_none(), (MatmulScale){.alpha = 1, .beta = 0});
}

/* Six symmetric matrices, the same on both sides. */
static Tensor symmetric(Side *s, const Trial *t, DType dtype) {
    Tensor x = input(s, t, dtype, shape4(2, 3, t->n, t->n), 2);
    double *values = test_read(&s->be, x);
    for (int64_t i = 0; i < tensor_numel(x); i++) {
        int64_t row = i / t->n % t->n, column = i % t->n;
        if (column > row) values[i] = values[i + (column - row) * (t->n - 1)]; /* (column, row) */
    }
    test_write(&s->be, x, values);
    return x;
}

/* Variants: 1 transposes a, 2 writes over the addend, 4 gives an f32 result. */
static void run_matmul_symmetric(Side *s, const Trial *t) {
    DType to = t->variant & 4 ? DTYPE_F32 : t->dtype;
    Tensor a = t->variant & 1 ? tensor_transpose(input(s, t, t->dtype, shape4(2, 3, t->i, t->n), 1))
                              : input(s, t, t->dtype, shape4(2, 3, t->n, t->i), 1);
    Tensor addend = symmetric(s, t, to);
    Tensor out = t->variant & 2 ? addend : input(s, t, to, shape4(2, 3, t->n, t->n), 3);
    if (!t->optional && !(t->variant & 2)) addend = tensor_none();
    op_matmul_symmetric(&s->be, output(s, out), poisoned(s, t, a), addend, (MatmulScale){.alpha = 0.7f, .beta = -1.3f});
}

static void matmul_symmetric_matches_ref(void **state) {
    (void)state;
    compare_matrices("matmul_symmetric", run_matmul_symmetric, 8);
    compare_flags("matmul_symmetric of many blocks", run_matmul_symmetric, (Trial){.n = 283, .i = 9});
    for (int variant = 0; variant < 8; variant++) {
        Trial t = {.n = 136, .i = 40, .dtype = DTYPE_BF16, .optional = variant & 1, .variant = variant};
        compare("matmul_symmetric of tensor-core tiles", run_matmul_symmetric, t);
        t.n = 200, t.i = 152;
        compare("matmul_symmetric of large tensor-core tiles", run_matmul_symmetric, t);
    }
}

static void matmul_matches_ref(void **state) {
    (void)state;
    static const int some[] = {1, 3, 5, 6};
    for (int i = 0; i < 4; i++) {
        Trial t = matrices[some[i]];
        for (t.variant = 0; t.variant < 16; t.variant++) compare_flags("matmul", run_matmul, t);
    }
    compare_matrices("matmul in two dimensions", run_matmul_2d, 1);
    for (int m = 0; m < MATRICES - 1; m++)
        compare_flags("matmul of two batch dimensions", run_matmul_gram, matrices[m]);
    for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++)
        for (int f32_out = 0; f32_out < 2; f32_out++)
            compare("matmul over no terms", run_matmul,
                    (Trial){.n = 3, .i = 0, .o = 5, .dtype = (DType)dtype, .optional = true, .variant = 4 * f32_out});
}

/* Variants: 1 adds another tensor, 2 the output itself. */
static void run_linear(Side *s, const Trial *t) {
    Tensor x = poisoned(s, t, test_random(&s->be, t->dtype, shape2(t->n, t->i), 1));
    Tensor w = input(s, t, t->dtype, shape2(t->o, t->i), 2);
    Tensor bias = t->optional ? test_random(&s->be, DTYPE_F32, shape1(t->o), 3) : tensor_none();
    Tensor out = output(s, test_random(&s->be, t->dtype, shape2(t->n, t->o), 4));
    Tensor other = test_random(&s->be, t->dtype, shape2(t->n, t->o), 5);
    op_linear(&s->be, out, x, w, bias, t->variant == 0 ? tensor_none() : t->variant == 1 ? other : out);
}

static void run_linear_grad(Side *s, const Trial *t) {
    Tensor x = test_random(&s->be, t->dtype, shape2(t->n, t->i), 1);
    Tensor w = input(s, t, t->dtype, shape2(t->o, t->i), 2);
    Tensor dout = poisoned(s, t, test_random(&s->be, t->dtype, shape2(t->n, t->o), 3));
    Tensor dx = output(s, test_random(&s->be, t->dtype, shape2(t->n, t->i), 4));
    Tensor dw = output(s, test_random(&s->be, DTYPE_F32, shape2(t->o, t->i), 5));
    /* behind another number: no vector begins there */
    Tensor dbias = tensor_slice(test_random(&s->be, DTYPE_F32, shape1(t->o + 1), 6), 0, t->strided, t->o);
    dbias = t->optional ? output(s, dbias) : tensor_none();
    op_linear_grad_input(&s->be, dx, dout, w);
    op_linear_grad_weight(&s->be, dw, dbias, dout, x, t->variant ? GRADIENT_SET : GRADIENT_ADD);
}

static void run_linear_gelu(Side *s, const Trial *t) {
    Tensor x = poisoned(s, t, test_random(&s->be, t->dtype, shape2(t->n, t->i), 1));
    Tensor w = input(s, t, t->dtype, shape2(t->o, t->i), 2);
    Tensor bias = t->optional ? test_random(&s->be, DTYPE_F32, shape1(t->o), 3) : tensor_none();
    Tensor out = output(s, test_random(&s->be, t->dtype, shape2(t->n, t->o), 4));
    Tensor pre = output(s, test_random(&s->be, t->dtype, shape2(t->n, t->o), 5));
    op_linear_gelu(&s->be, out, pre, x, w, bias);
}

static void run_linear_gelu_grad(Side *s, const Trial *t) {
    Tensor dout = poisoned(s, t, test_random(&s->be, t->dtype, shape2(t->n, t->o), 1));
    Tensor w = input(s, t, t->dtype, shape2(t->o, t->i), 2);
    Tensor pre = test_random(&s->be, t->dtype, shape2(t->n, t->i), 3);
    Tensor dpre = output(s, test_random(&s->be, t->dtype, shape2(t->n, t->i), 4));
    op_linear_gelu_grad(&s->be, dpre, dout, w, pre);
}

/* cuda rounds the bias: half a unit of what is below 1 is 2^-9. gelu makes 1.13 times as much of it; and where it is
 * flat, for x from -4 to -2, the rounding of its input is up to 1e-4 more than that of its result. */
static const double bias_rounding = 1.0 / 512, bias_rounding_gelu = 1.13 / 512 + 1e-4;

static void linear_matches_ref(void **state) {
    (void)state;
    const bool rounds_bias = strcmp(sides.device, "cuda") == 0;
    compare_matrices_within(rounds_bias ? bias_rounding : 0, "linear", run_linear, 3);
    compare_matrices("linear_grad", run_linear_grad, 2);
    for (int variant = 0; variant < 2; variant++)
        compare_flags("linear_grad of whole packs", run_linear_grad,
                      (Trial){.n = 16, .i = 24, .o = 32, .variant = variant});
    compare_matrices_within(rounds_bias ? bias_rounding_gelu : 0, "linear_gelu", run_linear_gelu, 1);
    compare_matrices("linear_gelu_grad", run_linear_gelu_grad, 1);
}

/* ---- norms ------------------------------------------------------------------------------------------------------ */

/* eps is large so that a row of one element, whose variance is 0, does not multiply rounding by 1/sqrt(eps). */
static const float norm_eps = 0.01f;

static void run_layernorm(Side *s, const Trial *t) {
    Tensor x = poisoned(s, t, test_random(&s->be, t->dtype, shape2(t->n, t->i), 1));
    Tensor w = test_random(&s->be, DTYPE_F32, shape1(t->i), 2);
    Tensor bias = t->optional ? test_random(&s->be, DTYPE_F32, shape1(t->i), 3) : tensor_none();
    Tensor out = output(s, test_random(&s->be, t->dtype, shape2(t->n, t->i), 4));
    Tensor mean = output(s, test_random(&s->be, DTYPE_F32, shape1(t->n), 5));
    Tensor rstd = output(s, test_random(&s->be, DTYPE_F32, shape1(t->n), 6));
    op_layernorm(&s->be, out, mean, rstd, x, w, bias, norm_eps);
}

static void run_layernorm_grad(Side *s, const Trial *t) {
    Tensor x = test_random(&s->be, t->dtype, shape2(t->n, t->i), 1);
    Tensor w = test_random(&s->be, DTYPE_F32, shape1(t->i), 2);
    Tensor mean = test_random(&s->be, DTYPE_F32, shape1(t->n), 3);
    Tensor rstd = test_random(&s->be, DTYPE_F32, shape1(t->n), 4);
    Tensor dout = poisoned(s, t, test_random(&s->be, t->dtype, shape2(t->n, t->i), 5));
    Tensor dx = output(s, test_random(&s->be, t->dtype, shape2(t->n, t->i), 6));
    Tensor dw = output(s, test_random(&s->be, DTYPE_F32, shape1(t->i), 7));
    Tensor dbias = t->optional ? output(s, test_random(&s->be, DTYPE_F32, shape1(t->i), 8)) : tensor_none();
    op_layernorm_grad(&s->be, dx, dw, dbias, dout, x, mean, rstd, w);
}

static Shape rows_shape(const Trial *t) {
    return t->variant ? shape3(t->n, 3, t->i) : shape2(t->n, t->i);
}

static Shape rstd_shape(const Trial *t) {
    return t->variant ? shape2(t->n, 3) : shape1(t->n);
}

/* Variant 1 is the 3-d form. */
static void run_rmsnorm(Side *s, const Trial *t) {
    Tensor x = poisoned(s, t, input(s, t, t->dtype, rows_shape(t), 1));
    Tensor w = test_random(&s->be, DTYPE_F32, shape1(t->i), 2);
    Tensor out = output(s, input(s, t, t->dtype, rows_shape(t), 3));
    Tensor rstd = output(s, test_random(&s->be, DTYPE_F32, rstd_shape(t), 4));
    op_rmsnorm(&s->be, out, rstd, x, w, norm_eps);
}

static void run_rmsnorm_grad(Side *s, const Trial *t) {
    Tensor x = input(s, t, t->dtype, rows_shape(t), 1);
    Tensor w = test_random(&s->be, DTYPE_F32, shape1(t->i), 2);
    Tensor rstd = test_random(&s->be, DTYPE_F32, rstd_shape(t), 3);
    Tensor dout = poisoned(s, t, input(s, t, t->dtype, rows_shape(t), 4));
    Tensor dx = output(s, input(s, t, t->dtype, rows_shape(t), 5));
    Tensor dw = output(s, test_random(&s->be, DTYPE_F32, shape1(t->i), 6));
    op_rmsnorm_grad(&s->be, dx, dw, dout, x, rstd, w);
}

/* Variants: 1 has a NaN in max, 2 a maximum that no row reaches, 3 a NaN with its sign set in x. */
static void run_max_norm(Side *s, const Trial *t) {
    Tensor max = output(s, test_zeros(&s->be, DTYPE_F32, shape1(1)));
    test_set(&s->be, max, 0, t->variant == 1 ? (double)NAN : t->variant == 2 ? 1e6 : 0);
    Tensor x = poisoned(s, t, input(s, t, t->dtype, shape2(t->n, t->i), 1));
    if (t->variant == 3) test_set(&s->be, x, tensor_numel(x) / 3, -(double)NAN);
    op_max_norm(&s->be, max, x);
}

static void norms_match_ref(void **state) {
    (void)state;
    compare_matrices("max_norm", run_max_norm, 4);
    compare_matrices("layernorm", run_layernorm, 1);
    compare_matrices("layernorm_grad", run_layernorm_grad, 1);
    compare_matrices("rmsnorm", run_rmsnorm, 2);
    compare_matrices("rmsnorm_grad", run_rmsnorm_grad, 2);
}

/* ---- embedding and position ------------------------------------------------------------------------------------- */

/* 3 sequences of n tokens, from a vocabulary of o. */
static void run_embed(Side *s, const Trial *t) {
    Tensor tokens = test_random_tokens(&s->be, shape2(3, t->n), 0, t->o, 1);
    Tensor wte = poisoned(s, t, test_random(&s->be, t->dtype, shape2(t->o, t->i), 2));
    Tensor wpe = t->optional ? test_random(&s->be, t->dtype, shape2(t->n + 2, t->i), 3) : tensor_none();
    op_embed(&s->be, output(s, test_random(&s->be, t->dtype, shape2(3 * t->n, t->i), 4)), tokens, wte, wpe);
}

static void run_embed_grad(Side *s, const Trial *t) {
    Tensor tokens = test_random_tokens(&s->be, shape2(3, t->n), 0, t->o, 1);
    Tensor dout = poisoned(s, t, test_random(&s->be, t->dtype, shape2(3 * t->n, t->i), 2));
    Tensor dwte = output(s, test_random(&s->be, DTYPE_F32, shape2(t->o, t->i), 3));
    Tensor dwpe = t->optional ? output(s, test_random(&s->be, DTYPE_F32, shape2(t->n + 2, t->i), 4)) : tensor_none();
    op_embed_grad(&s->be, dwte, dwpe, dout, tokens);
}

static void run_rope(Side *s, const Trial *t) {
    Tensor table = test_random(&s->be, DTYPE_F32, shape2(t->n + 1, 2 * t->i), 1);
    Tensor x = output(s, poisoned(s, t, input(s, t, t->dtype, shape4(2, t->n, 3, 2 * t->i), 2)));
    if (t->variant)
        op_rope_grad(&s->be, x, table);
    else
        op_rope(&s->be, x, table);
}

static void embedding_and_position_match_ref(void **state) {
    (void)state;
    compare_matrices("embed", run_embed, 1);
    compare_matrices("embed_grad", run_embed_grad, 1);
    for (int m = 0; m < MATRICES - 1; m++)
        for (int variant = 0; variant < 2; variant++) {
            Trial t = matrices[m];
            t.variant = variant;
            compare_flags("rope", run_rope, t);
        }
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

static const Trial attentions[] = {
    {.b = 1, .t = 1, .h = 1, .k = 1, .d = 1, .e = 1},
    {.b = 2, .t = 7, .h = 2, .k = 2, .d = 8, .e = 8},
    {.b = 1, .t = 33, .h = 6, .k = 2, .d = 16, .e = 16},
    {.b = 1, .t = 65, .h = 2, .k = 1, .d = 33, .e = 7},
    {.b = 1, .t = 130, .h = 1, .k = 1, .d = 64, .e = 64},
    {.b = 1, .t = 135, .h = 3, .k = 1, .d = 80, .e = 72},
    {.b = 2, .t = 17, .h = 4, .k = 4, .d = 5, .e = 9, .softcap = 0.5f},
    {.b = 1, .t = 70, .h = 2, .k = 2, .d = 96, .e = 64},
    {.b = 1, .t = 66, .h = 3, .k = 3, .d = 21, .e = 50},
};
enum { ATTENTIONS = sizeof attentions / sizeof attentions[0] };

/* A backend may round p and ds to bf16 for the products they enter: 2^-9 of each, at most. out then is off by 2^-9
 * times a mean of |v| <= 1; dv by 2^-9 times what p sums to over the rows (and heads) that read a key, below 2 here; dq
 * and dk likewise, with |ds| scale below 1/2 of p. lse and the maxima are sums and logits of fp32: nothing is added
 * there. */
static const double attention_slack_bf16 = 1.0 / 256;

static AttentionParams attention_params(const Trial *t) {
    return (AttentionParams){.scale = t->scale != 0 ? t->scale : 1 / sqrtf((float)t->d), .softcap = t->softcap};
}

/* Query i's logit of key j becomes about steepness (j + 1) / T: the largest is always the latest, so that every tile of
 * keys raises the maximum by far and shrinks what was summed before to next to nothing. */
static void make_steep(Side *s, const Trial *t, Tensor q, Tensor k) {
    if (t->steepness == 0) return;
    double *queries = test_read(&s->be, q), *keys = test_read(&s->be, k);
    for (int64_t i = 0; i < tensor_numel(q); i += t->d) queries[i] = (double)t->steepness * sqrt((double)t->d);
    for (int64_t i = 0; i < tensor_numel(k); i += t->d) keys[i] = (double)(i / (t->k * t->d) % t->t + 1) / (double)t->t;
    test_write(&s->be, q, queries);
    test_write(&s->be, k, keys);
}

/* What may hold the NaN: q (backward: dout), k or v, by variant. */
enum { POISON_QUERY, POISON_KEY, POISON_VALUE, POISONS };

static void run_attention(Side *s, const Trial *t) {
    Tensor q = input(s, t, t->dtype, shape4(t->b, t->t, t->h, t->d), 1);
    Tensor k = input(s, t, t->dtype, shape4(t->b, t->t, t->k, t->d), 2);
    Tensor v = input(s, t, t->dtype, shape4(t->b, t->t, t->k, t->e), 3);
    make_steep(s, t, q, k);
    poisoned(s, t, t->variant == POISON_KEY ? k : t->variant == POISON_VALUE ? v : q);
    Tensor out = output(s, input(s, t, t->dtype, shape4(t->b, t->t, t->h, t->e), 4));
    Tensor lse = output(s, test_random(&s->be, DTYPE_F32, shape3(t->b, t->h, t->t), 5));
    Tensor max_logit = test_random(&s->be, DTYPE_F32, shape1(t->h), 6);
    Tensor max_abs = test_random(&s->be, DTYPE_F32, shape1(t->h), 7);
    test_fill(&s->be, max_logit, -HUGE_VAL);
    if (t->optional) {
        output(s, max_logit), output(s, max_abs);
    } else {
        max_logit = max_abs = tensor_none();
    }
    op_attention(&s->be, out, lse, max_logit, max_abs, q, k, v, attention_params(t));
}

/* lse about log(T), so that p is what a softmax of small logits gives. */
static void run_attention_grad(Side *s, const Trial *t) {
    Tensor q = input(s, t, t->dtype, shape4(t->b, t->t, t->h, t->d), 1);
    Tensor k = input(s, t, t->dtype, shape4(t->b, t->t, t->k, t->d), 2);
    Tensor v = input(s, t, t->dtype, shape4(t->b, t->t, t->k, t->e), 3);
    Tensor out = input(s, t, t->dtype, shape4(t->b, t->t, t->h, t->e), 4);
    Tensor dout = input(s, t, t->dtype, shape4(t->b, t->t, t->h, t->e), 5);
    poisoned(s, t, t->variant == POISON_KEY ? k : t->variant == POISON_VALUE ? v : dout);
    Tensor lse = test_zeros(&s->be, DTYPE_F32, shape3(t->b, t->h, t->t));
    test_fill(&s->be, lse, 1 + log((double)t->t));
    Tensor dq = output(s, input(s, t, t->dtype, shape4(t->b, t->t, t->h, t->d), 6));
    Tensor dk = output(s, input(s, t, t->dtype, shape4(t->b, t->t, t->k, t->d), 7));
    Tensor dv = output(s, input(s, t, t->dtype, shape4(t->b, t->t, t->k, t->e), 8));
    op_attention_grad(&s->be, dq, dk, dv, dout, out, lse, q, k, v, attention_params(t));
}

static void attention_matches_ref(void **state) {
    (void)state;
    for (int i = 0; i < ATTENTIONS; i++) {
        Trial t = attentions[i];
        t.slack_bf16 = attention_slack_bf16;
        compare_flags("attention", run_attention, t);
        compare_flags("attention_grad", run_attention_grad, t);
    }
}

/* Logits up to 300 in fp32 are off by some units in the last place, 3e-5 each, and so are p, relatively, and out. */
static void attention_with_large_rising_logits_matches_ref(void **state) {
    (void)state;
    Trial t = {.b = 1, .t = 130, .h = 2, .k = 1, .d = 16, .e = 16, .steepness = 300};
    t.slack_f32 = 1e-4;
    t.slack_bf16 = attention_slack_bf16;
    compare_flags("attention of large logits", run_attention, t);
}

/* Below 0 are the largest logits of the first, which no row of zeros beyond the context may hide. A negative scale
 * turns the order of the products around. */
static void attention_of_negative_logits_matches_ref(void **state) {
    (void)state;
    Trial negative = {.b = 1, .t = 7, .h = 1, .k = 1, .d = 1, .e = 1, .steepness = -3};
    Trial turned = {.b = 1, .t = 70, .h = 2, .k = 1, .d = 40, .e = 40, .scale = -0.3f};
    negative.slack_bf16 = turned.slack_bf16 = attention_slack_bf16;
    compare_flags("attention of negative logits", run_attention, negative);
    compare_flags("attention with a negative scale", run_attention, turned);
    compare_flags("attention_grad with a negative scale", run_attention_grad, turned);
}

static void a_nan_in_attention_reaches_no_earlier_query(void **state) {
    (void)state;
    for (int i = 0; i < ATTENTIONS; i++)
        for (int variant = 0; variant < 2 * POISONS; variant++) {
            Trial t = attentions[i];
            t.poison = t.optional = true;
            t.variant = variant % POISONS;
            t.dtype = variant < POISONS ? DTYPE_F32 : DTYPE_BF16;
            t.slack_bf16 = attention_slack_bf16;
            compare("attention", run_attention, t);
            compare("attention_grad", run_attention_grad, t);
        }
}

/* One for each padding of a GPU's tiles, with rows of whole 16 bytes and without, and one beyond what its kernels on
 * tensor cores take. */
static void attention_of_every_head_size_matches_ref(void **state) {
    (void)state;
    static const int64_t sizes[] = {32, 64, 96, 128, 192, 256, 264};
    for (int i = 0; i < (int)(sizeof sizes / sizeof sizes[0]); i++)
        for (int variant = 0; variant < 4; variant++) {
            Trial t = {.b = 1, .t = 70, .h = 2, .k = 1, .d = sizes[i], .e = sizes[i] - 8, .dtype = DTYPE_BF16};
            t.strided = variant & 1;
            t.softcap = variant & 2 ? 0.5f : 0;
            t.slack_bf16 = attention_slack_bf16;
            compare("attention", run_attention, t);
            compare("attention_grad", run_attention_grad, t);
        }
}

/* As latent attention has it: D = nope + rope beside values of any other size, each on its own side of what kernels pad
 * to (192 and 128 are DeepSeek's), also with values larger than keys and beyond what tensor cores take. */
static void attention_with_values_of_another_size_matches_ref(void **state) {
    (void)state;
    static const int64_t sizes[][2] = {{96, 64}, {192, 128}, {24, 16},  {16, 64},
                                       {9, 70},  {130, 33},  {40, 200}, {260, 12}};
    for (int i = 0; i < (int)(sizeof sizes / sizeof sizes[0]); i++)
        for (int variant = 0; variant < 4; variant++) {
            Trial t = {.b = 1, .t = 70, .h = 2, .k = 2, .d = sizes[i][0], .e = sizes[i][1], .optional = true};
            t.dtype = variant & 1 ? DTYPE_BF16 : DTYPE_F32;
            t.strided = variant & 2;
            t.slack_bf16 = attention_slack_bf16;
            compare("attention", run_attention, t);
            compare("attention_grad", run_attention_grad, t);
        }
}

/* ---- census ----------------------------------------------------------------------------------------------------- */

/* What the inputs of a census are like. */
enum { CENSUS_RANDOM, CENSUS_EQUAL, CENSUS_NEGATIVE, CENSUS_NANS, CENSUS_INFINITE, CENSUSES, CENSUS_TIE };

static void make_census_case(Side *s, const Trial *t, Tensor q, Tensor k) {
    const int64_t D = t->d, last = tensor_numel(k) - 1;
    if (t->variant == CENSUS_EQUAL || t->variant == CENSUS_NEGATIVE) test_fill(&s->be, q, 0.25);
    if (t->variant == CENSUS_EQUAL) test_fill(&s->be, k, 0.5);
    if (t->variant == CENSUS_NEGATIVE) test_fill(&s->be, k, -0.5);
    if (t->variant == CENSUS_NANS) { /* two keys: which queries see them first is a matter of order */
        test_set(&s->be, k, last / 3 / D * D, -(double)NAN);
        test_set(&s->be, k, last / 2 / D * D, (double)NAN);
    }
    if (t->variant == CENSUS_TIE) { /* queries 130 and 140 have equal logits of keys 129 and 5 */
        const int64_t queries[] = {130 * t->h * D, 140 * t->h * D + 1}, keys[] = {129 * t->k * D, 5 * t->k * D + 1};
        test_fill(&s->be, q, 0), test_fill(&s->be, k, 0);
        for (int i = 0; i < 2; i++) test_set(&s->be, q, queries[i], 40), test_set(&s->be, k, keys[i], 40);
    }
    if (t->variant == CENSUS_INFINITE) test_set(&s->be, k, last / 2 / D * D, HUGE_VAL);
}

/* Two micro-batches. The threshold is a logit that none is close to: counts are compared exactly. */
static void run_logit_census(Side *s, const Trial *t) {
    Tensor q = input(s, t, t->dtype, shape4(t->b, t->t, t->h, t->d), 1);
    Tensor k = input(s, t, t->dtype, shape4(t->b, t->t, t->k, t->d), 2);
    Tensor peak = output(s, test_zeros(&s->be, DTYPE_F32, shape2(t->h, PEAKS)));
    Tensor place = output(s, test_zeros(&s->be, DTYPE_I32, shape3(t->h, PEAKS, 3)));
    Tensor above = output(s, test_zeros(&s->be, DTYPE_F32, shape1(t->h)));
    make_census_case(s, t, q, k);
    poisoned(s, t, q);
    test_fill(&s->be, peak, -HUGE_VAL);
    test_fill(&s->be, place, -1);
    test_fill(&s->be, above, 3);
    CensusParams p = {.scale = t->scale != 0 ? t->scale : 1 / sqrtf((float)t->d), .threshold = 0.04f, .first_row = 5};
    op_logit_census(&s->be, peak, place, above, q, k, p);
    p.first_row = 90;
    op_scale(&s->be, k, 1.25f);
    op_logit_census(&s->be, peak, place, above, q, k, p);
}

static void census_matches_ref(void **state) {
    (void)state;
    for (int i = 0; i < ATTENTIONS; i++)
        for (int variant = 0; variant < CENSUSES; variant++) {
            Trial t = attentions[i];
            t.variant = variant;
            compare_flags("logit_census", run_logit_census, t);
            t.scale = -0.3f;
            compare_flags("logit_census with a negative scale", run_logit_census, t);
        }
    static const Trial large[] = {{.b = 2, .t = 300, .h = 4, .k = 2, .d = 32},
                                  {.b = 1, .t = 70, .h = 2, .k = 1, .d = 264},
                                  {.b = 1, .t = 150, .h = 1, .k = 1, .d = 8, .variant = CENSUS_TIE}};
    for (int i = 0; i < 3; i++) compare_flags("logit_census of more tiles", run_logit_census, large[i]);
}

/* On cpu, and in fp32 on cuda, attention and census multiply alike: not a bit may differ. Tensor cores add in another
 * order, which shows in some units of the last place of logits below 1. */
static void census_has_the_maxima_of_attention(void **state) {
    (void)state;
    for (int i = 0; i < 2 * ATTENTIONS; i++) {
        Trial t = attentions[i / 2];
        t.dtype = i % 2 ? DTYPE_BF16 : DTYPE_F32;
        Side *s = &sides.device_under_test[t.dtype];
        Tensor q = input(s, &t, t.dtype, shape4(t.b, t.t, t.h, t.d), 1);
        Tensor k = input(s, &t, t.dtype, shape4(t.b, t.t, t.k, t.d), 2);
        Tensor out = test_zeros(&s->be, t.dtype, shape4(t.b, t.t, t.h, t.d));
        Tensor lse = test_zeros(&s->be, DTYPE_F32, shape3(t.b, t.h, t.t));
        Tensor maxima = test_zeros(&s->be, DTYPE_F32, shape2(PEAKS, t.h));
        Tensor peak = test_zeros(&s->be, DTYPE_F32, shape2(t.h, PEAKS));
        Tensor place = test_zeros(&s->be, DTYPE_I32, shape3(t.h, PEAKS, 3));
        test_fill(&s->be, maxima, -HUGE_VAL);
        test_fill(&s->be, peak, -HUGE_VAL);
        AttentionParams p = attention_params(&t);
        op_attention(&s->be, out, lse, tensor_index(maxima, 0), tensor_index(maxima, 1), q, k, k, p);
        op_logit_census(&s->be, peak, place, test_zeros(&s->be, DTYPE_F32, shape1(t.h)), q, k,
                        (CensusParams){.scale = p.scale});
        bool tensor_cores = t.dtype == DTYPE_BF16 && strcmp(sides.device, "cuda") == 0;
        for (int64_t h = 0; h < t.h; h++)
            for (int which = 0; which < PEAKS; which++) {
                double got = test_get(&s->be, peak, h * PEAKS + which);
                double expected = test_get(&s->be, maxima, which * t.h + h);
                assert_close("maximum", &got, &expected, 1, (Tolerance){.absolute = tensor_cores ? 1e-6 : 0});
            }
        test_release(&s->be);
    }
}

/* ---- mlp and loss ----------------------------------------------------------------------------------------------- */

/* Into the flat tails of the nonlinearities too. */
static Tensor wide(Side *s, Tensor x) {
    op_scale(&s->be, x, 6);
    return x;
}

/* Contiguous, but `strided` begins it in the middle of 16 bytes. */
static Tensor mlp_tensor(Side *s, const Trial *t, uint64_t seed) {
    if (!t->strided) return test_random(&s->be, t->dtype, shape2(t->n, t->i), seed);
    Tensor longer = test_random(&s->be, t->dtype, shape1(t->n * t->i + 1), seed);
    return tensor_as_2d(tensor_slice(longer, 0, 1, t->n * t->i), t->n, t->i);
}

static void run_gelu(Side *s, const Trial *t) {
    Tensor x = poisoned(s, t, wide(s, mlp_tensor(s, t, 1)));
    Tensor dout = mlp_tensor(s, t, 2);
    op_gelu(&s->be, output(s, mlp_tensor(s, t, 3)), x);
    op_gelu_grad(&s->be, output(s, t->variant ? dout : mlp_tensor(s, t, 4)), dout, x);
}

static void run_swiglu(Side *s, const Trial *t) {
    Tensor x = poisoned(s, t, wide(s, test_random(&s->be, t->dtype, shape2(t->n, 2 * t->i), 1)));
    Tensor dout = test_random(&s->be, t->dtype, shape2(t->n, t->i), 2);
    op_swiglu(&s->be, output(s, test_random(&s->be, t->dtype, shape2(t->n, t->i), 3)), x);
    op_swiglu_grad(&s->be, output(s, t->variant ? x : test_random(&s->be, t->dtype, shape2(t->n, 2 * t->i), 4)), dout,
                   x);
}

static void nonlinearities_match_ref(void **state) {
    (void)state;
    compare_matrices("gelu", run_gelu, 2);
    compare_matrices("swiglu", run_swiglu, 2);
}

static void run_cross_entropy(Side *s, const Trial *t) {
    Tensor logits = poisoned(s, t, wide(s, test_random(&s->be, t->dtype, shape2(t->n, t->i), 1)));
    Tensor targets = test_random_tokens(&s->be, shape1(t->n), 0, t->i, 2);
    if (t->optional) test_set(&s->be, targets, 0, -1);
    op_cross_entropy(&s->be, output(s, test_random(&s->be, DTYPE_F32, shape1(t->n), 3)), logits, targets);
    Tensor loss = output(s, test_random(&s->be, DTYPE_F32, shape1(t->n), 4));
    op_cross_entropy_grad(&s->be, loss, output(s, logits), targets, 0.25f);
}

static void cross_entropy_matches_ref(void **state) {
    (void)state;
    compare_matrices("cross_entropy", run_cross_entropy, 1);
}

/* ---- optimizers ------------------------------------------------------------------------------------------------- */

static Tensor state_of(Side *s, const Trial *t, uint64_t seed) {
    return input(s, t, DTYPE_F32, shape3(2, t->n, t->i), seed);
}

static Tensor copy_of(Side *s, const Trial *t, uint64_t seed) {
    return t->optional ? output(s, input(s, t, t->dtype, shape3(2, t->n, t->i), seed)) : tensor_none();
}

/* v is kept away from 0 by one step from a constant: at 0 the update's slope is 1/eps. Variants: 1 decays cautiously.
 */
static void run_adamw(Side *s, const Trial *t) {
    Tensor w = output(s, state_of(s, t, 1)), m = output(s, state_of(s, t, 2)), v = output(s, state_of(s, t, 3));
    test_fill(&s->be, v, 0.5);
    op_adamw(&s->be, w, copy_of(s, t, 4), m, v, poisoned(s, t, state_of(s, t, 5)),
             (AdamwStep){.lr = 0.1f,
                         .beta1 = 0.9f,
                         .beta2 = 0.95f,
                         .eps = 1e-8f,
                         .decay = 0.1f,
                         .correction1 = 0.1f,
                         .correction2 = 0.05f,
                         .grad_scale = 0.5f,
                         .cautious = t->variant});
}

/* Variants: 1 takes the sign. */
static void run_momentum(Side *s, const Trial *t) {
    MomentumStep step = {
        .keep = 0.95f, .add = 0.05f, .old = 0.9f, .fresh = 1.95f, .sign = t->variant, .grad_scale = 0.5f};
    Tensor u = output(s, input(s, t, t->dtype, shape3(2, t->n, t->i), 1)), m = output(s, state_of(s, t, 2));
    op_momentum(&s->be, u, m, poisoned(s, t, state_of(s, t, 3)), step);
}

/* Variants: 1 is in place, 2 reads fp32, 3 writes fp32; of 4 to 7 v has one element a row. As in
 * run_adamw v is kept away from 0. */
static void run_adapt(Side *s, const Trial *t) {
    const int variant = t->variant % 4;
    DType from = variant == 2 ? DTYPE_F32 : t->dtype, to = variant == 3 ? DTYPE_F32 : t->dtype;
    Tensor x = poisoned(s, t, input(s, t, from, shape3(2, t->n, t->i), 1));
    Tensor out = variant == 1 ? x : input(s, t, to, shape3(2, t->n, t->i), 2);
    Tensor v = input(s, t, DTYPE_F32, shape3(2, t->n, t->variant < 4 ? t->i : 1), 3);
    test_fill(&s->be, v, 0.5);
    op_adapt(&s->be, output(s, out), output(s, v), x, (AdaptStep){.beta2 = 0.95f, .eps = 1e-8f});
}

/* Variants: 1 is in place, 2 reads fp32, 3 writes fp32. */
static void run_normalize(Side *s, const Trial *t) {
    DType from = t->variant == 2 ? DTYPE_F32 : t->dtype, to = t->variant == 3 ? DTYPE_F32 : t->dtype;
    Tensor x = poisoned(s, t, input(s, t, from, shape3(2, t->n, t->i), 1));
    Tensor out = t->variant == 1 ? x : input(s, t, to, shape3(2, t->n, t->i), 2);
    op_normalize(&s->be, output(s, out), x, 1e-7f);
}

/* Variants: 1 and 3 have an update of the other dtype, 2 and 3 decay cautiously. */
static void run_apply_update(Side *s, const Trial *t) {
    DType of_update = (t->dtype == DTYPE_BF16) == (t->variant % 2 == 0) ? DTYPE_BF16 : DTYPE_F32;
    Tensor w = output(s, state_of(s, t, 1)), copy = copy_of(s, t, 2);
    op_apply_update(&s->be, w, copy, poisoned(s, t, input(s, t, of_update, shape3(2, t->n, t->i), 3)),
                    (UpdateStep){.keep = 0.9f, .step = 0.3f, .cautious = t->variant > 1});
}

static void optimizer_ops_match_ref(void **state) {
    (void)state;
    compare_matrices("adamw", run_adamw, 2);
    compare_matrices("momentum", run_momentum, 2);
    compare_matrices("adapt", run_adapt, 8);
    compare_matrices("normalize", run_normalize, 4);
    compare_matrices("apply_update", run_apply_update, 4);
}

/* ---- shapes that a GPU cuts up otherwise ------------------------------------------------------------------------ */

/* Views of rows of whole 16 bytes. */
static void aligned_views_match_ref(void **state) {
    (void)state;
    Trial t = {.n = 40, .i = 64, .aligned = true};
    compare_flags("fill", run_fill, t);
    compare_flags("scale", run_scale, t);
    t.o = 7;
    compare_flags("sum_heads", run_sum_heads, t);
    compare_flags("sum", run_sums, t);
    compare_flags("adamw", run_adamw, t);
    for (t.variant = 0; t.variant < 4; t.variant++) compare_flags("normalize", run_normalize, t);
    for (t.variant = 0; t.variant < 8; t.variant++) compare_flags("adapt", run_adapt, t);
    for (t.variant = 0; t.variant < 2; t.variant++) {
        compare_flags("apply_update", run_apply_update, t);
        compare_flags("copy", run_copy, t);
        compare_flags("copy to all heads", run_copy_to_all, t);
        compare_flags("momentum", run_momentum, t);
        compare_flags("rope", run_rope, t);
        compare_flags("rmsnorm", run_rmsnorm, t);
        compare_flags("rmsnorm_grad", run_rmsnorm_grad, t);
    }
    compare_flags("max_norm", run_max_norm, t);
}

/* Rows that a few threads share, more rows than a grid of fixed size takes at once, and rows too long for one block's
 * registers or shared memory. */
static void norms_of_short_many_or_long_rows_match_ref(void **state) {
    (void)state;
    static const Trial rows[] = {{.n = 9, .i = 16},   {.n = 520, .i = 264}, {.n = 3, .i = 101},
                                 {.n = 3, .i = 2048}, {.n = 3, .i = 2049},  {.n = 3, .i = 30000}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        compare_flags("layernorm of other rows", run_layernorm, rows[i]);
        compare_flags("layernorm_grad of other rows", run_layernorm_grad, rows[i]);
        compare_flags("rmsnorm of other rows", run_rmsnorm, rows[i]);
        compare_flags("rmsnorm_grad of other rows", run_rmsnorm_grad, rows[i]);
        compare_flags("max_norm of other rows", run_max_norm, rows[i]);
    }
}

/* Many rare tokens, whose numbers have two digits of 8 bits, and two tokens with hundreds of rows each to sum. */
static void embed_grad_of_many_tokens_matches_ref(void **state) {
    (void)state;
    compare_flags("embed_grad of rare tokens", run_embed_grad, (Trial){.n = 450, .i = 264, .o = 300});
    compare_flags("embed_grad of frequent tokens", run_embed_grad, (Trial){.n = 150, .i = 16, .o = 2});
}

static void long_rows_of_logits_and_large_sums_match_ref(void **state) {
    (void)state;
    compare_flags("cross_entropy of a large vocabulary", run_cross_entropy, (Trial){.n = 5, .i = 5003});
    compare_flags("sum of many parts", run_sums, (Trial){.n = 523, .i = 513});
}

/* ---- groups ----------------------------------------------------------------------------------------------------- */

static int open_sides(void **state) {
    (void)state;
    const char *const precisions[] = {[DTYPE_F32] = "fp32", [DTYPE_BF16] = "bf16"};
    for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        test_open(&sides.ref[dtype].be, "ref", precisions[dtype]);
        test_open(&sides.device_under_test[dtype].be, sides.device, precisions[dtype]);
        test_reserve(&sides.device_under_test[dtype].be, limits);
    }
    return 0;
}

static int close_sides(void **state) {
    (void)state;
    for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        test_close(&sides.ref[dtype].be);
        test_close(&sides.device_under_test[dtype].be);
    }
    return 0;
}

static bool is_available(const char *device) {
    Backend be;
    char note[256];
    Status status = device_open(&be, (BackendRequest){device, "auto", 2}, note, sizeof note);
    if (status.code)
        printf("%s is not tested here: %s\n", device, status.message);
    else
        backend_close(&be);
    return !status.code || !strcmp(device, "cpu");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(moving_ops_match_ref),
        cmocka_unit_test(matmul_matches_ref),
        cmocka_unit_test(matmul_symmetric_matches_ref),
        cmocka_unit_test(linear_matches_ref),
        cmocka_unit_test(norms_match_ref),
        cmocka_unit_test(embedding_and_position_match_ref),
        cmocka_unit_test(attention_matches_ref),
        cmocka_unit_test(attention_with_large_rising_logits_matches_ref),
        cmocka_unit_test(attention_of_negative_logits_matches_ref),
        cmocka_unit_test(a_nan_in_attention_reaches_no_earlier_query),
        cmocka_unit_test(attention_of_every_head_size_matches_ref),
        cmocka_unit_test(attention_with_values_of_another_size_matches_ref),
        cmocka_unit_test(census_matches_ref),
        cmocka_unit_test(census_has_the_maxima_of_attention),
        cmocka_unit_test(nonlinearities_match_ref),
        cmocka_unit_test(cross_entropy_matches_ref),
        cmocka_unit_test(optimizer_ops_match_ref),
        cmocka_unit_test(aligned_views_match_ref),
        cmocka_unit_test(norms_of_short_many_or_long_rows_match_ref),
        cmocka_unit_test(embed_grad_of_many_tokens_matches_ref),
        cmocka_unit_test(long_rows_of_logits_and_large_sums_match_ref),
    };
    int failures = 0;
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++) {
        sides.device = devices[i];
        if (is_available(devices[i]))
            failures += cmocka_run_group_tests_name(devices[i], tests, open_sides, close_sides);
    }
    return failures;
}
