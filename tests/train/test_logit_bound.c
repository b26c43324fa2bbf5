/* Norms behind attention logits against LAPACK's SVD of the full matrices, and the bounds that they give against the
 * logits of random and of trained models. */
#include "tests/cuda_on_cpu/training.h"

#include "probe/logit_bound.h"

#include <lapacke.h>
#include <math.h>

#include <cjson/cJSON.h>

#include "ops/ops.h"

/* ---- norms ------------------------------------------------------------------------------------------------------ */

static double largest_singular_value(double *matrix, int64_t rows, int64_t columns) {
    int64_t r = rows < columns ? rows : columns;
    double *sigma = calloc((size_t)r, sizeof *sigma), *superb = calloc((size_t)r, sizeof *superb);
    assert_int_equal(LAPACKE_dgesvd(LAPACK_ROW_MAJOR, 'N', 'N', (lapack_int)rows, (lapack_int)columns, matrix,
                                    (lapack_int)columns, sigma, NULL, 1, NULL, 1, superb),
                     0);
    double largest = sigma[0];
    free(sigma);
    free(superb);
    return largest;
}

static double spectral_norm(const float *matrix, int64_t rows, int64_t columns) {
    double *copy = calloc((size_t)(rows * columns), sizeof *copy);
    for (int64_t i = 0; i < rows * columns; i++) copy[i] = (double)matrix[i];
    double norm = largest_singular_value(copy, rows, columns);
    free(copy);
    return norm;
}

/* Of the whole (q_inputs, k_inputs) matrix W_qᵀ W_k. */
static double norm_of_product(const float *w_q, int64_t q_inputs, const float *w_k, int64_t k_inputs, int64_t size) {
    double *product = calloc((size_t)(q_inputs * k_inputs), sizeof *product);
    for (int64_t i = 0; i < q_inputs; i++)
        for (int64_t j = 0; j < k_inputs; j++)
            for (int64_t d = 0; d < size; d++)
                product[i * k_inputs + j] += (double)w_q[d * q_inputs + i] * (double)w_k[d * k_inputs + j];
    double norm = largest_singular_value(product, q_inputs, k_inputs);
    free(product);
    return norm;
}

static float *random_matrix(int64_t rows, int64_t columns, uint64_t seed) {
    float *matrix = calloc((size_t)(rows * columns), sizeof *matrix);
    for (int64_t i = 0; i < rows * columns; i++) matrix[i] = (float)test_uniform(seed, i);
    return matrix;
}

static LogitPart measured(const float *w_q, int64_t q_inputs, const float *w_k, int64_t k_inputs, int64_t size) {
    LogitPart part = {0};
    double *workspace = calloc((size_t)logit_part_workspace_size(size), sizeof *workspace);
    logit_part_measure(&part, w_q, q_inputs, w_k, k_inputs, size, workspace);
    free(workspace);
    return part;
}

static void norms_agree_with_the_svd_of_the_full_matrices(void **state) {
    (void)state;
    /* size, inputs of q, inputs of k: narrow and wide heads, around the panel of 384 columns */
    static const int64_t shapes[][3] = {{1, 1, 1},    {1, 9, 9}, {3, 5, 5},    {8, 8, 8},    {16, 40, 40},
                                        {33, 90, 90}, {5, 3, 4}, {7, 385, 30}, {64, 50, 200}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        const int64_t size = shapes[s][0], q_inputs = shapes[s][1], k_inputs = shapes[s][2];
        float *w_q = random_matrix(size, q_inputs, 10 + s), *w_k = random_matrix(size, k_inputs, 50 + s);
        LogitPart part = measured(w_q, q_inputs, w_k, k_inputs, size);
        double got[] = {part.w_q, part.w_k, part.w_qk};
        double expected[] = {spectral_norm(w_q, size, q_inputs), spectral_norm(w_k, size, k_inputs),
                             norm_of_product(w_q, q_inputs, w_k, k_inputs, size)};
        assert_close("norms", got, expected, 3, (Tolerance){.relative = 1e-12});
        assert_true(part.w_qk <= part.w_q * part.w_k * (1 + 1e-12));
        free(w_q);
        free(w_k);
    }
}

/* W_q and W_k along the same direction, and along directions that do not meet. */
static void the_product_knows_how_the_matrices_lie_to_each_other(void **state) {
    (void)state;
    const float along[] = {3, 0, 0, 0}, same[] = {5, 0, 0, 0}, across[] = {0, 0, 5, 0}; /* (2,2) each */
    LogitPart part = measured(along, 2, same, 2, 2);
    assert_true(fabs(part.w_q - 3) < 1e-14 && fabs(part.w_k - 5) < 1e-14 && fabs(part.w_qk - 15) < 1e-13);
    part = measured(along, 2, across, 2, 2);
    assert_true(fabs(part.w_q - 3) < 1e-14 && fabs(part.w_k - 5) < 1e-14 && part.w_qk < 1e-7);
}

static void zeros_have_norms_of_zero_and_a_nan_has_none(void **state) {
    (void)state;
    float zeros[12] = {0}, *random = random_matrix(3, 4, 1);
    LogitPart part = measured(zeros, 4, random, 4, 3);
    assert_true(part.w_q == 0 && part.w_k > 0 && part.w_qk == 0);
    zeros[7] = NAN;
    part = measured(random, 4, zeros, 4, 3);
    assert_true(isnan(part.w_q) && isnan(part.w_k) && isnan(part.w_qk));
    free(random);
}

static void bounds_follow_their_formulas(void **state) {
    (void)state;
    const LogitPart parts[] = {{.x_q = 2, .x_k = 3, .w_q = 5, .w_k = 7, .b_q = 1, .b_k = 4, .w_qk = 30},
                               {.x_q = 1, .x_k = 10, .w_q = 2, .w_k = 0.5, .w_qk = 0.25}};
    assert_true(logit_bound(parts, 1, 0.5) == 0.5 * (2 * 5 + 1) * (3 * 7 + 4));
    assert_true(logit_bound(parts, 2, -0.5) == 0.5 * ((2 * 5 + 1) * (3 * 7 + 4) + 2 * 5));
    assert_true(logit_bound_qk(parts, 2, 2) == 2 * (2 * 3 * 30 + 10 * 0.25));
}

/* ---- models ----------------------------------------------------------------------------------------------------- */

#define EVERY "probe.bound_every=1", "probe.logits_every=0", "probe.spectrum_every=0"
static const ModelCase with_bias = {
    "biases", {COMMON, EVERY, "model.preset=gpt2", "model.width=36", "model.heads=3", "model.bias=true"}};
static const ModelCase grouped_rope = {
    "grouped queries",
    {COMMON, EVERY, "model.preset=llama", "model.width=48", "model.heads=4", "model.kv_heads=2", "model.mlp_width=72"}};
static const ModelCase low_rank = {"latent attention",
                                   {COMMON, EVERY, "model.preset=llama", "model.width=48", "model.heads=4",
                                    "model.attention=mla", "model.mlp_width=72"}};
static const ModelCase full_rank = {
    "latent attention, queries of full rank",
    {COMMON, EVERY, "model.preset=llama", "model.width=48", "model.heads=4", "model.attention=mla", "model.q_rank=0"}};
static const ModelCase plain = {
    "no biases, no rope", {COMMON, EVERY, "model.preset=gpt2", "model.width=36", "model.heads=3", "model.bias=false"}};

/* Biases are zero at first, where they prove nothing. */
static void shake_biases(Trainer *t) {
    static const char *const names[] = {"q_bias", "k_bias"};
    for (int i = 0; i < 2; i++) {
        const int kind = params_find_kind(&t->gpt.params, names[i]);
        for (int64_t l = 0; l < t->gpt.L && kind >= 0; l++) {
            Tensor bias = params_block(&t->gpt.params, t->gpt.params.master, kind, l);
            for (int64_t j = 0; j < tensor_numel(bias); j++) test_set(&t->backend, bias, j, 2 * test_uniform(3, j + l));
        }
    }
}

/* A head's rows of the working copies in fp64. */
static double head_norm(Trainer *t, const char *name, int64_t layer, int64_t head) {
    const ParamTable *p = &t->gpt.params;
    Tensor w = params_block_head(p, p->work, params_find_kind(p, name), layer, (int)head);
    double *values = test_read(&t->backend, w);
    return largest_singular_value(values, w.shape[0], w.shape[1]);
}

static double longest_row(Trainer *t, Tensor x) {
    const double *values = test_read(&t->backend, x);
    double longest = 0;
    for (int64_t n = 0; n < x.shape[0]; n++) {
        double square = 0;
        for (int64_t c = 0; c < x.shape[1]; c++) square += pow(values[n * x.shape[1] + c], 2);
        longest = fmax(longest, sqrt(square));
    }
    return longest;
}

/* Inputs of W_q and W_k: the normalized stream, latent attention's c^Q and c^KV. */
enum { STREAM, Q_LATENT, KV_LATENT, INPUTS };
enum { LAYERS_MAX = 2, HEADS_MAX = 4, PARTS = 2 };

static const char *const part_names[PARTS][2] = {{"q", "k"}, {"q_rope", "k_rope"}};

/* What the step's forward passes read: norms of the weights of each head's parts, and the longest inputs so far. */
typedef struct {
    double inputs[LAYERS_MAX][INPUTS];
    double weights[LAYERS_MAX][HEADS_MAX][PARTS][2];
} Norms;

static int parts_of(const Trainer *t) {
    return t->config.model.attention == ATTENTION_MLA ? 2 : 1;
}

static void note_weights(Trainer *t, Norms *norms) {
    for (int64_t i = 0; i < t->gpt.L * t->gpt.H; i++) {
        const int64_t layer = i / t->gpt.H, head = i % t->gpt.H;
        for (int part = 0; part < parts_of(t); part++) {
            const int64_t key_heads = t->gpt.params.kinds[params_find_kind(&t->gpt.params, part_names[part][1])].heads;
            double *w = norms->weights[layer][head][part];
            w[0] = head_norm(t, part_names[part][0], layer, head);
            w[1] = head_norm(t, part_names[part][1], layer, head / (t->gpt.H / key_heads));
        }
    }
}

static void note(Trainer *t, void *context, int64_t done) {
    Norms *norms = context;
    if (done == 0) note_weights(t, norms);
    for (int64_t l = 0; l < t->gpt.L; l++) {
        const LayerActivations *a = &t->gpt.layers[l];
        const Tensor inputs[INPUTS] = {a->norm1, a->q_latent, a->kv_latent};
        for (int i = 0; i < INPUTS; i++)
            if (tensor_present(inputs[i])) norms->inputs[l][i] = fmax(norms->inputs[l][i], longest_row(t, inputs[i]));
    }
}

static double number_of(const cJSON *row, const char *prefix, const char *key) {
    char name[32];
    snprintf(name, sizeof name, "%s%s", prefix, key);
    const cJSON *item = cJSON_GetObjectItem(row, name);
    if (!cJSON_IsNumber(item)) fail_msg("%s is not a number", name);
    return item->valuedouble;
}

/* Weights and inputs of one part of a head's row, in fp64 from the model. Returns their product: the part's bound, but
 * for biases and scale. */
static double check_part(Trainer *t, const cJSON *row, int part, int64_t layer, int64_t head, const Norms *norms) {
    const bool latent = parts_of(t) == 2, rotary = part == 1;
    const char *prefix = rotary ? "rope_" : "";
    const int q_input = latent && t->config.model.q_rank > 0 ? Q_LATENT : STREAM;
    const int k_input = latent && !rotary ? KV_LATENT : STREAM;
    const double *weights = norms->weights[layer][head][part], *inputs = norms->inputs[layer];
    double got[] = {number_of(row, prefix, "q_norm"), number_of(row, prefix, "k_norm"),
                    number_of(row, prefix, "x_norm"), number_of(row, prefix, latent ? "x_k_norm" : "x_norm")};
    double expected[] = {weights[0], weights[1], inputs[q_input], inputs[k_input]};
    assert_close("norms", got, expected, 4, (Tolerance){.relative = 2e-6}); /* x in fp32 */
    return got[0] * got[1] * got[2] * got[3];
}

/* One step with an eye on what the bound is made of. The fields are floats: 1e-6 of a product of four. */
static void step_and_check(Trainer *t, bool sharp, double *tightest) {
    const int64_t heads = t->gpt.L * t->gpt.H;
    Norms norms = {0};
    StepReport r;
    step_and_see(t, &r, note, &norms);
    cJSON *line = reported(t);
    const cJSON *list = cJSON_GetObjectItem(line, "logit_bound"), *row = list ? list->child : NULL;
    assert_int_equal(cJSON_GetArraySize(list), heads);
    for (int64_t i = 0; i < heads; i++, row = row->next) {
        const int64_t layer = i / t->gpt.H, head = i % t->gpt.H;
        const double scale = 1 / sqrt((double)t->gpt.D), max_abs = (double)t->max_abs[i];
        const double bound = number_of(row, "", "bound"), bound_qk = number_of(row, "", "bound_qk");
        const double tightness = number_of(row, "", "tightness");
        double product = 0;
        assert_true((int64_t)number_of(row, "", "layer") == layer && (int64_t)number_of(row, "", "head") == head);
        for (int part = 0; part < parts_of(t); part++) product += check_part(t, row, part, layer, head, &norms);
        /* q and k of a bf16 run have been rounded to 2^-9 */
        const double rounding = t->backend.compute_dtype == DTYPE_BF16 ? 1.0 / 128 : 1e-6;
        assert_true(tightness > 0 && tightness <= 1 + rounding);
        assert_true(fabs(tightness - max_abs / bound) < 1e-6);
        assert_true(bound >= scale * product * (1 - 1e-6) && bound_qk <= scale * product * (1 + 1e-6));
        if (sharp) assert_true(max_abs <= bound_qk * (1 + rounding));
        *tightest = fmax(*tightest, tightness);
    }
    cJSON_Delete(line);
    test_release(&t->backend);
}

static void check_model(const ModelCase *model, const char *device, const char *precision, bool sharp) {
    Trainer t;
    double tightest = 0;
    assert_ok(open_trainer(&t, model, (Setting){device, precision, {NULL}}));
    shake_biases(&t);
    for (int step = 0; step < 6; step++) step_and_check(&t, sharp, &tightest);
    assert_true(tightest > 0.1); /* or the bound says nothing here */
    trainer_free(&t);
}

static void no_logit_of_a_model_in_training_is_beyond_its_bound(void **state) {
    (void)state;
    static const char *const devices[] = {"cpu", "ref"}, *const precisions[] = {"fp32", "bf16"};
    for (int i = 0; i < 4; i++) {
        check_model(&with_bias, devices[i / 2], precisions[i % 2], false);
        check_model(&grouped_rope, devices[i / 2], precisions[i % 2], false);
        check_model(&low_rank, devices[i / 2], precisions[i % 2], false);
        check_model(&full_rank, devices[i / 2], precisions[i % 2], false);
        check_model(&plain, devices[i / 2], precisions[i % 2], true);
    }
}

/* One token along the first singular vectors of W_q and W_k, which are the same: its logit is the bound. */
static void a_token_along_the_singular_vectors_reaches_the_bound(void **state) {
    (void)state;
    enum { C = 12, D = 4 };
    float w[D * C] = {0};
    for (int d = 0; d < D; d++) w[d * C + d] = (float)(D - d); /* singular values 4 3 2 1 along the axes */
    LogitPart part = measured(w, C, w, C, D);
    const double x = 2.5; /* on the first axis: q = k = (4 x, 0, 0, 0) */
    part.x_q = part.x_k = x;
    double logit = 0.5 * (4 * x) * (4 * x), bounds[] = {logit_bound(&part, 1, 0.5), logit_bound_qk(&part, 1, 0.5)};
    assert_close("bounds", bounds, (double[]){logit, logit}, 2, (Tolerance){.relative = 1e-14});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_agree_with_the_svd_of_the_full_matrices),
        cmocka_unit_test(the_product_knows_how_the_matrices_lie_to_each_other),
        cmocka_unit_test(zeros_have_norms_of_zero_and_a_nan_has_none),
        cmocka_unit_test(bounds_follow_their_formulas),
        cmocka_unit_test(no_logit_of_a_model_in_training_is_beyond_its_bound),
        cmocka_unit_test(a_token_along_the_singular_vectors_reaches_the_bound),
    };
    return cmocka_run_group_tests_name("logit_bound", tests, NULL, NULL);
}
