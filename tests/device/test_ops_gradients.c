/* Every op with a gradient, on `ref`, against finite differences of the scalar sum(out * r), r random.
 *
 * The difference is of fourth order, (8 (L(+h) - L(-h)) - (L(+2h) - L(-2h))) / 12h. Outputs are stored in fp32, so L is
 * uncertain by about 3e-8 sqrt(elements touched) |r| ~ 3e-7 and the quotient, at h = 1/32, by 1e-5; its truncation
 * error, h^4/30 times a fifth derivative of at most about 100, is 3e-6. The tolerance is ten times their sum. A wrong
 * term shows as 0.1 or so.
 *
 * Every gradient starts at `start`: "+=" must add to it, "=" must overwrite it.
 */
#include "tests/tensors.h"

#include "ops/ops.h"

static const double step = 1.0 / 32;
static const double start = 0.5;
static const Tolerance tolerance = {.absolute = 1.5e-4, .relative = 1e-4};

enum { MAX_INPUTS = 3, MAX_STATISTICS = 3 };

/* One op at one shape. in[i] is perturbed and differentiated; grad[i] is what the op's gradient made of it. */
typedef struct Case {
    void (*forward)(struct Case *);
    Backend be;
    Tensor in[MAX_INPUTS], grad[MAX_INPUTS];
    Tensor out, r; /* r is dout */
    Tensor statistics[MAX_STATISTICS];
    Tensor tokens;
    AttentionParams attention;
} Case;

static Case *open_case(Case *c, void (*forward)(Case *)) {
    *c = (Case){.forward = forward};
    test_open(&c->be, "ref", "fp32");
    return c;
}

static void add_input(Case *c, int i, Shape shape) {
    c->in[i] = test_random(&c->be, DTYPE_F32, shape, (uint64_t)i);
    c->grad[i] = test_zeros(&c->be, DTYPE_F32, shape);
    test_fill(&c->be, c->grad[i], start);
}

static void add_strided_input(Case *c, int i, Shape shape) {
    c->in[i] = test_random_strided(&c->be, DTYPE_F32, shape, (uint64_t)i);
    c->grad[i] = test_random_strided(&c->be, DTYPE_F32, shape, 0);
    test_fill(&c->be, c->grad[i], start);
}

static void add_output(Case *c, Shape shape) {
    c->out = test_zeros(&c->be, DTYPE_F32, shape);
    c->r = test_random(&c->be, DTYPE_F32, shape, 99);
}

static void add_statistic(Case *c, int i, Shape shape) {
    c->statistics[i] = test_zeros(&c->be, DTYPE_F32, shape);
}

/* ---- finite differences ----------------------------------------------------------------------------------------- */

static double loss_at(Case *c, Tensor x, int64_t i, double value) {
    test_set(&c->be, x, i, value);
    c->forward(c);
    assert_ok(backend_sync(&c->be));
    double sum = 0;
    for (int64_t n = 0; n < tensor_numel(c->out); n++) sum += test_get(&c->be, c->out, n) * test_get(&c->be, c->r, n);
    return sum;
}

static double slope(Case *c, Tensor x, int64_t i) {
    double here = test_get(&c->be, x, i);
    double near = loss_at(c, x, i, here + step) - loss_at(c, x, i, here - step);
    double far = loss_at(c, x, i, here + 2 * step) - loss_at(c, x, i, here - 2 * step);
    test_set(&c->be, x, i, here);
    return (8 * near - far) / (12 * step);
}

typedef enum { ASSIGNED, ACCUMULATED } Written;

static void check(Case *c, const char *what, int input, Written written) {
    Tensor x = c->in[input];
    double *got = test_read(&c->be, c->grad[input]);
    double *expected = test_read(&c->be, x);
    for (int64_t i = 0; i < tensor_numel(x); i++) expected[i] = slope(c, x, i) + (written == ACCUMULATED ? start : 0);
    assert_close(what, got, expected, tensor_numel(x), tolerance);
}

/* ---- linear ----------------------------------------------------------------------------------------------------- */

static void linear_forward(Case *c) {
    op_linear(&c->be, c->out, c->in[0], c->in[1], c->in[2], tensor_none());
}

static void check_linear(bool with_bias) {
    Case *c = open_case(&(Case){0}, linear_forward);
    add_input(c, 0, shape2(5, 7));
    add_input(c, 1, shape2(3, 7));
    if (with_bias) add_input(c, 2, shape1(3));
    add_output(c, shape2(5, 3));
    op_linear_grad_input(&c->be, c->grad[0], c->r, c->in[1]);
    op_linear_grad_weight(&c->be, c->grad[1], c->grad[2], c->r, c->in[0], GRADIENT_ADD);
    check(c, "linear dx", 0, ASSIGNED);
    check(c, "linear dw", 1, ACCUMULATED);
    if (with_bias) check(c, "linear dbias", 2, ACCUMULATED);
    test_close(&c->be);
}

static void linear_has_the_gradient_of_its_forward(void **state) {
    (void)state;
    check_linear(true);
    check_linear(false);
}

/* ---- norms ------------------------------------------------------------------------------------------------------ */

static void layernorm_forward(Case *c) {
    op_layernorm(&c->be, c->out, c->statistics[0], c->statistics[1], c->in[0], c->in[1], c->in[2], 1e-5f);
}

static void check_layernorm(bool with_bias) {
    Case *c = open_case(&(Case){0}, layernorm_forward);
    add_input(c, 0, shape2(3, 7));
    add_input(c, 1, shape1(7));
    if (with_bias) add_input(c, 2, shape1(7));
    add_output(c, shape2(3, 7));
    add_statistic(c, 0, shape1(3));
    add_statistic(c, 1, shape1(3));
    c->forward(c);
    op_layernorm_grad(&c->be, c->grad[0], c->grad[1], c->grad[2], c->r, c->in[0], c->statistics[0], c->statistics[1],
                      c->in[1]);
    check(c, "layernorm dx", 0, ACCUMULATED);
    check(c, "layernorm dw", 1, ACCUMULATED);
    if (with_bias) check(c, "layernorm dbias", 2, ACCUMULATED);
    test_close(&c->be);
}

static void layernorm_has_the_gradient_of_its_forward(void **state) {
    (void)state;
    check_layernorm(true);
    check_layernorm(false);
}

static void rmsnorm_forward(Case *c) {
    op_rmsnorm(&c->be, c->out, c->statistics[0], c->in[0], c->in[1], 1e-5f);
}

static void finish_rmsnorm(Case *c, int64_t C) {
    add_input(c, 1, shape1(C));
    c->forward(c);
    op_rmsnorm_grad(&c->be, c->grad[0], c->grad[1], c->r, c->in[0], c->statistics[0], c->in[1]);
    check(c, "rmsnorm dx", 0, ACCUMULATED);
    check(c, "rmsnorm dw", 1, ACCUMULATED);
    test_close(&c->be);
}

static void rmsnorm_has_the_gradient_of_its_forward(void **state) {
    (void)state;
    Case *c = open_case(&(Case){0}, rmsnorm_forward);
    add_input(c, 0, shape2(3, 7));
    add_output(c, shape2(3, 7));
    add_statistic(c, 0, shape1(3));
    finish_rmsnorm(c, 7);
}

static void qk_norm_normalizes_each_head_of_a_strided_view(void **state) {
    (void)state;
    Case *c = open_case(&(Case){0}, rmsnorm_forward);
    add_strided_input(c, 0, shape3(3, 2, 4));
    c->out = test_random_strided(&c->be, DTYPE_F32, shape3(3, 2, 4), 5);
    c->r = test_random_strided(&c->be, DTYPE_F32, shape3(3, 2, 4), 99);
    add_statistic(c, 0, shape2(3, 2));
    finish_rmsnorm(c, 4);
}

/* ---- embedding and position ------------------------------------------------------------------------------------- */

static void embed_forward(Case *c) {
    op_embed(&c->be, c->out, c->tokens, c->in[0], c->in[1]);
}

static void check_embed(bool with_positions) {
    Case *c = open_case(&(Case){0}, embed_forward);
    add_input(c, 0, shape2(4, 3)); /* 10 tokens of 4: some embedding is used more than once */
    if (with_positions) add_input(c, 1, shape2(6, 3));
    c->tokens = test_random_tokens(&c->be, shape2(2, 5), 0, 4, 8);
    add_output(c, shape2(10, 3));
    op_embed_grad(&c->be, c->grad[0], c->grad[1], c->r, c->tokens);
    check(c, "embed dwte", 0, ACCUMULATED);
    if (with_positions) check(c, "embed dwpe", 1, ACCUMULATED);
    test_close(&c->be);
}

static void embed_has_the_gradient_of_its_forward(void **state) {
    (void)state;
    check_embed(true);
    check_embed(false);
}

static void rope_forward(Case *c) {
    op_copy(&c->be, c->out, c->in[0]);
    op_rope(&c->be, c->out, c->in[1]);
}

/* The table need not hold true cosines: both directions are linear in x for any table. */
static void rope_has_the_gradient_of_its_forward(void **state) {
    (void)state;
    Case *c = open_case(&(Case){0}, rope_forward);
    add_strided_input(c, 0, shape4(2, 3, 2, 6));
    add_input(c, 1, shape2(4, 6));
    add_output(c, shape4(2, 3, 2, 6));
    op_copy(&c->be, c->grad[0], c->r);
    op_rope_grad(&c->be, c->grad[0], c->in[1]);
    check(c, "rope dx", 0, ASSIGNED);
    test_close(&c->be);
}

/* x for all heads: what op_sum_heads is the gradient of. */
static void repeat_forward(Case *c) {
    Tensor x = c->in[0], out = c->out;
    op_copy(&c->be, out,
            (Tensor){.data = x.data,
                     .dtype = x.dtype,
                     .ndim = 3,
                     .shape = {out.shape[0], out.shape[1], out.shape[2]},
                     .stride = {x.stride[0], 0, 1}});
}

static void sum_heads_is_the_gradient_of_repeating_for_all_heads(void **state) {
    (void)state;
    Case *c = open_case(&(Case){0}, repeat_forward);
    add_strided_input(c, 0, shape2(3, 5));
    add_output(c, shape3(3, 4, 5));
    op_sum_heads(&c->be, c->grad[0], c->r);
    check(c, "sum_heads", 0, ASSIGNED);
    test_close(&c->be);
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t B, T, H, K, D, E;
} AttentionShape;

static void attention_forward(Case *c) {
    op_attention(&c->be, c->out, c->statistics[0], c->statistics[1], c->statistics[2], c->in[0], c->in[1], c->in[2],
                 c->attention);
}

static void finish_attention(Case *c, AttentionShape s, AttentionParams p) {
    c->attention = p;
    add_output(c, shape4(s.B, s.T, s.H, s.E));
    add_statistic(c, 0, shape3(s.B, s.H, s.T));
    add_statistic(c, 1, shape1(s.H));
    add_statistic(c, 2, shape1(s.H));
    c->forward(c);
    op_attention_grad(&c->be, c->grad[0], c->grad[1], c->grad[2], c->r, c->out, c->statistics[0], c->in[0], c->in[1],
                      c->in[2], p);
    check(c, "attention dq", 0, ASSIGNED);
    check(c, "attention dk", 1, ASSIGNED);
    check(c, "attention dv", 2, ASSIGNED);
    test_close(&c->be);
}

static void check_attention(AttentionShape s, AttentionParams p) {
    Case *c = open_case(&(Case){0}, attention_forward);
    add_input(c, 0, shape4(s.B, s.T, s.H, s.D));
    add_input(c, 1, shape4(s.B, s.T, s.K, s.D));
    add_input(c, 2, shape4(s.B, s.T, s.K, s.E));
    finish_attention(c, s, p);
}

static void attention_has_the_gradient_of_its_forward(void **state) {
    (void)state;
    check_attention((AttentionShape){.B = 2, .T = 5, .H = 2, .K = 2, .D = 3, .E = 3}, (AttentionParams){0.58f, 0});
    check_attention((AttentionShape){.B = 1, .T = 1, .H = 1, .K = 1, .D = 1, .E = 1}, (AttentionParams){1, 0});
}

static void attention_gives_a_shared_key_the_gradient_of_all_its_query_heads(void **state) {
    (void)state;
    check_attention((AttentionShape){.B = 1, .T = 5, .H = 6, .K = 2, .D = 3, .E = 3}, (AttentionParams){0.58f, 0});
}

static void attention_values_may_be_of_another_size_than_keys(void **state) {
    (void)state;
    check_attention((AttentionShape){.B = 1, .T = 4, .H = 2, .K = 1, .D = 3, .E = 5}, (AttentionParams){0.58f, 0});
}

/* A cap of 0.7 against logits of up to about 2: the tanh is well inside its curved part. */
static void attention_differentiates_through_the_softcap(void **state) {
    (void)state;
    check_attention((AttentionShape){.B = 1, .T = 5, .H = 2, .K = 1, .D = 3, .E = 3}, (AttentionParams){1, 0.7f});
}

/* q, k and v as views of one (B*T, (H+2K) D) matrix, as the model has them. */
static Tensor heads_of_fused(Tensor fused, AttentionShape s, int64_t first, int64_t count) {
    Tensor heads = tensor_as_4d(fused, s.B, s.T, s.H + 2 * s.K, s.D);
    return tensor_slice(heads, 2, first, count);
}

static void attention_reads_and_writes_views_of_a_fused_buffer(void **state) {
    (void)state;
    AttentionShape s = {.B = 2, .T = 4, .H = 4, .K = 2, .D = 3, .E = 3};
    Case *c = open_case(&(Case){0}, attention_forward);
    Tensor qkv = test_random(&c->be, DTYPE_F32, shape2(s.B * s.T, (s.H + 2 * s.K) * s.D), 3);
    Tensor dqkv = test_random(&c->be, DTYPE_F32, shape2(s.B * s.T, (s.H + 2 * s.K) * s.D), 4);
    int64_t first[] = {0, s.H, s.H + s.K}, count[] = {s.H, s.K, s.K};
    for (int i = 0; i < 3; i++) {
        c->in[i] = heads_of_fused(qkv, s, first[i], count[i]);
        c->grad[i] = heads_of_fused(dqkv, s, first[i], count[i]);
    }
    finish_attention(c, s, (AttentionParams){0.58f, 0});
}

/* ---- mlp -------------------------------------------------------------------------------------------------------- */

static void gelu_forward(Case *c) {
    op_gelu(&c->be, c->out, c->in[0]);
}

static void gelu_has_the_gradient_of_its_forward(void **state) {
    (void)state;
    Case *c = open_case(&(Case){0}, gelu_forward);
    add_input(c, 0, shape2(3, 7));
    op_scale(&c->be, c->in[0], 4); /* into the flat tails too */
    add_output(c, shape2(3, 7));
    op_gelu_grad(&c->be, c->grad[0], c->r, c->in[0]);
    check(c, "gelu dx", 0, ASSIGNED);
    op_copy(&c->be, c->grad[0], c->r);
    op_gelu_grad(&c->be, c->grad[0], c->grad[0], c->in[0]);
    check(c, "gelu dx in place of dout", 0, ASSIGNED);
    test_close(&c->be);
}

static void swiglu_forward(Case *c) {
    op_swiglu(&c->be, c->out, c->in[0]);
}

static void swiglu_has_the_gradient_of_its_forward(void **state) {
    (void)state;
    Case *c = open_case(&(Case){0}, swiglu_forward);
    add_input(c, 0, shape2(3, 10));
    op_scale(&c->be, c->in[0], 3);
    add_output(c, shape2(3, 5));
    op_swiglu_grad(&c->be, c->grad[0], c->r, c->in[0]);
    check(c, "swiglu dx", 0, ASSIGNED);
    op_copy(&c->be, c->grad[0], c->in[0]);
    op_swiglu_grad(&c->be, c->grad[0], c->r, c->grad[0]);
    check(c, "swiglu dx in place of x", 0, ASSIGNED);
    test_close(&c->be);
}

/* ---- loss ------------------------------------------------------------------------------------------------------- */

static void cross_entropy_forward(Case *c) {
    op_cross_entropy(&c->be, c->out, c->in[0], c->tokens);
}

static void cross_entropy_has_the_gradient_of_its_forward_and_none_for_ignored_targets(void **state) {
    (void)state;
    Case *c = open_case(&(Case){0}, cross_entropy_forward);
    add_input(c, 0, shape2(4, 6));
    c->tokens = test_random_tokens(&c->be, shape1(4), 0, 6, 1);
    test_set(&c->be, c->tokens, 1, -1);
    add_output(c, shape1(4));
    test_fill(&c->be, c->r, 0.25);
    op_copy(&c->be, c->grad[0], c->in[0]);
    op_cross_entropy_grad(&c->be, c->out, c->grad[0], c->tokens, 0.25f);
    assert_true(test_get(&c->be, c->out, 0) > 0);
    for (int64_t v = 0; v < 6; v++) assert_true(test_get(&c->be, c->grad[0], 6 + v) == 0);
    check(c, "cross_entropy dlogits", 0, ASSIGNED);
    test_close(&c->be);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_has_the_gradient_of_its_forward),
        cmocka_unit_test(layernorm_has_the_gradient_of_its_forward),
        cmocka_unit_test(rmsnorm_has_the_gradient_of_its_forward),
        cmocka_unit_test(qk_norm_normalizes_each_head_of_a_strided_view),
        cmocka_unit_test(embed_has_the_gradient_of_its_forward),
        cmocka_unit_test(rope_has_the_gradient_of_its_forward),
        cmocka_unit_test(sum_heads_is_the_gradient_of_repeating_for_all_heads),
        cmocka_unit_test(attention_has_the_gradient_of_its_forward),
        cmocka_unit_test(attention_gives_a_shared_key_the_gradient_of_all_its_query_heads),
        cmocka_unit_test(attention_values_may_be_of_another_size_than_keys),
        cmocka_unit_test(attention_differentiates_through_the_softcap),
        cmocka_unit_test(attention_reads_and_writes_views_of_a_fused_buffer),
        cmocka_unit_test(gelu_has_the_gradient_of_its_forward),
        cmocka_unit_test(swiglu_has_the_gradient_of_its_forward),
        cmocka_unit_test(cross_entropy_has_the_gradient_of_its_forward_and_none_for_ignored_targets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
