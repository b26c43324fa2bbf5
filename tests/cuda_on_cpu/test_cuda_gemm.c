/* How cuda/gemm.cu uses cublasLt: which epilogue for which op, plans made once, and the ways without an epilogue,
 * against `ref`. That every op computes the right thing over all shapes is tests/device/test_ops_backends.c's affair.
 */
#include "tests/tensors.h"

#include <stdlib.h>

#include <cublasLt.h>

#include "ops/ops.h"
#include "tests/cuda_on_cpu/control.h"
#include "tests/cuda_on_cpu/cublaslt.h"

static const OpLimits limits = {.width = 128, .vocab = 128, .batch = 1, .context = 1, .heads = 1, .head_size = 8};

/* As in tests/device/test_ops_backends.c, and what rounding a bias and the input of gelu adds. */
static const Tolerance tolerance = {.absolute = 1.13 / 512 + 1e-4, .relative = 1.0 / 128};

typedef struct {
    Backend be;
    Tensor out, pre, dpre, dw, dbias; /* results */
} Side;

static void open_side(Side *s, const char *device) {
    test_open(&s->be, device, "bf16");
    test_reserve(&s->be, limits);
}

/* ---- epilogues --------------------------------------------------------------------------------------------------- */

/* A layer of rows that are whole 16 bytes, forward and backward. */
static void run_layer(Side *s) {
    enum { N = 24, I = 72, O = 40 };
    Backend *be = &s->be;
    Tensor x = test_random(be, DTYPE_BF16, shape2(N, I), 1), w = test_random(be, DTYPE_BF16, shape2(O, I), 2);
    Tensor bias = test_random(be, DTYPE_F32, shape1(O), 3), dout = test_random(be, DTYPE_BF16, shape2(N, O), 4);
    s->out = test_random(be, DTYPE_BF16, shape2(N, O), 5), s->pre = test_random(be, DTYPE_BF16, shape2(N, O), 6);
    s->dpre = test_random(be, DTYPE_BF16, shape2(N, I), 7);
    s->dw = test_random(be, DTYPE_F32, shape2(O, I), 8), s->dbias = test_random(be, DTYPE_F32, shape1(O), 9);
    op_linear_gelu(be, s->out, s->pre, x, w, bias);
    op_linear(be, s->out, x, w, bias, s->out);
    op_linear_gelu_grad(be, s->dpre, dout, w, x);
    op_linear_grad_weight(be, s->dw, s->dbias, dout, x, GRADIENT_ADD);
}

static void assert_layers_agree(Side *got, Side *expected) {
    const Tolerance sums = {.absolute = 2e-5, .relative = 2e-5};
    assert_tensors_close("pre", &got->be, got->pre, &expected->be, expected->pre, tolerance);
    assert_tensors_close("out", &got->be, got->out, &expected->be, expected->out,
                         (Tolerance){2 * tolerance.absolute, 2 * tolerance.relative});
    assert_tensors_close("dpre", &got->be, got->dpre, &expected->be, expected->dpre, tolerance);
    assert_tensors_close("dw", &got->be, got->dw, &expected->be, expected->dw, sums);
    assert_tensors_close("dbias", &got->be, got->dbias, &expected->be, expected->dbias, sums);
}

typedef struct {
    cublasLtEpilogue_t epilogue;
    int64_t products; /* of run_layer */
} Expected;

static void assert_layer_uses(int capability, const Expected *expected, int count) {
    Side ref, cuda;
    int64_t before[8];
    cuda_on_cpu.capability = capability;
    open_side(&ref, "ref"), open_side(&cuda, "cuda");
    for (int i = 0; i < count; i++) before[i] = cublaslt_products((int)expected[i].epilogue);
    run_layer(&ref), run_layer(&cuda);
    assert_layers_agree(&cuda, &ref);
    for (int i = 0; i < count; i++)
        assert_int_equal(cublaslt_products((int)expected[i].epilogue) - before[i], expected[i].products);
    test_close(&ref.be), test_close(&cuda.be);
    cuda_on_cpu.capability = 90;
}

static void from_sm_90_on_every_op_is_one_product(void **state) {
    (void)state;
    const Expected expected[] = {
        {CUBLASLT_EPILOGUE_GELU_AUX_BIAS, 1}, {CUBLASLT_EPILOGUE_BIAS, 1},    {CUBLASLT_EPILOGUE_DGELU, 1},
        {CUBLASLT_EPILOGUE_BGRADB, 1},        {CUBLASLT_EPILOGUE_DEFAULT, 0},
    };
    assert_layer_uses(90, expected, 5);
}

static void before_sm_90_gelu_is_a_pass_of_its_own(void **state) {
    (void)state;
    const Expected expected[] = {
        {CUBLASLT_EPILOGUE_GELU_AUX_BIAS, 0}, {CUBLASLT_EPILOGUE_BIAS, 2},    {CUBLASLT_EPILOGUE_DGELU, 0},
        {CUBLASLT_EPILOGUE_BGRADB, 1},        {CUBLASLT_EPILOGUE_DEFAULT, 1},
    };
    assert_layer_uses(80, expected, 5);
}

/* ---- without an epilogue ----------------------------------------------------------------------------------------- */

/* 200 rows of 41 fp32 sums are more than gemm.cu takes at a time. */
static Tensor run_odd_linear(Backend *be, bool in_place) {
    Tensor x = test_random(be, DTYPE_BF16, shape2(200, 24), 1), w = test_random(be, DTYPE_BF16, shape2(41, 24), 2);
    Tensor bias = test_random(be, DTYPE_F32, shape1(41), 3), addend = test_random(be, DTYPE_BF16, shape2(200, 41), 4);
    Tensor out = in_place ? addend : test_random(be, DTYPE_BF16, shape2(200, 41), 5);
    op_linear(be, out, x, w, bias, addend);
    return out;
}

static void an_odd_linear_layer_is_done_in_pieces_and_rounded_once(void **state) {
    (void)state;
    const Tolerance rounding = {.absolute = 2e-5, .relative = 1.0 / 128};
    Side ref, cuda;
    open_side(&ref, "ref"), open_side(&cuda, "cuda");
    for (int in_place = 0; in_place < 2; in_place++) {
        Tensor expected = run_odd_linear(&ref.be, in_place), got = run_odd_linear(&cuda.be, in_place);
        assert_tensors_close("linear", &cuda.be, got, &ref.be, expected, rounding);
    }
    test_close(&ref.be), test_close(&cuda.be);
}

static void products_over_no_terms_leave_addend_and_bias(void **state) {
    (void)state;
    Side s;
    open_side(&s, "cuda");
    Tensor a = test_random(&s.be, DTYPE_BF16, shape2(3, 8), 1), out = test_random(&s.be, DTYPE_BF16, shape2(3, 3), 2);
    Tensor nothing = tensor_slice(a, 1, 0, 0), bias = test_random(&s.be, DTYPE_F32, shape1(3), 3);
    const double before = test_get(&s.be, out, 4);
    op_matmul(&s.be, out, nothing, tensor_transpose(nothing), out, (MatmulScale){.alpha = 1, .beta = 2});
    assert_true(test_get(&s.be, out, 4) == 2 * before);
    op_matmul_symmetric(&s.be, out, nothing, out, (MatmulScale){.alpha = 1, .beta = 2});
    assert_true(test_get(&s.be, out, 4) == 4 * before);

    Tensor x = tensor_2d(a.data, DTYPE_BF16, 3, 0), sum = test_random(&s.be, DTYPE_BF16, shape2(3, 3), 4);
    op_linear(&s.be, sum, x, x, bias, tensor_none());
    const double got = test_get(&s.be, sum, 4), expected = test_get(&s.be, bias, 1);
    assert_close("bias alone", &got, &expected, 1, (Tolerance){0, 1.0 / 256});

    Tensor empty = tensor_slice(a, 0, 0, 0);
    op_matmul(&s.be, tensor_slice(out, 0, 0, 0), empty, tensor_slice(tensor_transpose(a), 1, 0, 3), tensor_none(),
              (MatmulScale){.alpha = 1});
    op_matmul_symmetric(&s.be, tensor_slice(tensor_slice(out, 0, 0, 0), 1, 0, 0), empty, tensor_none(),
                        (MatmulScale){.alpha = 1});
    assert_ok(backend_sync(&s.be));
    test_close(&s.be);
}

/* Every tensor of another layout, and a batch of 3 x 1 that lies at the outer stride. */
static Tensor run_strided_matmul(Backend *be) {
    Tensor a = test_random_strided(be, DTYPE_F32, shape4(3, 1, 5, 6), 1);
    Tensor b = test_random(be, DTYPE_F32, shape4(3, 1, 7, 6), 2);
    Tensor addend = test_random_strided(be, DTYPE_F32, shape4(3, 1, 5, 7), 3);
    Tensor out = test_random(be, DTYPE_F32, shape4(3, 2, 5, 7), 4);
    op_matmul(be, tensor_slice(out, 1, 1, 1), a, tensor_transpose(b), addend, (MatmulScale){.alpha = 1, .beta = 0.5f});
    return out;
}

/* fp32 rows of 12 are whole 16 bytes, but no multiple of the 8 elements that aux must have. */
static Tensor run_gelu_of_short_rows(Backend *be) {
    Tensor x = test_random(be, DTYPE_F32, shape2(3, 8), 1), w = test_random(be, DTYPE_F32, shape2(12, 8), 2);
    Tensor out = test_random(be, DTYPE_F32, shape2(3, 12), 3), pre = test_random(be, DTYPE_F32, shape2(3, 12), 4);
    op_linear_gelu(be, out, pre, x, w, tensor_none());
    return out;
}

static void layouts_may_differ_and_rows_be_short(void **state) {
    (void)state;
    const Tolerance sums = {.absolute = 2e-5, .relative = 2e-5};
    Side ref, cuda;
    open_side(&ref, "ref"), open_side(&cuda, "cuda");
    Tensor expected = run_strided_matmul(&ref.be), got = run_strided_matmul(&cuda.be);
    assert_tensors_close("matmul", &cuda.be, got, &ref.be, expected, sums);
    expected = run_gelu_of_short_rows(&ref.be), got = run_gelu_of_short_rows(&cuda.be);
    assert_tensors_close("linear_gelu", &cuda.be, got, &ref.be, expected, sums);
    test_close(&ref.be), test_close(&cuda.be);
}

/* ---- plans ------------------------------------------------------------------------------------------------------- */

/* Row vectors of 1 to `count` numbers, each a product of its own shape. */
static void multiply_vectors(Side *s, Tensor out, Tensor a, Tensor b, int64_t count) {
    for (int64_t m = 1; m <= count; m++)
        op_matmul(&s->be, tensor_slice(out, 1, 0, m), a, tensor_slice(b, 1, 0, m), tensor_none(),
                  (MatmulScale){.alpha = 1});
}

static void a_plan_is_asked_for_once_and_the_table_never_fills_up(void **state) {
    (void)state;
    enum { K = 4, MANY = 1700 }; /* more than the table takes, twice over */
    Side ref, cuda;
    open_side(&ref, "ref"), open_side(&cuda, "cuda");
    Tensor a[2], b[2], out[2];
    for (int i = 0; i < 2; i++) {
        Backend *be = i ? &cuda.be : &ref.be;
        a[i] = test_random(be, DTYPE_F32, shape2(1, K), 1), b[i] = test_random(be, DTYPE_F32, shape2(K, MANY), 2);
        out[i] = test_random(be, DTYPE_F32, shape2(1, MANY), 3);
    }
    const int64_t before = cublaslt_questions();
    for (int repeat = 0; repeat < 3; repeat++) multiply_vectors(&cuda, out[1], a[1], b[1], 10);
    assert_int_equal(cublaslt_questions() - before, 10);
    multiply_vectors(&cuda, out[1], a[1], b[1], MANY);
    assert_int_equal(cublaslt_questions() - before, MANY);
    multiply_vectors(&ref, out[0], a[0], b[0], MANY);
    assert_tensors_close("products", &cuda.be, out[1], &ref.be, out[0], (Tolerance){1e-5, 1e-5});
    test_close(&ref.be), test_close(&cuda.be);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(from_sm_90_on_every_op_is_one_product),
        cmocka_unit_test(before_sm_90_gelu_is_a_pass_of_its_own),
        cmocka_unit_test(an_odd_linear_layer_is_done_in_pieces_and_rounded_once),
        cmocka_unit_test(layouts_may_differ_and_rows_be_short),
        cmocka_unit_test(products_over_no_terms_leave_addend_and_bias),
        cmocka_unit_test(a_plan_is_asked_for_once_and_the_table_never_fills_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
