/* The whole trainer on device "cuda" beside the same run on `ref`. On the emulated device, and on a real one: `make
 * test-gpu`.
 */
#include "tests/cuda_on_cpu/training.h"
#include "device/device.h"

#include <cjson/cJSON.h>

enum { STEPS = 20, HEADS_MAX = 16 };

/* What 20 steps leave behind. */
typedef struct {
    double loss[STEPS];
    double max_logit[STEPS * HEADS_MAX];
    int64_t clips;
    int64_t heads, elements;
    double *start, *end; /* weights */
} History;

static double *read_weights(Trainer *t) {
    return test_read(&t->backend, t->gpt.params.master);
}

static void train(History *h, const ModelCase *model, Setting setting) {
    Trainer t;
    assert_ok(open_trainer(&t, model, setting));
    *h =
        (History){.heads = t.gpt.L * t.gpt.H, .elements = tensor_numel(t.gpt.params.master), .start = read_weights(&t)};
    for (int step = 0; step < STEPS; step++) {
        StepReport r;
        assert_ok(train_step(&t, &r));
        assert_true(r.applied);
        h->loss[step] = r.loss;
        h->clips += r.clip_count;
        for (int64_t i = 0; i < h->heads; i++) h->max_logit[step * h->heads + i] = (double)t.max_logit[i];
    }
    h->end = read_weights(&t);
    trainer_free(&t);
}

static void free_history(History *h) {
    free(h->start);
    free(h->end);
}

/* ---- agreement with ref ------------------------------------------------------------------------------------------ */

typedef struct {
    Tolerance loss, max_logit;
    double weights; /* distance of the two, as a share of the way that ref's went */
} Agreement;

/* Each tolerance is about four times what was seen.
 *
 * fp32: only the order of sums differs, which is 1e-7 of the loss. Two things enlarge it in the weights: Newton-Schulz
 * multiplies the singular values that are rounding errors by up to 3.44^5 = 485; and the gradient of the keys' bias,
 * which softmax cannot see, is nothing but rounding errors, of which AdamW makes whole steps. */
static const Agreement fp32_agreement = {.loss = {.relative = 5e-7}, .max_logit = {.relative = 5e-4}, .weights = 1e-4};
/* bf16: both have 8 bits, but round at different places; cuda also the probabilities of attention, biases, and the
 * matrices within Newton-Schulz. MaxLogit is of single logits and differs by several times 2^-8. */
static const Agreement bf16_agreement = {.loss = {.relative = 1e-3}, .max_logit = {.relative = 0.06}, .weights = 0.04};

static double distance(const double *a, const double *b, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sqrt(sum);
}

static void check_agreement(const ModelCase *model, const char *precision, const Agreement *expected) {
    History cuda, ref;
    train(&cuda, model, (Setting){"cuda", precision, {NULL}});
    train(&ref, model, (Setting){"ref", precision, {NULL}});
    assert_true(ref.clips > STEPS && cuda.clips > STEPS);
    assert_memory_equal(cuda.start, ref.start, (size_t)ref.elements * sizeof(double));
    assert_close("loss", cuda.loss, ref.loss, STEPS, expected->loss);
    assert_close("MaxLogit", cuda.max_logit, ref.max_logit, STEPS * ref.heads, expected->max_logit);
    double way = distance(ref.end, ref.start, ref.elements), apart = distance(cuda.end, ref.end, ref.elements);
    if (!(apart <= expected->weights * way))
        fail_msg("%s, %s: the weights went %g from their start and are %g apart", model->name, precision, way, apart);
    free_history(&cuda);
    free_history(&ref);
}

static void twenty_steps_in_fp32_agree_with_ref(void **state) {
    (void)state;
    check_agreement(&gpt2_like, "fp32", &fp32_agreement);
    check_agreement(&llama_like, "fp32", &fp32_agreement);
    check_agreement(&mla_like, "fp32", &fp32_agreement);
}

static void twenty_steps_in_bf16_agree_with_ref(void **state) {
    (void)state;
    check_agreement(&gpt2_like, "bf16", &bf16_agreement);
    check_agreement(&llama_like, "bf16", &bf16_agreement);
    check_agreement(&mla_like, "bf16", &bf16_agreement);
}

static void the_same_run_gives_the_same_bits(void **state) {
    (void)state;
    History first, second;
    train(&first, &llama_like, (Setting){"cuda", "bf16", {NULL}});
    train(&second, &llama_like, (Setting){"cuda", "bf16", {NULL}});
    assert_memory_equal(first.loss, second.loss, sizeof first.loss);
    assert_memory_equal(first.end, second.end, (size_t)first.elements * sizeof(double));
    free_history(&first);
    free_history(&second);
}

/* ---- spectra ----------------------------------------------------------------------------------------------------- */

static cJSON *read_line(char **text) {
    char *line = strsep(text, "\n");
    cJSON *json = cJSON_Parse(line ? line : "");
    assert_non_null(json);
    return json;
}

static const char *text_of(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItem(object, key);
    return cJSON_IsString(item) ? item->valuestring : "";
}

static double number_of(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItem(object, key);
    return cJSON_IsNumber(item) ? item->valuedouble : (double)NAN;
}

static void assert_same_spectra(const cJSON *cuda, const cJSON *ref) {
    assert_int_equal(cJSON_GetArraySize(cuda), cJSON_GetArraySize(ref));
    const cJSON *b = ref->child;
    for (const cJSON *a = cuda->child; a; a = a->next, b = b->next) {
        double got[] = {number_of(a, "layer"), number_of(a, "head"), number_of(a, "entropy"),
                        number_of(a, "sigma_max")};
        double want[] = {number_of(b, "layer"), number_of(b, "head"), number_of(b, "entropy"),
                         number_of(b, "sigma_max")};
        assert_string_equal(text_of(a, "role"), text_of(b, "role"));
        assert_string_equal(text_of(a, "of"), text_of(b, "of"));
        assert_close("spectrum", got, want, 4, (Tolerance){.relative = 1e-3});
    }
}

/* metrics.jsonl of a run of some steps; the caller frees it. */
static char *metrics_of(Setting setting, const char *folder) {
    char runs_dir[PATH_SIZE + 16];
    Trainer t;
    snprintf(runs_dir, sizeof runs_dir, "runs_dir=%s", folder);
    setting.extra[0] = runs_dir;
    setting.extra[1] = "probe.spectrum_every=2";
    setting.extra[2] = "train.steps=5";
    assert_ok(open_trainer(&t, &llama_like, setting));
    assert_ok(trainer_create_run(&t));
    Progress progress = progress_begin(&t);
    assert_ok(train_loop(&t, &progress));
    assert_ok(metrics_flush(&t.metrics));
    char path[PATH_SIZE];
    assert_ok(path_join(path, t.run_dir, "metrics.jsonl"));
    trainer_free(&t);
    return test_read_file(path);
}

/* Steps 1 and 2 both have spectra, and step 4: those of step 1 must be on their way before step 2 makes its own. */
static void spectra_computed_while_the_device_goes_on_are_those_of_ref(void **state) {
    (void)state;
    char folder[PATH_SIZE];
    test_folder(folder);
    char *cuda = metrics_of((Setting){"cuda", "fp32", {NULL}}, folder);
    char *ref = metrics_of((Setting){"ref", "fp32", {NULL}}, folder);
    char *rest_of_cuda = cuda, *rest_of_ref = ref;
    for (int step = 1; step <= 5; step++) {
        cJSON *a = read_line(&rest_of_cuda), *b = read_line(&rest_of_ref);
        assert_int_equal((int)number_of(a, "step"), step);
        const cJSON *spectrum = cJSON_GetObjectItem(a, "spectrum");
        assert_int_equal(spectrum != NULL, step == 1 || step % 2 == 0);
        if (spectrum) assert_same_spectra(spectrum, cJSON_GetObjectItem(b, "spectrum"));
        assert_int_equal(cJSON_IsNull(cJSON_GetObjectItem(a, "optimizer_ms")), step == 1);
        cJSON_Delete(a);
        cJSON_Delete(b);
    }
    assert_string_equal(rest_of_cuda, "");
    free(cuda);
    free(ref);
    assert_ok(folder_remove(folder));
}

/* ---- measurements of logits -------------------------------------------------------------------------------------- */

/* The last line of a run that measures in every step; and its weights. */
static cJSON *measured_step(Setting setting, double **weights, int64_t *count) {
    Trainer t;
    StepReport r;
    cJSON *line = NULL;
    assert_ok(open_trainer(&t, &gpt2_like, setting));
    for (int step = 0; step < 3; step++) {
        assert_ok(train_step(&t, &r));
        cJSON *written = cJSON_CreateObject();
        probes_report(&t.probes, written);
        char *text = cJSON_PrintUnformatted(written);
        cJSON_Delete(line);
        line = cJSON_Parse(text);
        cJSON_Delete(written);
        free(text);
    }
    *weights = read_weights(&t);
    *count = tensor_numel(t.gpt.params.master);
    trainer_free(&t);
    return line;
}

static void assert_same_rows(const cJSON *cuda, const cJSON *ref, const char *list, const char *const *fields) {
    const cJSON *a, *b = cJSON_GetObjectItem(ref, list)->child;
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(cuda, list)), 6);
    cJSON_ArrayForEach(a, cJSON_GetObjectItem(cuda, list)) {
        for (int i = 0; fields[i]; i++) {
            double got = number_of(a, fields[i]), want = number_of(b, fields[i]);
            assert_close(fields[i], &got, &want, 1, (Tolerance){.relative = 5e-4});
        }
        b = b->next;
    }
}

static void measurements_of_logits_are_those_of_ref_and_change_no_weight(void **state) {
    (void)state;
    static const char *const of_logits[] = {"max",       "sequence", "query",        "key",   "query_token", "max_abs",
                                            "abs_query", "abs_key",  "abs_sequence", "above", NULL};
    static const char *const of_bound[] = {"x_norm", "q_norm",   "k_norm",    "qk_norm",
                                           "bound",  "bound_qk", "tightness", NULL};
    const Setting on = {"cuda", "fp32", {"probe.logits_every=1", "probe.bound_every=1", "probe.spectrum_every=0"}};
    const Setting off = {"cuda", "fp32", {"probe.logits_every=0", "probe.bound_every=0", "probe.spectrum_every=0"}};
    Setting of_ref = on;
    of_ref.device = "ref";
    double *measured, *plain, *reference;
    int64_t count;
    cJSON *cuda = measured_step(on, &measured, &count), *none = measured_step(off, &plain, &count);
    cJSON *ref = measured_step(of_ref, &reference, &count);
    assert_same_rows(cuda, ref, "logits", of_logits);
    assert_same_rows(cuda, ref, "logit_bound", of_bound);
    assert_null(cJSON_GetObjectItem(none, "logits"));
    assert_memory_equal(measured, plain, (size_t)count * sizeof *measured);
    cJSON_Delete(cuda);
    cJSON_Delete(none);
    cJSON_Delete(ref);
    free(measured);
    free(plain);
    free(reference);
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------- */

/* Some steps on one backend, a checkpoint, and the same next steps there and, resumed from it, on the other. */
static void move_run(const ModelCase *model, const char *from, const char *to) {
    char folder[PATH_SIZE], runs_dir[PATH_SIZE + 16];
    Trainer first, second;
    StepReport a, b;
    test_folder(folder);
    snprintf(runs_dir, sizeof runs_dir, "runs_dir=%s", folder);
    assert_ok(open_trainer(&first, model, (Setting){from, "fp32", {runs_dir}}));
    assert_ok(trainer_create_run(&first));
    for (int step = 0; step < 3; step++) assert_ok(train_step(&first, &a));
    assert_ok(trainer_save_checkpoint(&first));

    assert_ok(open_trainer(&second, model, (Setting){to, "fp32", {runs_dir}}));
    assert_ok(trainer_resume(&second, first.run_dir));
    assert_tensors_close("weights", &second.backend, second.gpt.params.master, &first.backend, first.gpt.params.master,
                         (Tolerance){0});
    assert_int_equal(second.step, 3);
    for (int step = 0; step < 3; step++) {
        assert_ok(train_step(&first, &a));
        assert_ok(train_step(&second, &b));
        assert_close("loss", &b.loss, &a.loss, 1, fp32_agreement.loss);
    }
    trainer_free(&first);
    trainer_free(&second);
    assert_ok(folder_remove(folder));
}

static void a_checkpoint_of_one_backend_resumes_on_the_other(void **state) {
    (void)state;
    move_run(&llama_like, "cuda", "ref");
    move_run(&llama_like, "ref", "cuda");
    move_run(&mla_like, "cuda", "ref");
    move_run(&mla_like, "ref", "cuda");
}

/* ---- what goes wrong --------------------------------------------------------------------------------------------- */

static void a_nan_skips_the_step_and_leaves_the_weights_as_they_were(void **state) {
    (void)state;
    Trainer t;
    int refused = 0;
    StepReport r;
    assert_ok(open_trainer(&t, &gpt2_like,
                           (Setting){"cuda", "bf16", {"train.on_nonfinite=skip", "debug.fault=attention:9"}}));
    for (int step = 0; step < 5; step++) {
        double *before = read_weights(&t);
        assert_ok(train_step(&t, &r));
        double *after = read_weights(&t);
        const size_t size = (size_t)tensor_numel(t.gpt.params.master) * sizeof(double);
        assert_int_equal(memcmp(before, after, size) == 0, !r.applied);
        refused += !r.applied;
        free(before);
        free(after);
    }
    assert_int_equal(refused, 1);
    assert_true(isfinite(r.loss) && isfinite(r.grad_norm));
    trainer_free(&t);
}

static void auto_takes_the_device_and_bf16(void **state) {
    (void)state;
    Backend be;
    char note[256];
    assert_ok(device_open(&be, (BackendRequest){"auto", "auto", 1}, note, sizeof note));
    assert_string_equal(be.name, "cuda");
    assert_string_equal(note, "");
    assert_int_equal(be.compute_dtype, DTYPE_BF16);
    assert_non_null(strstr(be.description, ", CUDA "));
    assert_true(backend_measure_peak(&be) > 0);
    backend_close(&be);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(twenty_steps_in_fp32_agree_with_ref),
        cmocka_unit_test(twenty_steps_in_bf16_agree_with_ref),
        cmocka_unit_test(the_same_run_gives_the_same_bits),
        cmocka_unit_test(spectra_computed_while_the_device_goes_on_are_those_of_ref),
        cmocka_unit_test(measurements_of_logits_are_those_of_ref_and_change_no_weight),
        cmocka_unit_test(a_checkpoint_of_one_backend_resumes_on_the_other),
        cmocka_unit_test(a_nan_skips_the_step_and_leaves_the_weights_as_they_were),
        cmocka_unit_test(auto_takes_the_device_and_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
