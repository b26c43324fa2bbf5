/* The census of attention logits in a training run, against a brute-force pass over the model's q and k in double; its
 * fields; and that measuring changes no weight. */
#include "tests/cuda_on_cpu/training.h"

#include <math.h>

#include <cjson/cJSON.h>

/* A sharper threshold than QK-Clip's in training.h, so that some logits are beyond it and many are not. */
static const ModelCase grouped_rope = {"grouped queries",
                                       {COMMON, "model.preset=llama", "model.width=48", "model.heads=4",
                                        "model.kv_heads=2", "model.mlp_width=72", "qk_clip.threshold=1",
                                        "probe.logits_every=2"}};
static const ModelCase normed = {"qk_norm",
                                 {COMMON, "model.preset=gpt2", "model.width=36", "model.heads=3", "model.qk_norm=true",
                                  "qk_clip.enabled=false", "qk_clip.threshold=1", "probe.logits_every=2"}};
static const ModelCase learned = {
    "learned positions",
    {COMMON, "model.preset=gpt2", "model.width=36", "model.heads=3", "qk_clip.threshold=1", "probe.logits_every=2"}};
static const ModelCase *const models[] = {&grouped_rope, &normed, &learned};
enum { MODELS = sizeof models / sizeof models[0] };

/* ---- brute force ------------------------------------------------------------------------------------------------ */

enum { ALL_HEADS = 16, ROWS = 4, CONTEXT = 21 };

/* Every logit of a step; 0 where the query does not see the key. */
typedef struct {
    double s[ALL_HEADS][ROWS][CONTEXT][CONTEXT];
} Logits;

/* Of one layer's q and k. */
static void multiply(Logits *logits, Gpt *g, int64_t layer, int64_t first_row) {
    AttentionInputs in = gpt_attention_inputs(g, layer);
    const double *q = test_read(g->be, in.q), *k = test_read(g->be, in.k);
    assert_true(g->T == CONTEXT && g->L * g->H <= ALL_HEADS && first_row + g->B <= ROWS);
    for (int64_t b = 0; b < g->B; b++)
        for (int64_t h = 0; h < g->H; h++)
            for (int64_t i = 0; i < g->T; i++)
                for (int64_t j = 0; j <= i; j++) {
                    const double *qi = q + ((b * g->T + i) * g->H + h) * g->D;
                    const double *kj = k + ((b * g->T + j) * g->K + h / (g->H / g->K)) * g->D;
                    double sum = 0;
                    for (int64_t d = 0; d < g->D; d++) sum += qi[d] * kj[d];
                    logits->s[layer * g->H + h][first_row + b][i][j] = sum / sqrt((double)g->D);
                }
}

typedef struct {
    double value[PEAKS];
    int64_t above, near; /* the threshold: within fp32's reach of it */
} Expected;

static Expected search(const Logits *logits, int64_t head, double threshold) {
    Expected e = {.value = {-(double)INFINITY, -(double)INFINITY}};
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t i = 0; i < CONTEXT; i++)
            for (int64_t j = 0; j <= i; j++) {
                double s = logits->s[head][row][i][j];
                e.value[PEAK_SIGNED] = fmax(e.value[PEAK_SIGNED], s);
                e.value[PEAK_MAGNITUDE] = fmax(e.value[PEAK_MAGNITUDE], fabs(s));
                e.above += s > threshold;
                e.near += fabs(s - threshold) < 1e-5;
            }
    return e;
}

static void multiply_layers(Trainer *t, void *logits, int64_t done) {
    for (int64_t l = 0; l < t->gpt.L; l++) multiply(logits, &t->gpt, l, done);
}

static double number_of(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItem(object, key);
    if (!cJSON_IsNumber(item)) fail_msg("%s is not a number", key);
    return item->valuedouble;
}

/* fp32 sums of some dozen products about 1. Two logits this close to each other may change places. */
static const Tolerance fp32_logit = {.absolute = 1e-6, .relative = 1e-5};

/* The fields; that the logit is where they say, and the tokens, too. */
static void assert_fields(Trainer *t, int64_t first_sample, const cJSON *row, const Logits *logits, int64_t head) {
    static const char *const names[PEAKS][6] = {
        {"max", "sequence", "query", "key", "query_token", "key_token"},
        {"max_abs", "abs_sequence", "abs_query", "abs_key", "abs_query_token", "abs_key_token"}};
    const double pairs = (double)(t->config.train.batch * t->gpt.T * (t->gpt.T + 1) / 2);
    const Expected e = search(logits, head, t->config.qk_clip.threshold);
    for (int which = 0; which < PEAKS; which++) {
        int32_t tokens[CONTEXT], targets[CONTEXT];
        const int64_t sequence = (int64_t)number_of(row, names[which][1]);
        const int64_t i = (int64_t)number_of(row, names[which][2]), j = (int64_t)number_of(row, names[which][3]);
        assert_in_range(sequence, first_sample, first_sample + ROWS - 1);
        assert_in_range(i, 0, CONTEXT - 1);
        assert_in_range(j, 0, i);
        double got = number_of(row, names[which][0]), there = logits->s[head][sequence - first_sample][i][j];
        if (which == PEAK_MAGNITUDE) there = fabs(there);
        assert_close(names[which][0], &got, &e.value[which], 1, fp32_logit);
        assert_close("the logit there", &there, &e.value[which], 1, fp32_logit);
        assert_ok(dataset_train_sample(t->train_data, sequence, tokens, targets));
        assert_int_equal((int)number_of(row, names[which][4]), tokens[i]);
        assert_int_equal((int)number_of(row, names[which][5]), tokens[j]);
    }
    assert_true(fabs(number_of(row, "above") * pairs - (double)e.above) <= (double)e.near + 1e-3);
}

static void check_run(const ModelCase *model, const char *device, const char *precision) {
    static Logits logits;
    Trainer t;
    StepReport r;
    double above = 0;
    assert_ok(open_trainer(&t, model, (Setting){device, precision, {NULL}}));
    for (int step = 1; step <= 4; step++) {
        const int64_t first_sample = t.samples, count = t.gpt.L * t.gpt.H;
        step_and_see(&t, &r, multiply_layers, &logits);
        cJSON *line = reported(&t);
        const cJSON *list = cJSON_GetObjectItem(line, "logits"), *row = list ? list->child : NULL;
        assert_int_equal(list != NULL, step != 3);
        for (int64_t i = 0; i < count && row; i++, row = row->next) {
            assert_int_equal((int)number_of(row, "layer"), i / t.gpt.H);
            assert_int_equal((int)number_of(row, "head"), i % t.gpt.H);
            assert_fields(&t, first_sample, row, &logits, i);
            assert_true((float)number_of(row, "max") == t.max_logit[i]); /* attention's own, to the bit */
            assert_true((float)number_of(row, "max_abs") == t.max_abs[i]);
            above += number_of(row, "above");
        }
        assert_null(row);
        cJSON_Delete(line);
        test_release(&t.backend);
    }
    assert_true(above > 0);
    trainer_free(&t);
}

static void the_census_of_a_run_is_what_brute_force_finds(void **state) {
    (void)state;
    for (int i = 0; i < 2 * MODELS; i++) {
        const char *precision = i % 2 ? "bf16" : "fp32";
        check_run(models[i / 2], "cpu", precision);
        check_run(models[i / 2], "ref", precision);
    }
}

/* ---- what measuring must not do ---------------------------------------------------------------------------------- */

static double *weights_after(const ModelCase *model, Setting setting, int64_t *count) {
    Trainer t;
    StepReport r;
    assert_ok(open_trainer(&t, model, setting));
    for (int step = 0; step < 5; step++) {
        assert_ok(train_step(&t, &r));
        cJSON_Delete(reported(&t));
    }
    double *weights = test_read(&t.backend, t.gpt.params.master), *copy;
    *count = tensor_numel(t.gpt.params.master);
    copy = malloc((size_t)*count * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, weights, (size_t)*count * sizeof *copy);
    test_release(&t.backend);
    trainer_free(&t);
    return copy;
}

static void weights_have_the_same_bits_with_all_measurements_and_with_none(void **state) {
    (void)state;
    static const char *const devices[] = {"cpu", "ref"};
    for (int i = 0; i < 4; i++) {
        int64_t count;
        const char *device = devices[i / 2], *precision = i % 2 ? "bf16" : "fp32";
        static const char *const on[] = {"probe.spectrum_every=1", "probe.logits_every=1", "probe.bound_every=1",
                                         "probe.shadow_every=1"},
                                 *const off[] = {"probe.spectrum_every=0", "probe.logits_every=0",
                                                 "probe.bound_every=0", "probe.shadow_every=0"};
        ModelCase measured = gpt2_like, plain = gpt2_like;
        int used = 0;
        while (measured.options[used]) used++;
        for (int option = 0; option < 4; option++)
            measured.options[used + option] = on[option], plain.options[used + option] = off[option];
        double *a = weights_after(&measured, (Setting){device, precision, {NULL}}, &count);
        double *b = weights_after(&plain, (Setting){device, precision, {NULL}}, &count);
        assert_memory_equal(a, b, (size_t)count * sizeof *a);
        free(a);
        free(b);
    }
}

/* ---- a NaN ------------------------------------------------------------------------------------------------------- */

/* A step that is refused still says where its logits went wrong. */
static void a_refused_step_tells_where_the_nan_is(void **state) {
    (void)state;
    Trainer t;
    StepReport r;
    assert_ok(open_trainer(&t, &learned, (Setting){"cpu", "fp32", {NULL}}));
    Tensor query = params_block_head(&t.gpt.params, t.gpt.params.master, params_find_kind(&t.gpt.params, "q"), 1, 2);
    test_set(&t.backend, query, 0, (double)NAN); /* of layer 1, head 2 */
    assert_ok(train_step(&t, &r));
    assert_false(r.applied);
    cJSON *line = reported(&t);
    const cJSON *rows = cJSON_GetObjectItem(line, "logits"), *row = cJSON_GetArrayItem(rows, (int)t.gpt.H + 2);
    assert_non_null(row);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(row, "max")));
    assert_true(number_of(row, "sequence") == 0 && number_of(row, "query") == 0 && number_of(row, "key") == 0);
    assert_true(cJSON_IsNumber(cJSON_GetObjectItem(cJSON_GetArrayItem(rows, 0), "max")));
    const cJSON *bound = cJSON_GetArrayItem(cJSON_GetObjectItem(line, "logit_bound"), (int)t.gpt.H + 2);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(bound, "bound")));
    assert_null(cJSON_GetObjectItem(line, "spectrum"));
    cJSON_Delete(line);
    test_release(&t.backend);
    trainer_free(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_census_of_a_run_is_what_brute_force_finds),
        cmocka_unit_test(weights_have_the_same_bits_with_all_measurements_and_with_none),
        cmocka_unit_test(a_refused_step_tells_where_the_nan_is),
    };
    return cmocka_run_group_tests_name("logits", tests, NULL, NULL);
}
