/* What the ops of ops/ops.h promise beside their gradients, on `ref`, against formulas written out here by hand. */
#include "tests/tensors.h"

#include <math.h>
#include <stdlib.h>

#include "ops/ops.h"

/* fp32 storage of values of order 1: half a unit in the last place is 6e-8. */
static const Tolerance rounding = {.absolute = 1e-7, .relative = 1e-7};
static const Tolerance exact = {0};

static Tensor nans(Backend *be, DType dtype, Shape shape) {
    Tensor t = test_zeros(be, dtype, shape);
    test_fill(be, t, (double)NAN);
    return t;
}

static void expect(Backend *be, const char *what, Tensor got, const double *expected, Tolerance tolerance) {
    assert_ok(backend_sync(be));
    assert_close(what, test_read(be, got), expected, tensor_numel(got), tolerance);
}

/* ---- moving ----------------------------------------------------------------------------------------------------- */

static void fill_and_scale_stay_inside_their_view(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor whole = test_zeros(&be, DTYPE_F32, shape2(3, 4));
    Tensor view = tensor_slice(tensor_slice(whole, 0, 1, 2), 1, 1, 2);
    op_fill(&be, whole, 1);
    op_fill(&be, view, 3);
    op_scale(&be, view, 2);
    expect(&be, "whole", whole, (double[]){1, 1, 1, 1, 1, 6, 6, 1, 1, 6, 6, 1}, exact);
    test_close(&be);
}

static void copy_converts_the_dtype_and_rounds_to_even(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_zeros(&be, DTYPE_F32, shape1(3)), y = test_zeros(&be, DTYPE_BF16, shape1(3));
    test_write(&be, x, (double[]){1 + 1.0 / 256, 1 + 3.0 / 256, -HUGE_VAL});
    op_copy(&be, y, x);
    expect(&be, "bf16", y, (double[]){1, 1 + 4.0 / 256, -HUGE_VAL}, exact);
    op_copy(&be, x, y);
    expect(&be, "back", x, (double[]){1, 1 + 4.0 / 256, -HUGE_VAL}, exact);
    test_close(&be);
}

static void copy_repeats_a_source_with_a_stride_of_0(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_zeros(&be, DTYPE_F32, shape2(2, 2)), y = nans(&be, DTYPE_BF16, shape3(2, 3, 2));
    test_write(&be, x, (double[]){1, 2, 3, 4});
    op_copy(&be, y, (Tensor){x.data, DTYPE_F32, 3, {2, 3, 2}, {2, 0, 1}});
    expect(&be, "repeated", y, (double[]){1, 2, 1, 2, 1, 2, 3, 4, 3, 4, 3, 4}, exact);
    test_close(&be);
}

/* 256 + 1 + 1 + ... in bf16 would stay at 256: heads add up before they are rounded. */
static void sum_heads_overwrites_and_rounds_once(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_zeros(&be, DTYPE_BF16, shape3(2, 3, 2)), out = nans(&be, DTYPE_BF16, shape2(2, 5));
    test_write(&be, x, (double[]){256, 1, 1, 2, 1, 3, -1, 0, 0, 0, 0.5, 8});
    op_sum_heads(&be, tensor_slice(out, 1, 2, 2), x);
    const double nan_value = (double)NAN;
    expect(&be, "sums in a view", out,
           (double[]){nan_value, nan_value, 258, 6, nan_value, nan_value, nan_value, -0.5, 8, nan_value}, exact);
    test_close(&be);
}

static void sums_add_to_the_total(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_random_strided(&be, DTYPE_BF16, shape2(2, 2), 1), total = test_zeros(&be, DTYPE_F32, shape1(1));
    test_write(&be, x, (double[]){1, 2, -3, 5});
    test_fill(&be, total, 100);
    op_sum(&be, total, x);
    expect(&be, "sum", total, (double[]){105}, exact);
    op_sum_squares(&be, total, x);
    expect(&be, "sum of squares", total, (double[]){144}, exact);
    test_close(&be);
}

/* ---- matrix products -------------------------------------------------------------------------------------------- */

enum { P = 2, N = 3, K = 5, M = 4 };

static Tensor stored_transposed_if(Backend *be, bool transposed, DType dtype, int64_t rows, int64_t columns) {
    if (!transposed) return test_random_strided(be, dtype, shape3(P, rows, columns), 1);
    return tensor_transpose(test_random_strided(be, dtype, shape3(P, columns, rows), 2));
}

static void check_product(DType dtype, bool transpose_a, bool transpose_b) {
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor a = stored_transposed_if(&be, transpose_a, dtype, N, K);
    Tensor b = stored_transposed_if(&be, transpose_b, dtype, K, M);
    Tensor addend = test_random(&be, DTYPE_F32, shape3(P, N, M), 3), out = nans(&be, DTYPE_F32, shape3(P, N, M));
    const double *x = test_read(&be, a), *y = test_read(&be, b);
    double *expected = test_read(&be, addend);
    for (int i = 0; i < P * N * M; i++) {
        int p = i / (N * M), n = i / M % N, m = i % M;
        double sum = 0;
        for (int k = 0; k < K; k++) sum += x[(p * N + n) * K + k] * y[(p * K + k) * M + m];
        expected[i] = 1.5 * sum - 0.25 * expected[i];
    }
    op_matmul(&be, out, a, b, addend, (MatmulScale){.alpha = 1.5f, .beta = -0.25f});
    expect(&be, "product", out, expected, rounding);
    op_matmul(&be, addend, a, b, addend, (MatmulScale){.alpha = 1.5f, .beta = -0.25f});
    expect(&be, "product over its addend", addend, expected, rounding);
    test_close(&be);
}

static void matmul_takes_transposed_views_in_both_dtypes(void **state) {
    (void)state;
    for (int i = 0; i < 8; i++) check_product(i & 4 ? DTYPE_BF16 : DTYPE_F32, i & 1, i & 2);
}

static void matmul_without_an_addend_overwrites(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor a = test_zeros(&be, DTYPE_BF16, shape2(1, 2)), b = test_zeros(&be, DTYPE_BF16, shape2(2, 1));
    test_write(&be, a, (double[]){2, 3});
    test_write(&be, b, (double[]){5, 7});
    Tensor out = nans(&be, DTYPE_BF16, shape2(1, 1));
    op_matmul(&be, out, a, b, tensor_none(), (MatmulScale){.alpha = 1, .beta = 1});
    expect(&be, "product", out, (double[]){31}, exact);
    test_close(&be);
}

/* ---- norms, position, loss -------------------------------------------------------------------------------------- */

static void layernorm_keeps_mean_and_rstd(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_zeros(&be, DTYPE_F32, shape2(1, 4)), w = test_zeros(&be, DTYPE_F32, shape1(4));
    Tensor out = nans(&be, DTYPE_F32, shape2(1, 4)), mean = nans(&be, DTYPE_F32, shape1(1));
    Tensor rstd = nans(&be, DTYPE_F32, shape1(1)), bias = test_zeros(&be, DTYPE_F32, shape1(4));
    test_write(&be, x, (double[]){1, 3, 5, 7}); /* mean 4, variance 5 */
    test_write(&be, w, (double[]){1, 2, 1, 1});
    test_write(&be, bias, (double[]){0, 0, 10, 0});
    op_layernorm(&be, out, mean, rstd, x, w, bias, 0.25f);
    double r = 1 / sqrt(5.25);
    expect(&be, "mean", mean, (double[]){4}, exact);
    expect(&be, "rstd", rstd, (double[]){r}, rounding);
    expect(&be, "out", out, (double[]){-3 * r, -2 * r, r + 10, 3 * r}, rounding);
    test_close(&be);
}

static void rmsnorm_does_not_subtract_the_mean(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_zeros(&be, DTYPE_F32, shape2(1, 2)), w = test_zeros(&be, DTYPE_F32, shape1(2));
    Tensor out = nans(&be, DTYPE_F32, shape2(1, 2)), rstd = nans(&be, DTYPE_F32, shape1(1));
    test_write(&be, x, (double[]){3, 4}); /* mean square 12.5 */
    test_write(&be, w, (double[]){1, 2});
    op_rmsnorm(&be, out, rstd, x, w, 0.5f);
    double r = 1 / sqrt(13);
    expect(&be, "rstd", rstd, (double[]){r}, rounding);
    expect(&be, "out", out, (double[]){3 * r, 8 * r}, rounding);
    test_close(&be);
}

static void rope_turns_pairs_of_halves_and_its_gradient_turns_them_back(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_zeros(&be, DTYPE_F32, shape4(1, 2, 1, 4)), table = test_zeros(&be, DTYPE_F32, shape2(2, 4));
    const double before[] = {1, 2, 3, 4, 1, 2, 3, 4};
    test_write(&be, x, before);
    test_write(&be, table, (double[]){1, 1, 0, 0, 0, 0.6, 1, 0.8}); /* position 1: a quarter turn, and (3,4)/5 */
    op_rope(&be, x, table);
    expect(&be, "rope", x, (double[]){1, 2, 3, 4, -3, 2 * 0.6 - 4 * 0.8, 1, 4 * 0.6 + 2 * 0.8},
           (Tolerance){.absolute = 1e-6});
    op_rope_grad(&be, x, table);
    expect(&be, "rope and back", x, before, (Tolerance){.absolute = 1e-6});
    test_close(&be);
}

static void cross_entropy_survives_huge_logits(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor logits = test_zeros(&be, DTYPE_F32, shape2(2, 3)), targets = test_zeros(&be, DTYPE_I32, shape1(2));
    Tensor loss = nans(&be, DTYPE_F32, shape1(2));
    test_write(&be, logits, (double[]){1e4, 1e4, -1e30, 0, 1e6, 0});
    op_cross_entropy_grad(&be, loss, logits, targets, 0.5f);
    expect(&be, "loss", loss, (double[]){log(2), 1e6}, rounding);
    expect(&be, "gradient", logits, (double[]){-0.25, 0.25, 0, -0.5, 0.5, 0}, rounding);
    test_close(&be);
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

typedef struct {
    Backend be;
    Tensor q, k, v, out, lse, max_logit, max_abs;
} Attention;

enum { B = 2, T = 6, H = 4, KEYS = 2, D = 3 };

static Attention *open_attention(Attention *a) {
    Backend *be = &a->be;
    test_open(be, "ref", "fp32");
    a->q = test_random(be, DTYPE_F32, shape4(B, T, H, D), 1);
    a->k = test_random(be, DTYPE_F32, shape4(B, T, KEYS, D), 2);
    a->v = test_random(be, DTYPE_F32, shape4(B, T, KEYS, D), 3);
    a->out = nans(be, DTYPE_F32, shape4(B, T, H, D));
    a->lse = nans(be, DTYPE_F32, shape3(B, H, T));
    a->max_logit = test_zeros(be, DTYPE_F32, shape1(H));
    a->max_abs = test_zeros(be, DTYPE_F32, shape1(H));
    test_fill(be, a->max_logit, -HUGE_VAL);
    return a;
}

static void attend(Attention *a, float softcap) {
    op_attention(&a->be, a->out, a->lse, a->max_logit, a->max_abs, a->q, a->k, a->v,
                 (AttentionParams){.scale = 0.5f, .softcap = softcap});
}

/* The logit of query i and key j <= i of batch b and query head h, before the softcap. */
static double logit(const double *q, const double *k, int b, int h, int i, int j) {
    double sum = 0;
    for (int d = 0; d < D; d++)
        sum += q[((b * T + i) * H + h) * D + d] * k[((b * T + j) * KEYS + h / (H / KEYS)) * D + d];
    return 0.5 * sum;
}

static void brute_force_maxima(Attention *a, double *max_logit, double *max_abs) {
    const double *q = test_read(&a->be, a->q), *k = test_read(&a->be, a->k);
    for (int h = 0; h < H; h++) {
        max_logit[h] = -HUGE_VAL, max_abs[h] = 0;
        for (int b = 0; b < B; b++)
            for (int i = 0; i < T; i++)
                for (int j = 0; j <= i; j++) {
                    double s = logit(q, k, b, h, i, j);
                    max_logit[h] = fmax(max_logit[h], s);
                    max_abs[h] = fmax(max_abs[h], fabs(s));
                }
    }
}

static void attention_is_a_causal_softmax_over_capped_logits(void **state) {
    (void)state;
    Attention *a = open_attention(&(Attention){0});
    attend(a, 0.3f);
    const double *q = test_read(&a->be, a->q), *k = test_read(&a->be, a->k), *v = test_read(&a->be, a->v);
    double out[B * T * H * D] = {0}, lse[B * H * T];
    for (int row = 0; row < B * H * T; row++) {
        int b = row / (H * T), h = row / T % H, i = row % T;
        double p[T], sum = 0;
        for (int j = 0; j <= i; j++) sum += p[j] = exp((double)0.3f * tanh(logit(q, k, b, h, i, j) / (double)0.3f));
        for (int j = 0; j <= i; j++)
            for (int d = 0; d < D; d++)
                out[((b * T + i) * H + h) * D + d] += p[j] / sum * v[((b * T + j) * KEYS + h / (H / KEYS)) * D + d];
        lse[row] = log(sum);
    }
    expect(&a->be, "out", a->out, out, rounding);
    expect(&a->be, "lse", a->lse, lse, rounding);
    test_close(&a->be);
}

static void max_logit_is_the_largest_over_batch_and_causal_pairs_before_the_softcap(void **state) {
    (void)state;
    Attention *a = open_attention(&(Attention){0});
    double max_logit[H], max_abs[H];
    brute_force_maxima(a, max_logit, max_abs);
    attend(a, 0.01f);
    expect(&a->be, "max_logit", a->max_logit, max_logit, rounding);
    expect(&a->be, "max_abs", a->max_abs, max_abs, rounding);
    test_close(&a->be);
}

static void max_logit_can_be_negative(void **state) {
    (void)state;
    Attention *a = open_attention(&(Attention){0});
    test_fill(&a->be, a->q, 1);
    test_fill(&a->be, a->k, -1);
    attend(a, 0);
    expect(&a->be, "max_logit", a->max_logit, (double[]){-1.5, -1.5, -1.5, -1.5}, exact);
    expect(&a->be, "max_abs", a->max_abs, (double[]){1.5, 1.5, 1.5, 1.5}, exact);
    test_close(&a->be);
}

static void max_logit_runs_on_from_what_it_holds(void **state) {
    (void)state;
    Attention *a = open_attention(&(Attention){0});
    double max_logit[H], max_abs[H];
    brute_force_maxima(a, max_logit, max_abs);
    test_set(&a->be, a->max_logit, 1, 50);
    test_set(&a->be, a->max_abs, 2, 60);
    max_logit[1] = 50, max_abs[2] = 60;
    attend(a, 0);
    expect(&a->be, "max_logit", a->max_logit, max_logit, rounding);
    expect(&a->be, "max_abs", a->max_abs, max_abs, rounding);
    test_close(&a->be);
}

/* The NaN is in the first query of head 1: every later logit of the head is finite, and must not hide it. */
static void a_nan_logit_makes_its_heads_maximum_nan_for_good(void **state) {
    (void)state;
    Attention *a = open_attention(&(Attention){0});
    test_set(&a->be, a->q, D, (double)NAN);
    attend(a, 0);
    test_set(&a->be, a->q, D, 0);
    attend(a, 0);
    for (int h = 0; h < H; h++) {
        assert_int_equal(isnan(test_get(&a->be, a->max_logit, h)) != 0, h == 1);
        assert_int_equal(isnan(test_get(&a->be, a->max_abs, h)) != 0, h == 1);
    }
    test_close(&a->be);
}

/* ---- census ----------------------------------------------------------------------------------------------------- */

typedef struct {
    Backend be;
    Tensor q, k, peak, place, above;
} Census;

/* One head of size 1 and a scale of 1: the logit of (b, i, j) is q[b][i] k[b][j]. */
static Census *open_census(Census *c, int64_t rows, int64_t context, const double *q, const double *k) {
    Backend *be = &c->be;
    test_open(be, "ref", "fp32");
    c->q = test_zeros(be, DTYPE_F32, shape4(rows, context, 1, 1));
    c->k = test_zeros(be, DTYPE_F32, shape4(rows, context, 1, 1));
    c->peak = test_zeros(be, DTYPE_F32, shape2(1, PEAKS));
    c->place = test_zeros(be, DTYPE_I32, shape3(1, PEAKS, 3));
    c->above = test_zeros(be, DTYPE_F32, shape1(1));
    test_fill(be, c->peak, -HUGE_VAL);
    test_fill(be, c->place, -1);
    test_write(be, c->q, q);
    test_write(be, c->k, k);
    return c;
}

static void take_census(Census *c, int64_t first_row) {
    op_logit_census(&c->be, c->peak, c->place, c->above, c->q, c->k,
                    (CensusParams){.scale = 1, .threshold = 4, .first_row = first_row});
}

static void expect_census(Census *c, const double *peak, const double *place, double above) {
    expect(&c->be, "peak", c->peak, peak, exact);
    expect(&c->be, "place", c->place, place, exact);
    expect(&c->be, "above", c->above, &above, exact);
}

static void census_finds_the_largest_logits_that_are_seen_and_counts_those_beyond_the_threshold(void **state) {
    (void)state;
    /* rows of logits: -9 | 3 6 | -4 -8 4, while -18 and 9 are not seen; then 1 | 1 1 | 5 5 5 */
    Census *c = open_census(&(Census){0}, 2, 3, (double[]){-9, 3, -4, 1, 1, 5}, (double[]){1, 2, -1, 1, 1, 1});
    take_census(c, 10);
    expect_census(c, (double[]){6, 9}, (double[]){10, 1, 1, 10, 0, 0}, 4); /* 4 itself is not beyond 4 */
    test_close(&c->be);
}

static void census_keeps_the_first_of_equal_logits_and_runs_on(void **state) {
    (void)state;
    Census *c = open_census(&(Census){0}, 2, 2, (double[]){1, 1, 1, 1}, (double[]){-3, 3, 3, 3});
    take_census(c, 0);
    expect_census(c, (double[]){3, 3}, (double[]){0, 1, 1, 0, 0, 0}, 0);
    take_census(c, 2);
    expect_census(c, (double[]){3, 3}, (double[]){0, 1, 1, 0, 0, 0}, 0);
    test_set(&c->be, c->k, 2, -3.5);
    take_census(c, 4);
    expect_census(c, (double[]){3, 3.5}, (double[]){0, 1, 1, 5, 0, 0}, 0);
    test_fill(&c->be, c->q, 2);
    take_census(c, 6);
    expect_census(c, (double[]){6, 7}, (double[]){6, 1, 1, 7, 0, 0}, 2);
    test_close(&c->be);
}

static void census_tells_where_the_first_nan_is_for_good(void **state) {
    (void)state;
    Census *c = open_census(&(Census){0}, 1, 3, (double[]){1, 1, (double)NAN}, (double[]){50, (double)NAN, 1});
    take_census(c, 3);
    expect_census(c, (double[]){(double)NAN, (double)NAN}, (double[]){3, 1, 1, 3, 1, 1}, 2);
    test_fill(&c->be, c->q, HUGE_VAL);
    take_census(c, 4);
    expect_census(c, (double[]){(double)NAN, (double)NAN}, (double[]){3, 1, 1, 3, 1, 1}, 6);
    test_close(&c->be);
}

static void census_of_negative_and_of_infinite_logits(void **state) {
    (void)state;
    Census *c = open_census(&(Census){0}, 1, 2, (double[]){1, 1}, (double[]){-HUGE_VAL, -HUGE_VAL});
    take_census(c, 0);
    expect_census(c, (double[]){-HUGE_VAL, HUGE_VAL}, (double[]){-1, -1, -1, 0, 0, 0}, 0);
    test_write(&c->be, c->k, (double[]){-7, -5});
    take_census(c, 1);
    expect_census(c, (double[]){-5, HUGE_VAL}, (double[]){1, 1, 1, 0, 0, 0}, 0);
    test_close(&c->be);
}

static void max_norm_is_the_longest_row_and_runs_on(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_random_strided(&be, DTYPE_BF16, shape2(3, 2), 1), max = test_zeros(&be, DTYPE_F32, shape1(1));
    test_write(&be, x, (double[]){1, 1, -3, 4, 0, 4.5});
    op_max_norm(&be, max, x);
    expect(&be, "max", max, (double[]){5}, exact);
    op_scale(&be, x, 0.5f);
    op_max_norm(&be, max, x);
    expect(&be, "max", max, (double[]){5}, exact);
    test_set(&be, x, 0, (double)NAN);
    op_max_norm(&be, max, x);
    test_set(&be, x, 0, 100);
    op_max_norm(&be, max, x);
    expect(&be, "max", max, (double[]){(double)NAN}, exact);
    test_close(&be);
}

/* ---- optimizers ------------------------------------------------------------------------------------------------- */

static void adamw_follows_the_paper_over_three_steps(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    const double lr = 0.01, beta1 = 0.75, beta2 = 0.875, eps = 0.125, decay = 0.5, clip = 0.5;
    Tensor w = test_random_strided(&be, DTYPE_F32, shape2(2, 3), 1), copy = test_zeros(&be, DTYPE_BF16, shape2(2, 3));
    Tensor m = test_zeros(&be, DTYPE_F32, shape2(2, 3)), v = test_zeros(&be, DTYPE_F32, shape2(2, 3));
    double *x = test_read(&be, w), first[6] = {0}, second[6] = {0};
    for (int t = 1; t <= 3; t++) {
        Tensor g = test_random(&be, DTYPE_F32, shape2(2, 3), (uint64_t)(10 + t));
        const double *gradient = test_read(&be, g);
        double c1 = 1 - pow(beta1, t), c2 = 1 - pow(beta2, t);
        for (int i = 0; i < 6; i++) {
            double clipped = clip * gradient[i];
            first[i] = beta1 * first[i] + (1 - beta1) * clipped;
            second[i] = beta2 * second[i] + (1 - beta2) * clipped * clipped;
            x[i] = x[i] - lr * decay * x[i] - lr * (first[i] / c1) / (sqrt(second[i] / c2) + eps);
        }
        op_adamw(&be, w, copy, m, v, g,
                 (AdamwStep){.lr = (float)lr,
                             .beta1 = (float)beta1,
                             .beta2 = (float)beta2,
                             .eps = (float)eps,
                             .decay = (float)decay,
                             .correction1 = (float)c1,
                             .correction2 = (float)c2,
                             .grad_scale = (float)clip});
    }
    expect(&be, "w", w, x, (Tolerance){.absolute = 3e-7}); /* three roundings to fp32 */
    expect(&be, "m", m, first, rounding);
    expect(&be, "v", v, second, rounding);
    Tensor rounded = test_zeros(&be, DTYPE_BF16, shape2(2, 3));
    op_copy(&be, rounded, w);
    expect(&be, "w_copy", copy, test_read(&be, rounded), exact);
    test_close(&be);
}

static void check_momentum(MomentumStep step, double expected_m, double expected_u) {
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor u = nans(&be, DTYPE_BF16, shape1(1)), m = test_zeros(&be, DTYPE_F32, shape1(1));
    Tensor g = test_zeros(&be, DTYPE_F32, shape1(1));
    test_fill(&be, m, 8);
    test_fill(&be, g, 4);
    step.grad_scale = 0.5f;
    op_momentum(&be, u, m, g, step);
    expect(&be, "m", m, &expected_m, exact);
    expect(&be, "u", u, &expected_u, exact);
    test_close(&be);
}

/* m = 8, g' = 2: all results are exact in bf16. */
static void momentum_is_two_linear_forms_of_the_old_one_and_the_gradient(void **state) {
    (void)state;
    check_momentum((MomentumStep){.keep = 0.75f, .add = 1, .old = 0.75f, .fresh = 1}, 8, 8);
    check_momentum((MomentumStep){.keep = 0.75f, .add = 0.25f, .old = 0.5f, .fresh = 3}, 6.5, 10);
    check_momentum((MomentumStep){.keep = 0.75f, .add = 1, .old = 0.5f, .fresh = -3, .sign = true}, 8, -1);
    check_momentum((MomentumStep){.keep = 0, .add = -1, .old = 0.5f, .fresh = 1, .sign = true}, -2, 1);
}

static void a_sign_keeps_zero_and_nan(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor u = nans(&be, DTYPE_F32, shape1(4)), m = test_zeros(&be, DTYPE_F32, shape1(4));
    Tensor g = test_zeros(&be, DTYPE_F32, shape1(4));
    test_write(&be, g, (double[]){-1e-30, 0, 7, (double)NAN});
    op_momentum(&be, u, m, g, (MomentumStep){.fresh = 1, .sign = true, .grad_scale = 1});
    expect(&be, "u", u, (double[]){-1, 0, 1, (double)NAN}, exact);
    test_close(&be);
}

/* x = (3 4 0 -1): the mean of squares is 6.5. */
static void adapt_divides_by_the_root_of_a_second_moment_of_a_row_or_of_elements(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_random_strided(&be, DTYPE_F32, shape2(2, 4), 1), out = nans(&be, DTYPE_F32, shape2(2, 4));
    Tensor rows = test_random_strided(&be, DTYPE_F32, shape2(2, 1), 2), all = test_zeros(&be, DTYPE_F32, shape2(2, 4));
    test_write(&be, x, (double[]){3, 4, 0, -1, 0, 0, 0, 0});
    test_write(&be, rows, (double[]){8, 0});
    op_adapt(&be, out, rows, x, (AdaptStep){.beta2 = 0.75f, .eps = 0.5f});
    const double root = sqrt(6 + 6.5 / 4) + 0.5;
    expect(&be, "v of rows", rows, (double[]){6 + 6.5 / 4, 0}, exact);
    expect(&be, "by rows", out, (double[]){3 / root, 4 / root, 0, -1 / root, 0, 0, 0, 0}, rounding);
    test_fill(&be, all, 4);
    op_adapt(&be, x, all, x, (AdaptStep){.beta2 = 0.75f, .eps = 0.5f});
    const double v[] = {3 + 9. / 4, 3 + 16. / 4, 3, 3 + 1. / 4, 3, 3, 3, 3};
    double expected[8] = {3, 4, 0, -1, 0, 0, 0, 0};
    for (int i = 0; i < 8; i++) expected[i] /= sqrt(v[i]) + 0.5;
    expect(&be, "v of elements", all, v, exact);
    expect(&be, "by elements, in place", x, expected, rounding);
    test_close(&be);
}

static void normalize_divides_each_matrix_of_a_batch_by_its_own_norm(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_random_strided(&be, DTYPE_F32, shape3(3, 1, 2), 1), out = nans(&be, DTYPE_F32, shape3(3, 1, 2));
    const double values[] = {3, 4, 6, 8, 0, 0}, expected[] = {0.5, 4.0 / 6, 6.0 / 11, 8.0 / 11, 0, 0};
    test_write(&be, x, values);
    op_normalize(&be, out, x, 1);
    expect(&be, "normalize", out, expected, rounding);
    op_normalize(&be, x, x, 1);
    expect(&be, "normalize in place", x, expected, rounding);
    test_close(&be);
}

static void apply_update_shrinks_steps_and_refreshes_the_copy(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor w = test_random_strided(&be, DTYPE_F32, shape2(1, 2), 1), copy = nans(&be, DTYPE_BF16, shape2(1, 2));
    Tensor update = test_zeros(&be, DTYPE_BF16, shape2(1, 2));
    test_write(&be, w, (double[]){1, 2.001953125});
    test_write(&be, update, (double[]){2, 0});
    op_apply_update(&be, w, copy, update, (UpdateStep){.keep = 0.5f, .step = 0.25f});
    expect(&be, "w", w, (double[]){0, 1.0009765625}, exact);
    expect(&be, "w_copy", copy, (double[]){0, 1}, exact);
    op_apply_update(&be, w, tensor_none(), update, (UpdateStep){.keep = 1, .step = -1});
    expect(&be, "w without a copy", w, (double[]){2, 1.0009765625}, exact);
    test_close(&be);
}

/* One sign, two signs, and zeros, which count as one sign. */
static void cautious_decay_spares_weights_that_the_update_pushes_outwards(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor w = test_zeros(&be, DTYPE_F32, shape1(6)), update = test_zeros(&be, DTYPE_F32, shape1(6));
    test_write(&be, w, (double[]){4, 4, -4, -4, 0, 4});
    test_write(&be, update, (double[]){2, -2, -2, 2, 2, 0});
    op_apply_update(&be, w, tensor_none(), update, (UpdateStep){.keep = 0.5f, .step = 0.25f, .cautious = true});
    expect(&be, "w", w, (double[]){1.5, 4.5, -1.5, -4.5, -0.5, 2}, exact);

    const AdamwStep step = {.lr = 0.5f,
                            .beta1 = 0,
                            .beta2 = 0,
                            .eps = 0,
                            .decay = 1,
                            .correction1 = 1,
                            .correction2 = 1,
                            .grad_scale = 1,
                            .cautious = true};
    Tensor m = test_zeros(&be, DTYPE_F32, shape1(4)), v = test_zeros(&be, DTYPE_F32, shape1(4));
    Tensor four = test_zeros(&be, DTYPE_F32, shape1(4)), g = test_zeros(&be, DTYPE_F32, shape1(4));
    test_write(&be, four, (double[]){4, 4, -4, -4});
    test_write(&be, g, (double[]){3, -3, -3, 3}); /* updates of +1 and -1 */
    op_adamw(&be, four, tensor_none(), m, v, g, step);
    expect(&be, "w of adamw", four, (double[]){1.5, 4.5, -1.5, -4.5}, exact);
    test_close(&be);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fill_and_scale_stay_inside_their_view),
        cmocka_unit_test(copy_converts_the_dtype_and_rounds_to_even),
        cmocka_unit_test(copy_repeats_a_source_with_a_stride_of_0),
        cmocka_unit_test(sum_heads_overwrites_and_rounds_once),
        cmocka_unit_test(sums_add_to_the_total),
        cmocka_unit_test(matmul_takes_transposed_views_in_both_dtypes),
        cmocka_unit_test(matmul_without_an_addend_overwrites),
        cmocka_unit_test(layernorm_keeps_mean_and_rstd),
        cmocka_unit_test(rmsnorm_does_not_subtract_the_mean),
        cmocka_unit_test(rope_turns_pairs_of_halves_and_its_gradient_turns_them_back),
        cmocka_unit_test(cross_entropy_survives_huge_logits),
        cmocka_unit_test(attention_is_a_causal_softmax_over_capped_logits),
        cmocka_unit_test(max_logit_is_the_largest_over_batch_and_causal_pairs_before_the_softcap),
        cmocka_unit_test(max_logit_can_be_negative),
        cmocka_unit_test(max_logit_runs_on_from_what_it_holds),
        cmocka_unit_test(a_nan_logit_makes_its_heads_maximum_nan_for_good),
        cmocka_unit_test(census_finds_the_largest_logits_that_are_seen_and_counts_those_beyond_the_threshold),
        cmocka_unit_test(census_keeps_the_first_of_equal_logits_and_runs_on),
        cmocka_unit_test(census_tells_where_the_first_nan_is_for_good),
        cmocka_unit_test(census_of_negative_and_of_infinite_logits),
        cmocka_unit_test(max_norm_is_the_longest_row_and_runs_on),
        cmocka_unit_test(adamw_follows_the_paper_over_three_steps),
        cmocka_unit_test(momentum_is_two_linear_forms_of_the_old_one_and_the_gradient),
        cmocka_unit_test(a_sign_keeps_zero_and_nan),
        cmocka_unit_test(adapt_divides_by_the_root_of_a_second_moment_of_a_row_or_of_elements),
        cmocka_unit_test(normalize_divides_each_matrix_of_a_batch_by_its_own_norm),
        cmocka_unit_test(apply_update_shrinks_steps_and_refreshes_the_copy),
        cmocka_unit_test(cautious_decay_spares_weights_that_the_update_pushes_outwards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
