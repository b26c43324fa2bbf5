/* QK-Clip on a layer whose input is held fixed: logits are computed from the weights by plain loops, before and after.
 */
#include "tests/tensors.h"

#include <math.h>
#include <stdlib.h>

#include "ops/ops.h"
#include "model/gpt.h"
#include "optim/qk_clip.h"

enum { LAYERS = 2, H = 4, D = 3, C = H * D, TOKENS = 6 };

typedef struct {
    Backend be;
    Gpt gpt;
    ParamTable *params;
    int64_t K; /* key heads */
} Layer;

static void open_model(Layer *layer, const char *precision, const ModelConfig *model) {
    *layer = (Layer){.K = model->kv_heads, .params = &layer->gpt.params};
    test_open(&layer->be, "ref", precision);
    assert_ok(gpt_plan(&layer->gpt, model, 1, &layer->be));
    assert_ok(gpt_allocate(&layer->gpt));
    ParamTable *p = layer->params;
    for (int64_t i = 0; i < p->elements; i++) test_set(&layer->be, p->master, i, 4 * test_uniform(1, i));
    params_refresh_work(&layer->be, p);
}

static ModelConfig small_model(void) {
    return (ModelConfig){.layers = LAYERS,
                         .heads = H,
                         .kv_heads = H,
                         .width = C,
                         .context = TOKENS,
                         .vocab = 5,
                         .norm = NORM_RMSNORM,
                         .position = POSITION_ROPE,
                         .mlp = MLP_SWIGLU,
                         .mlp_width = 4,
                         .tie_embeddings = true,
                         .rope_theta = 1e4,
                         .norm_eps = 1e-5};
}

static void open_layer(Layer *layer, const char *precision, int64_t K) {
    ModelConfig model = small_model();
    model.kv_heads = K;
    model.bias = true;
    open_model(layer, precision, &model);
}

static void close_layer(Layer *layer) {
    gpt_free(&layer->gpt);
    test_close(&layer->be);
}

/* ---- logits by plain loops -------------------------------------------------------------------------------------- */

static double element(Layer *layer, const char *block, int64_t l, int64_t row, int64_t column) {
    Tensor t = params_block(layer->params, layer->params->master, params_find_kind(layer->params, block), l);
    return test_get(&layer->be, tensor_slice(tensor_slice(t, 0, row, 1), 1, column, 1), 0);
}

static double project(Layer *layer, const char *matrix, const char *bias, int64_t l, int64_t row, int token) {
    double sum = element(layer, bias, l, row, 0);
    for (int c = 0; c < C; c++) sum += element(layer, matrix, l, row, c) * test_uniform(2, token * C + c);
    return sum;
}

/* Latent attention's heads with latent vectors held fixed: token t has test_uniform(3, ..) for c^Q, (4, ..) for c^KV
 * and (5, ..) for the shared k^R, which no weight of a head changes. rope turns q^R and k^R by the same angles whatever
 * their length, and is left out. */
enum { RANK = 5, R = 2 };

static void open_latent_layer(Layer *layer, const char *precision) {
    ModelConfig model = small_model();
    model.attention = ATTENTION_MLA;
    model.q_rank = model.kv_rank = RANK;
    model.head_nope = model.head_value = D;
    model.head_rope = R;
    open_model(layer, precision, &model);
}

static double project_latent(Layer *layer, const char *matrix, int64_t l, int64_t row, int token, uint64_t seed) {
    double sum = 0;
    for (int c = 0; c < RANK; c++) sum += element(layer, matrix, l, row, c) * test_uniform(seed, token * RANK + c);
    return sum;
}

static double latent_logit(Layer *layer, int64_t l, int64_t head, int i, int j) {
    double logit = 0;
    for (int d = 0; d < D; d++)
        logit += project_latent(layer, "q", l, head * D + d, i, 3) * project_latent(layer, "k", l, head * D + d, j, 4);
    for (int d = 0; d < R; d++)
        logit += project_latent(layer, "q_rope", l, head * R + d, i, 3) * 2 * test_uniform(5, j * R + d);
    return logit / sqrt(D + R);
}

static double max_logit(Layer *layer, int64_t l, int64_t head) {
    double q[TOKENS][D], k[TOKENS][D], highest = -(double)INFINITY;
    int64_t key_head = head / (H / layer->K);
    for (int t = 0; t < TOKENS; t++)
        for (int d = 0; d < D; d++) {
            q[t][d] = project(layer, "q", "q_bias", l, head * D + d, t);
            k[t][d] = project(layer, "k", "k_bias", l, key_head * D + d, t);
        }
    for (int i = 0; i < TOKENS; i++)
        for (int j = 0; j <= i; j++) {
            double logit = 0;
            for (int d = 0; d < D; d++) logit += q[i][d] * k[j][d];
            highest = fmax(highest, logit / sqrt(D));
        }
    return highest;
}

static void max_logits(Layer *layer, float *values) {
    for (int l = 0; l < LAYERS; l++)
        for (int h = 0; h < H; h++) values[l * H + h] = (float)max_logit(layer, l, h);
}

/* ---- tests ------------------------------------------------------------------------------------------------------ */

/* A threshold between the heads' maxima, so that some are clipped and some are not. */
static double median_of(const float *values) {
    int64_t below = 0;
    for (int i = 0; i < LAYERS * H; i++) {
        below = 0;
        for (int k = 0; k < LAYERS * H; k++) below += values[k] < values[i];
        if (below == LAYERS * H / 2) return (double)values[i] - 1e-3;
    }
    fail_msg("no median");
    return 0;
}

static void check_clip(int64_t K, double alpha) {
    Layer layer;
    open_layer(&layer, "fp32", K);
    float before[LAYERS * H], after[LAYERS * H];
    max_logits(&layer, before);
    QkClipConfig config = {.enabled = true, .threshold = median_of(before), .alpha = alpha};
    ClipEvent events[LAYERS * H];
    int64_t count = qk_clip_apply(&layer.be, layer.params, &config, before, events);
    max_logits(&layer, after);

    int64_t clipped = 0;
    for (int i = 0; i < LAYERS * H; i++) {
        double expected = fmin((double)before[i], config.threshold), got = (double)after[i];
        assert_close("maximum", &got, &expected, 1, (Tolerance){.relative = 2e-6});
        if ((double)before[i] <= config.threshold) continue;
        const ClipEvent *event = &events[clipped++];
        double gamma = (double)event->gamma, expected_gamma = config.threshold / (double)before[i];
        assert_int_equal(event->layer * H + event->head, i);
        assert_close("gamma", &gamma, &expected_gamma, 1, (Tolerance){.relative = 1e-6});
        assert_true(event->max_logit == before[i]);
    }
    assert_int_equal(clipped, LAYERS * H / 2);
    assert_int_equal(count, clipped);
    close_layer(&layer);
}

static void mha_heads_come_down_to_exactly_tau_and_others_do_not_move(void **state) {
    (void)state;
    check_clip(H, .5);
    check_clip(H, .3);
    check_clip(H, 0);
    check_clip(H, 1);
}

static void gqa_heads_come_down_to_exactly_tau_and_siblings_do_not_move(void **state) {
    (void)state;
    check_clip(H / 2, .5);
    check_clip(1, .5);
}

enum { LOGITS = TOKENS * (TOKENS + 1) / 2 };

/* Every causal logit of every head, and their maxima. */
static void latent_logits(Layer *layer, double logits[LAYERS * H][LOGITS], float *maxima) {
    for (int h = 0; h < LAYERS * H; h++) {
        maxima[h] = -INFINITY;
        for (int i = 0, at = 0; i < TOKENS; i++)
            for (int j = 0; j <= i; j++, at++) {
                logits[h][at] = latent_logit(layer, h / H, h % H, i, j);
                maxima[h] = fmaxf(maxima[h], (float)logits[h][at]);
            }
    }
}

/* All logits of a clipped head shrink by gamma, those of the others stay to the last bit. */
static void check_latent_clip(double alpha) {
    Layer layer;
    open_latent_layer(&layer, "fp32");
    double before[LAYERS * H][LOGITS], after[LAYERS * H][LOGITS];
    float maxima[LAYERS * H], clipped[LAYERS * H];
    latent_logits(&layer, before, maxima);
    QkClipConfig config = {.enabled = true, .threshold = median_of(maxima), .alpha = alpha};
    ClipEvent events[LAYERS * H];
    assert_int_equal(qk_clip_apply(&layer.be, layer.params, &config, maxima, events), LAYERS * H / 2);
    latent_logits(&layer, after, clipped);
    for (int h = 0; h < LAYERS * H; h++) {
        bool above = (double)maxima[h] > config.threshold;
        double gamma = above ? config.threshold / (double)maxima[h] : 1;
        for (int i = 0; i < LOGITS; i++) before[h][i] *= gamma;
        assert_close("logits", after[h], before[h], LOGITS,
                     above ? (Tolerance){.absolute = 1e-5, .relative = 2e-6} : (Tolerance){0});
        double maximum = (double)clipped[h];
        if (above) assert_close("maximum", &maximum, &config.threshold, 1, (Tolerance){.relative = 2e-6});
    }
    close_layer(&layer);
}

static void mla_heads_come_down_to_exactly_tau_and_others_keep_every_logit(void **state) {
    (void)state;
    check_latent_clip(.5);
    check_latent_clip(.2);
}

/* q^C and k^C of head 2 of layer 1 by sqrt(gamma), its q^R by gamma, and nothing else: not what the heads share. */
static void mla_scales_three_blocks_of_one_head_and_their_copies(void **state) {
    (void)state;
    Layer layer;
    open_latent_layer(&layer, "bf16");
    ParamTable *p = layer.params;
    double *before = test_read(&layer.be, p->master);
    float logits[LAYERS * H] = {0};
    logits[H + 2] = 400;
    ClipEvent events[LAYERS * H];
    QkClipConfig config = {.enabled = true, .threshold = 100, .alpha = .5};
    assert_int_equal(qk_clip_apply(&layer.be, p, &config, logits, events), 1);

    double *after = test_read(&layer.be, p->master), *work = test_read(&layer.be, p->work);
    for (int64_t i = 0; i < p->elements; i++)
        assert_true(work[i] == (double)bf16_to_f32(bf16_from_f32((float)after[i])));
    const struct {
        const char *block;
        double factor;
    } changed[] = {{"q", .5}, {"k", .5}, {"q_rope", .25}};
    for (int i = 0; i < 3; i++) {
        Tensor head = params_block_head(p, p->master, params_find_kind(p, changed[i].block), 1, 2);
        int64_t at = (float *)head.data - (float *)p->master.data;
        for (int64_t e = at; e < at + tensor_numel(head); e++) {
            assert_true(after[e] == changed[i].factor * before[e]);
            after[e] = before[e];
        }
    }
    assert_close("other weights", after, before, p->elements, (Tolerance){0});
    close_layer(&layer);
}

/* Clips head 2 of layer 1 and compares every weight with what it was. */
static void check_untouched(int64_t K, bool key_changes) {
    Layer layer;
    open_layer(&layer, "fp32", K);
    ParamTable *p = layer.params;
    double *before = test_read(&layer.be, p->master);
    float logits[LAYERS * H] = {0};
    logits[H + 2] = 200;
    ClipEvent events[LAYERS * H];
    QkClipConfig config = {.enabled = true, .threshold = 100, .alpha = .5};
    assert_int_equal(qk_clip_apply(&layer.be, p, &config, logits, events), 1);

    /* mark what may have changed, then demand bit equality of the rest */
    double *after = test_read(&layer.be, p->master);
    double of_query = key_changes ? sqrt(.5) : .5, of_key = sqrt(.5);
    const struct {
        const char *block;
        double factor;
    } changed[] = {{"q", of_query}, {"q_bias", of_query}, {"k", of_key}, {"k_bias", of_key}};
    for (int i = 0; i < (key_changes ? 4 : 2); i++) {
        Tensor head = params_block_head(p, p->master, params_find_kind(p, changed[i].block), 1, 2);
        int64_t at = (float *)head.data - (float *)p->master.data, size = D * head.shape[1];
        for (int64_t e = at; e < at + size; e++) {
            double expected = changed[i].factor * before[e];
            assert_close(changed[i].block, &after[e], &expected, 1, (Tolerance){.relative = 1e-6});
            after[e] = before[e];
        }
    }
    assert_close("other weights", after, before, p->elements, (Tolerance){0});
    close_layer(&layer);
}

static void mha_scales_query_and_key_of_one_head_and_nothing_else(void **state) {
    (void)state;
    check_untouched(H, true);
}

static void gqa_scales_the_query_of_one_head_and_nothing_else(void **state) {
    (void)state;
    check_untouched(H / 2, false);
}

static void no_maximum_that_is_small_negative_or_not_finite_clips(void **state) {
    (void)state;
    Layer layer;
    open_layer(&layer, "fp32", H);
    double *before = test_read(&layer.be, layer.params->master);
    float logits[LAYERS * H] = {NAN, INFINITY, -INFINITY, 0, -500, 100, 99, 1};
    ClipEvent events[LAYERS * H];
    QkClipConfig config = {.enabled = true, .threshold = 100, .alpha = .5};
    assert_int_equal(qk_clip_apply(&layer.be, layer.params, &config, logits, events), 0);
    assert_close("weights", test_read(&layer.be, layer.params->master), before, layer.params->elements, (Tolerance){0});
    close_layer(&layer);
}

static void in_bf16_the_working_copies_follow_the_masters(void **state) {
    (void)state;
    Layer layer;
    open_layer(&layer, "bf16", H);
    float logits[LAYERS * H] = {300, 0, 0, 0, 0, 0, 700, 0};
    ClipEvent events[LAYERS * H];
    QkClipConfig config = {.enabled = true, .threshold = 100, .alpha = .4};
    assert_int_equal(qk_clip_apply(&layer.be, layer.params, &config, logits, events), 2);
    double *master = test_read(&layer.be, layer.params->master), *work = test_read(&layer.be, layer.params->work);
    for (int64_t i = 0; i < layer.params->elements; i++)
        assert_true(work[i] == (double)bf16_to_f32(bf16_from_f32((float)master[i])));
    close_layer(&layer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mha_heads_come_down_to_exactly_tau_and_others_do_not_move),
        cmocka_unit_test(gqa_heads_come_down_to_exactly_tau_and_siblings_do_not_move),
        cmocka_unit_test(mha_scales_query_and_key_of_one_head_and_nothing_else),
        cmocka_unit_test(gqa_scales_the_query_of_one_head_and_nothing_else),
        cmocka_unit_test(mla_heads_come_down_to_exactly_tau_and_others_keep_every_logit),
        cmocka_unit_test(mla_scales_three_blocks_of_one_head_and_their_copies),
        cmocka_unit_test(no_maximum_that_is_small_negative_or_not_finite_clips),
        cmocka_unit_test(in_bf16_the_working_copies_follow_the_masters),
    };
    return cmocka_run_group_tests_name("qk_clip", tests, NULL, NULL);
}
