/* The program as its users meet it: the binary is run in a temporary folder, and judged by its exit code, by what it
 * prints and by the files it leaves. The binary is the one beside this test's folder: build/tests/run/test_train_gpt
 * runs build/tests/train_gpt. */
#include "tests/support.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

typedef struct {
    char folder[PATH_SIZE]; /* fresh for each test; runs are made in it */
    char binary[PATH_SIZE];
    char *output; /* of the last command, both streams */
} Fixture;

/* A model that trains in milliseconds. */
static const char tiny[] =
    "model.layers=2 model.width=16 model.heads=2 model.context=16 model.vocab=32 train.batch=4 "
    "train.micro_batch=2 train.steps=8 train.eval_every=4 train.eval_batches=2 checkpoint.every=4 "
    "optimizer.schedule.warmup=2 probe.spectrum_every=4 device=cpu threads=1";

static int set_up(void **state) {
    Fixture *f = calloc(1, sizeof *f);
    test_folder(f->folder);
    ssize_t length = readlink("/proc/self/exe", f->binary, sizeof f->binary - 1);
    assert_true(length > 0);
    for (int up = 0; up < 2; up++) *strrchr(f->binary, '/') = 0;
    strcat(f->binary, "/train_gpt");
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    Fixture *f = *state;
    assert_ok(folder_remove(f->folder));
    free(f->output);
    free(f);
    return 0;
}

/* Runs `cd folder && binary arguments`; the output stays in f->output. Returns the exit code. */
static int run(Fixture *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int run(Fixture *f, const char *format, ...) {
    char arguments[3000], command[6000];
    va_list list;
    va_start(list, format);
    vsnprintf(arguments, sizeof arguments, format, list);
    va_end(list);
    snprintf(command, sizeof command, "cd %s && %s %s 2>&1", f->folder, f->binary, arguments);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    free(f->output);
    f->output = calloc(1, 1 << 20);
    size_t used = fread(f->output, 1, (1 << 20) - 1, pipe);
    f->output[used] = 0;
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void expect(Fixture *f, int got, int expected, const char *part) {
    if (got == expected && strstr(f->output, part)) return;
    print_error("exit code %d, expected %d with \"%s\" in:\n%s\n", got, expected, part, f->output);
    fail();
}

static void shell(Fixture *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void shell(Fixture *f, const char *format, ...) {
    char command[4000], line[6000];
    va_list list;
    va_start(list, format);
    vsnprintf(command, sizeof command, format, list);
    va_end(list);
    snprintf(line, sizeof line, "cd %s && %s", f->folder, command);
    assert_int_equal(system(line), 0);
}

static char *read_in_folder(Fixture *f, const char *name) {
    char path[PATH_SIZE];
    assert_ok(path_join(path, f->folder, name));
    return test_read_file(path);
}

/* The line of metrics.jsonl for a step (not the start line); the caller deletes it. */
static cJSON *metrics_line(Fixture *f, const char *file, int step) {
    char *text = read_in_folder(f, file);
    cJSON *found = NULL;
    for (char *line = strtok(text, "\n"); line && !found; line = strtok(NULL, "\n")) {
        cJSON *json = cJSON_Parse(line);
        assert_non_null(json);
        bool match = !cJSON_GetObjectItem(json, "event") && cJSON_GetObjectItem(json, "step")->valueint == step;
        if (match)
            found = json;
        else
            cJSON_Delete(json);
    }
    free(text);
    assert_non_null(found);
    return found;
}

/* What a step computed, without how long it took. */
static char *computed_part(Fixture *f, const char *file, int step) {
    static const char *const timings[] = {"tokens_per_s", "mfu", "step_ms", "optimizer_ms", "probe_ms"};
    cJSON *json = metrics_line(f, file, step);
    for (size_t i = 0; i < sizeof timings / sizeof timings[0]; i++) cJSON_DeleteItemFromObject(json, timings[i]);
    char *text = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    return text;
}

static void assert_same_step(Fixture *f, const char *a, const char *b, int step) {
    char *x = computed_part(f, a, step), *y = computed_part(f, b, step);
    assert_string_equal(x, y);
    free(x);
    free(y);
}

/* ---- training --------------------------------------------------------------------------------------------------- */

/* Every measurement of updates, on steps of its own. */
static const char measured[] = "probe.collision_every=4 probe.momentum_every=2 probe.shadow_every=3";

static void a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(void **state) {
    Fixture *f = *state;
    static const char *const settings[] = {"precision=fp32", "precision=bf16", "precision=fp32 model.attention=mla",
                                           "precision=bf16 model.attention=mla model.q_rank=0"};
    for (int i = 0; i < 4; i++) {
        expect(f, run(f, "name=whole %s %s %s threads=2", settings[i], tiny, measured), 0, "8 steps");
        shell(f, "cp -r runs/whole runs/cut && rm -r runs/cut/checkpoints/step_00000008");
        expect(f, run(f, "--resume runs/cut"), 0, "8 steps");
        shell(f, "diff -r runs/whole/checkpoints/step_00000008 runs/cut/checkpoints/step_00000008");
        for (int step = 1; step <= 8; step++)
            assert_same_step(f, "runs/whole/metrics.jsonl", "runs/cut/metrics.jsonl", step);
        shell(f, "rm -r runs");
    }
}

/* With the state that each optimizer keeps, and schedules that go on. */
static void every_optimizer_resumes_bit_for_bit(void **state) {
    Fixture *f = *state;
    static const char *const optimizers[] = {
        "optimizer.matrices=normuon optimizer.muon.momentum_warmup=3 optimizer.muon.momentum_cooldown=3",
        "optimizer.matrices=adamuon 'optimizer.muon.per_head=[\"q\", \"o\"]' optimizer.cautious_decay=true",
        "optimizer.matrices=sgd optimizer.decay_schedule.kind=cosine",
        "optimizer.matrices=lion 'optimizer.overrides.*=lion' optimizer.mup_base_width=8",
        "optimizer.matrices=muon optimizer.muon.orthogonalize=schatten optimizer.mup_base_width=8",
    };
    for (size_t i = 0; i < sizeof optimizers / sizeof optimizers[0]; i++) {
        expect(f, run(f, "name=whole %s %s", tiny, optimizers[i]), 0, "8 steps");
        shell(f, "cp -r runs/whole runs/cut && rm -r runs/cut/checkpoints/step_00000008");
        expect(f, run(f, "--resume runs/cut"), 0, "8 steps");
        shell(f, "diff -r runs/whole/checkpoints/step_00000008 runs/cut/checkpoints/step_00000008");
        for (int step = 5; step <= 8; step++)
            assert_same_step(f, "runs/whole/metrics.jsonl", "runs/cut/metrics.jsonl", step);
        shell(f, "rm -r runs");
    }
}

static void what_a_resume_changes_holds_for_the_next_one(void **state) {
    Fixture *f = *state;
    run(f, "name=a %s", tiny);
    expect(f, run(f, "--resume runs/a"), 0, "nothing to do: the run is at step 8 of 8");
    expect(f, run(f, "--resume runs/a train.steps=12"), 0, "12 steps");
    shell(f, "rm -r runs/a/checkpoints/step_00000012");
    expect(f, run(f, "--resume runs/a"), 0, "12 steps");
    shell(f, "test -d runs/a/checkpoints/step_00000012");
}

static void the_same_seed_gives_the_same_bits_and_another_seed_others(void **state) {
    Fixture *f = *state;
    run(f, "name=a %s", tiny);
    run(f, "name=b %s", tiny);
    run(f, "name=c seed=2 %s", tiny);
    shell(f,
          "cmp runs/a/checkpoints/step_00000008/model.safetensors runs/b/checkpoints/step_00000008/model.safetensors");
    assert_same_step(f, "runs/a/metrics.jsonl", "runs/b/metrics.jsonl", 8);
    shell(f, "! cmp -s runs/a/checkpoints/step_00000008/model.safetensors "
             "runs/c/checkpoints/step_00000008/model.safetensors");
}

static void a_run_never_overwrites_another(void **state) {
    Fixture *f = *state;
    run(f, "name=a %s", tiny);
    shell(f, "cp -r runs/a before");
    expect(f, run(f, "name=a %s", tiny), 0, "runs/a-2");
    shell(f, "diff -r before runs/a && test -f runs/a-2/metrics.jsonl");
}

static void metrics_hold_every_documented_field(void **state) {
    Fixture *f = *state;
    static const char *const fields[] = {"step",     "tokens",          "loss",     "lr",           "grad_norm",
                                         "val_loss", "max_logit",       "mfu",      "tokens_per_s", "step_ms",
                                         "spectrum", "max_logit_heads", "probe_ms", "optimizer_ms"};
    run(f, "name=a %s", tiny);
    cJSON *line = metrics_line(f, "runs/a/metrics.jsonl", 4);
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (!cJSON_GetObjectItem(line, fields[i])) fail_msg("no field %s", fields[i]);
    cJSON *heads = cJSON_GetObjectItem(line, "max_logit_heads");
    assert_int_equal(cJSON_GetArraySize(heads), 2);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetArrayItem(heads, 0)), 2);
    assert_int_equal(cJSON_GetObjectItem(line, "tokens")->valueint, 4 * 4 * 16);
    cJSON_Delete(line);
}

static void expect_rows(Fixture *f, const char *file, int step, const char *field, int rows) {
    cJSON *line = metrics_line(f, file, step);
    const cJSON *list = cJSON_GetObjectItem(line, field);
    if (rows == 0 && list) fail_msg("step %d has %s", step, field);
    if (rows > 0 && cJSON_GetArraySize(list) != rows)
        fail_msg("step %d has %d rows of %s instead of %d", step, cJSON_GetArraySize(list), field, rows);
    cJSON_Delete(line);
}

/* The step has so many rows of updates, of spectrum, with this field. */
static void expect_updates(Fixture *f, const char *file, int step, const char *field, int rows) {
    cJSON *line = metrics_line(f, file, step);
    const cJSON *row;
    int found = 0;
    cJSON_ArrayForEach(row, cJSON_GetObjectItem(line, "spectrum")) {
        if (!cJSON_GetObjectItem(row, field)) continue;
        assert_string_equal(cJSON_GetObjectItem(row, "of")->valuestring, "update");
        found++;
    }
    if (found != rows) fail_msg("step %d has %d updates with %s instead of %d", step, found, field, rows);
    cJSON_Delete(line);
}

/* 2 layers of q and k, and 2 shadows of each; 7 hidden matrices a layer, with o split into its 2 heads. */
static void measurements_of_updates_come_at_their_steps(void **state) {
    Fixture *f = *state;
    static const char *const optimizers[] = {"muon", "adamw"};
    for (int i = 0; i < 2; i++) {
        const bool muon = i == 0;
        char file[40];
        snprintf(file, sizeof file, "runs/%s/metrics.jsonl", optimizers[i]);
        expect(f,
               run(f, "name=%s %s %s optimizer.matrices=%s optimizer.muon.per_head='[\"o\"]'", optimizers[i], tiny,
                   measured, optimizers[i]),
               0, "8 steps");
        for (int step = 1; step <= 8; step++) {
            const bool spectra = step == 1 || step % 4 == 0;
            expect_rows(f, file, step, "collision", step == 1 || step % 4 == 0 ? 4 : 0);
            expect_rows(f, file, step, "momentum", step == 1 || step % 2 == 0 ? 4 : 0);
            expect_rows(f, file, step, "shadow", step == 1 || step % 3 == 0 ? 8 : 0);
            expect_updates(f, file, step, "decay_bound", spectra ? 14 : 0);
            /* muon: 6 whole matrices and 2 heads of o a layer; adamw orthogonalizes nothing */
            expect_updates(f, file, step, "error", spectra && muon ? 16 : 0);
        }
    }
}

static double number(const cJSON *row, const char *name) {
    const cJSON *item = cJSON_GetObjectItem(row, name);
    if (!cJSON_IsNumber(item)) fail_msg("%s is not a number", name);
    return item->valuedouble;
}

static double first_number(const cJSON *row, const char *name) {
    return cJSON_GetArrayItem(cJSON_GetObjectItem(row, name), 0)->valuedouble;
}

static void assert_near(double got, double expected, double tolerance) {
    if (!(fabs(got - expected) <= tolerance)) fail_msg("%.9g instead of %.9g", got, expected);
}

/* The first row of a field in step 1. */
static const cJSON *first_row(cJSON *line, const char *field) {
    const cJSON *row = cJSON_GetArrayItem(cJSON_GetObjectItem(line, field), 0);
    if (!row) fail_msg("no row of %s", field);
    return row;
}

/* The row of the first layer's whole q, "weight" or "update". */
static const cJSON *spectrum_of_q(const cJSON *line, const char *of) {
    const cJSON *row;
    cJSON_ArrayForEach(row, cJSON_GetObjectItem(line, "spectrum")) {
        const bool whole = cJSON_IsNull(cJSON_GetObjectItem(row, "head"));
        const char *role = cJSON_GetObjectItem(row, "role")->valuestring;
        if (whole && !strcmp(role, "q") && !strcmp(cJSON_GetObjectItem(row, "of")->valuestring, of)) return row;
    }
    fail_msg("no %s of q", of);
    return NULL;
}

/* What different probes say of one matrix, the first layer's q: wd is 0.1, and s = 0.2 sqrt(16). */
static void measurements_of_one_step_agree(void **state) {
    Fixture *f = *state;
    run(f, "name=a %s %s probe.blocks='[\"q\"]' qk_clip.enabled=false", tiny, measured);
    cJSON *line = metrics_line(f, "runs/a/metrics.jsonl", 1);
    const cJSON *q = first_row(line, "collision");
    const cJSON *weight = spectrum_of_q(line, "weight"), *update = spectrum_of_q(line, "update");
    const cJSON *muon = cJSON_GetArrayItem(cJSON_GetObjectItem(line, "shadow"), 2);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(line, "collision")), 2);
    assert_string_equal(cJSON_GetObjectItem(muon, "optimizer")->valuestring, "muon");

    const double lr = number(line, "lr"), scale = 0.2 * 4, wd = 0.1;
    const double c = first_number(q, "c"), sigma = first_number(q, "sigma"), predicted = first_number(q, "predicted");
    assert_near(predicted, -lr * scale * c - lr * wd * sigma, 1e-9);
    assert_near(number(muon, "sigma_change"), predicted, 1e-9);
    assert_near(number(muon, "collision"), number(q, "relative"), 1e-6);
    assert_near(number(muon, "rms"), number(update, "step_rms"), 1e-9);
    assert_near(number(weight, "sigma_max"), sigma + first_number(q, "realised"), 1e-7);
    assert_near(number(update, "decay_bound"), scale * number(update, "sigma_max") / wd, 1e-3);
    cJSON_Delete(line);
}

static void elements_bound_the_norm_under_adamw_and_nothing_does_without_decay(void **state) {
    Fixture *f = *state;
    run(f, "name=a %s optimizer.matrices=adamw optimizer.weight_decay=0.05", tiny);
    cJSON *line = metrics_line(f, "runs/a/metrics.jsonl", 1);
    assert_near(number(spectrum_of_q(line, "update"), "decay_bound"), 16 / 0.05, 1e-3); /* sqrt(n m) / wd */
    assert_null(cJSON_GetObjectItem(spectrum_of_q(line, "update"), "error"));
    cJSON_Delete(line);
    static const char *const unbounded[] = {"matrices=adamw optimizer.weight_decay=0", "matrices=sgd",
                                            "cautious_decay=true"};
    for (int i = 0; i < 3; i++) {
        run(f, "name=b%d %s probe.orthogonality=false optimizer.%s", i, tiny, unbounded[i]);
        char file[40];
        snprintf(file, sizeof file, "runs/b%d/metrics.jsonl", i);
        line = metrics_line(f, file, 1);
        assert_true(cJSON_IsNull(cJSON_GetObjectItem(spectrum_of_q(line, "update"), "decay_bound")));
        assert_null(cJSON_GetObjectItem(spectrum_of_q(line, "update"), "error"));
        cJSON_Delete(line);
    }
}

static void measurements_of_updates_change_no_weight(void **state) {
    Fixture *f = *state;
    static const char off[] = "probe.spectrum_every=0 probe.collision_every=0 probe.momentum_every=0 "
                              "probe.shadow_every=0";
    static const char on[] = "probe.spectrum_every=1 probe.collision_every=1 probe.momentum_every=1 "
                             "probe.shadow_every=1 "
                             "probe.blocks='[\"q\",\"k\",\"v\",\"o\",\"gate\",\"up\",\"down\"]'";
    static const char *const optimizers[] = {"muon", "adamw", "normuon", "sgd", "lion"};
    for (int i = 0; i < 5; i++) {
        expect(f, run(f, "name=on %s optimizer.matrices=%s %s", tiny, optimizers[i], on), 0, "8 steps");
        expect(f, run(f, "name=off %s optimizer.matrices=%s %s", tiny, optimizers[i], off), 0, "8 steps");
        shell(f, "cmp runs/on/checkpoints/step_00000008/model.safetensors "
                 "runs/off/checkpoints/step_00000008/model.safetensors");
        expect_rows(f, "runs/on/metrics.jsonl", 7, "collision", 14);
        shell(f, "rm -r runs");
    }
}

/* 4 micro-batch forwards of 9 linears each lie before step 3. */
static void a_skipped_step_measures_nothing(void **state) {
    Fixture *f = *state;
    static const char *const fields[] = {"collision", "momentum", "shadow", "spectrum"};
    run(f,
        "name=a debug.fault=linear:37 %s probe.spectrum_every=3 probe.collision_every=3 probe.momentum_every=3 "
        "probe.shadow_every=3",
        tiny);
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        expect_rows(f, "runs/a/metrics.jsonl", 3, fields[i], 0);
        cJSON *line = metrics_line(f, "runs/a/metrics.jsonl", 6);
        first_row(line, fields[i]);
        cJSON_Delete(line);
    }
}

static void a_retired_key_is_read_ignored_and_said_once(void **state) {
    Fixture *f = *state;
    expect(f, run(f, "name=a %s probe.clips_every=4", tiny), 0, "probe.clips_every");
    char *config = read_in_folder(f, "runs/a/config.json");
    assert_null(strstr(config, "clips_every"));
    free(config);
}

static void shadows_start_anew_where_a_checkpoint_has_none(void **state) {
    Fixture *f = *state;
    run(f, "name=without %s probe.shadow_every=0", tiny);
    run(f, "name=with %s %s", tiny, measured);
    run(f, "name=other %s %s", tiny, measured);
    shell(f, "rm -r runs/*/checkpoints/step_00000008");
    expect(f, run(f, "--resume runs/without %s", measured), 0, "8 steps");
    expect_rows(f, "runs/without/metrics.jsonl", 6, "shadow", 8);
    expect(f, run(f, "--resume runs/with probe.shadow_every=0"), 0, "8 steps");
    expect_rows(f, "runs/with/metrics.jsonl", 6, "shadow", 0);
    /* other blocks than the file has: all of them anew */
    expect(f, run(f, "--resume runs/other probe.blocks='[\"q\",\"v\"]'"), 0, "8 steps");
    expect_rows(f, "runs/other/metrics.jsonl", 6, "shadow", 8);
}

static void qk_clip_is_logged_when_a_head_passes_tau(void **state) {
    Fixture *f = *state;
    run(f, "name=a qk_clip.threshold=0.01 %s", tiny);
    cJSON *line = metrics_line(f, "runs/a/metrics.jsonl", 1);
    cJSON *clips = cJSON_GetObjectItem(line, "clipped");
    assert_non_null(clips);
    cJSON *clip = cJSON_GetArrayItem(clips, 0);
    double gamma = cJSON_GetObjectItem(clip, "gamma")->valuedouble;
    double max_logit = cJSON_GetObjectItem(clip, "max_logit")->valuedouble;
    assert_true(fabs(gamma * max_logit - 0.01) < 1e-6);
    cJSON_Delete(line);
    run(f, "name=b qk_clip.threshold=1000 %s", tiny);
    line = metrics_line(f, "runs/b/metrics.jsonl", 1);
    assert_null(cJSON_GetObjectItem(line, "clipped"));
    cJSON_Delete(line);
}

static void measurements_of_logits_come_at_their_steps(void **state) {
    Fixture *f = *state;
    static const struct {
        const char *field;
        int every;
    } measurements[] = {{"logits", 2}, {"logit_bound", 3}, {"spectrum", 4}};
    expect(f, run(f, "name=a %s probe.logits_every=2 probe.bound_every=3", tiny), 0, "8 steps");
    expect(f, run(f, "name=b %s probe.logits_every=0 probe.bound_every=0", tiny), 0, "8 steps");
    for (int step = 1; step <= 8; step++) {
        cJSON *line = metrics_line(f, "runs/a/metrics.jsonl", step),
              *none = metrics_line(f, "runs/b/metrics.jsonl", step);
        bool any = false;
        for (size_t i = 0; i < sizeof measurements / sizeof measurements[0]; i++) {
            bool expected = step == 1 || step % measurements[i].every == 0;
            assert_int_equal(cJSON_GetObjectItem(line, measurements[i].field) != NULL, expected);
            if (i < 2) assert_null(cJSON_GetObjectItem(none, measurements[i].field));
            any = any || expected;
        }
        assert_int_equal(cJSON_GetObjectItem(line, "probe_ms") != NULL, any);
        cJSON_Delete(line);
        cJSON_Delete(none);
    }
    shell(f,
          "cmp runs/a/checkpoints/step_00000008/model.safetensors runs/b/checkpoints/step_00000008/model.safetensors");
    expect(f, run(f, "name=d %s model.qk_norm=true", tiny), 0, "8 steps");
    cJSON *line = metrics_line(f, "runs/d/metrics.jsonl", 1);
    assert_null(cJSON_GetObjectItem(line, "logit_bound"));
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(line, "logits")), 4);
    cJSON_Delete(line);
}

/* The first row of the table, against the "clipped" records of runs/whole. Some head was clipped in both halves. */
static void assert_clips_are_those_of_the_metrics(Fixture *f, const char *table) {
    long long layer, head, first, last, times, found_first = 0, found_last = 0, found = 0;
    double gamma, product = 1;
    const char *row = strstr(table, "gamma\n");
    assert_non_null(row);
    assert_int_equal(sscanf(row + 6, "%lld %lld %lld %lld %lld %lf", &layer, &head, &first, &last, &times, &gamma), 6);
    for (int step = 1; step <= 8; step++) {
        cJSON *line = metrics_line(f, "runs/whole/metrics.jsonl", step);
        const cJSON *clip;
        cJSON_ArrayForEach(clip, cJSON_GetObjectItem(line, "clipped")) {
            if ((long long)number(clip, "layer") != layer || (long long)number(clip, "head") != head) continue;
            if (found++ == 0) found_first = step;
            found_last = step;
            product *= number(clip, "gamma");
        }
        cJSON_Delete(line);
    }
    assert_true(found == times && found_first == first && found_last == last && first <= 4 && last > 4);
    assert_near(gamma / product, 1, 1e-3); /* 4 digits are printed */
}

/* Clips from before the checkpoint and after it. */
static void a_resumed_run_has_the_lines_and_the_clips_of_an_uninterrupted_one(void **state) {
    Fixture *f = *state;
    const char *const runs[] = {"runs/whole", "runs/cut"};
    char tables[2][2000];
    expect(f,
           run(f, "name=whole %s qk_clip.threshold=0.005 optimizer.lr=0.05 probe.logits_every=3 probe.bound_every=2",
               tiny),
           0, "8 steps");
    shell(f, "cp -r runs/whole runs/cut && rm -r runs/cut/checkpoints/step_00000008");
    expect(f, run(f, "--resume runs/cut"), 0, "8 steps");
    for (int step = 1; step <= 8; step++)
        assert_same_step(f, "runs/whole/metrics.jsonl", "runs/cut/metrics.jsonl", step);
    for (int i = 0; i < 2; i++) {
        expect(f, run(f, "inspect %s", runs[i]), 0, "product of gamma");
        const char *table = strstr(f->output, "QK-Clip has clipped ");
        assert_non_null(table);
        snprintf(tables[i], sizeof tables[i], "%.*s", (int)(strstr(table, "runs/") - table), table);
    }
    assert_string_equal(tables[0], tables[1]);
    assert_clips_are_those_of_the_metrics(f, tables[0]);
}

static void progress_fits_into_80_columns(void **state) {
    Fixture *f = *state;
    run(f, "name=a %s train.steps=999999 train.eval_every=1 debug.fault=linear:37 train.on_nonfinite=stop", tiny);
    char *table = strstr(f->output, "         step ");
    assert_non_null(table);
    for (char *line = strtok(table, "\n"); line && !strstr(line, "train_gpt:"); line = strtok(NULL, "\n"))
        if (strlen(line) >= 80) fail_msg("%zu columns: %s", strlen(line), line);
}

/* ---- what may go wrong ------------------------------------------------------------------------------------------ */

static void a_nan_in_a_step_skips_it_and_leaves_the_weights(void **state) {
    Fixture *f = *state;
    /* 4 micro-batch forwards of 9 linears each lie before step 3 */
    expect(f, run(f, "name=a debug.fault=linear:37 %s", tiny), 0, "step skipped");
    cJSON *line = metrics_line(f, "runs/a/metrics.jsonl", 3);
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(line, "skipped")));
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(line, "loss")));
    cJSON_Delete(line);
    line = metrics_line(f, "runs/a/metrics.jsonl", 4);
    assert_true(cJSON_IsNumber(cJSON_GetObjectItem(line, "loss")));
    assert_true(cJSON_IsNumber(cJSON_GetObjectItem(line, "val_loss")));
    cJSON_Delete(line);
}

static void a_nan_in_an_evaluation_is_a_null(void **state) {
    Fixture *f = *state;
    /* 8 micro-batch forwards of 9 linears each lie before the evaluation after step 4 */
    expect(f, run(f, "name=a debug.fault=linear:73 %s", tiny), 0, "8 steps");
    cJSON *line = metrics_line(f, "runs/a/metrics.jsonl", 4);
    assert_true(cJSON_IsNumber(cJSON_GetObjectItem(line, "loss")));
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(line, "val_loss")));
    cJSON_Delete(line);
}

static void a_nan_stops_the_run_when_configured(void **state) {
    Fixture *f = *state;
    expect(f, run(f, "name=a debug.fault=linear:37 train.on_nonfinite=stop %s", tiny), 3, "step 3");
}

static pid_t start_endless_run(Fixture *f) {
    pid_t child = fork();
    if (child != 0) return child;
    if (chdir(f->folder) != 0 || !freopen("out", "w", stdout)) _exit(99);
    execl(f->binary, "train_gpt", "name=a", "train.steps=100000000", "model.layers=1", "model.width=16",
          "model.heads=2", "model.context=16", "model.vocab=32", "train.batch=2", "train.eval_every=0",
          "train.eval_batches=1", "checkpoint.every=0", "device=cpu", "threads=1", (char *)NULL);
    _exit(98);
}

/* Waits until the file or folder is there and, unless part is NULL, holds it. */
static void wait_for(Fixture *f, const char *name, const char *part) {
    char path[PATH_SIZE];
    assert_ok(path_join(path, f->folder, name));
    for (int wait = 0; wait < 200000; wait++) {
        char *text = NULL;
        int64_t size = 0;
        bool found =
            part ? file_read(path, 1 << 30, &text, &size).code == STATUS_OK && strstr(text, part) : file_exists(path);
        free(text);
        if (found) return;
        usleep(100);
    }
    fail_msg("%s did not come", name);
}

static void interrupt(Fixture *f, pid_t child) {
    int status;
    assert_int_equal(kill(child, SIGINT), 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 130);
    char *out = read_in_folder(f, "out");
    assert_non_null(strstr(out, "--resume runs/a"));
    free(out);
    shell(f, "ls runs/a/checkpoints/step_*/model.safetensors >/dev/null");
}

static void an_interrupt_finishes_the_step_and_writes_a_checkpoint(void **state) {
    Fixture *f = *state;
    pid_t child = start_endless_run(f);
    wait_for(f, "runs/a/metrics.jsonl", "\"loss\"");
    interrupt(f, child);
}

static void an_interrupt_before_the_first_step_leaves_a_run_to_resume(void **state) {
    Fixture *f = *state;
    pid_t child = start_endless_run(f);
    wait_for(f, "runs/a", NULL);
    interrupt(f, child);
    expect(f, run(f, "--resume runs/a train.steps=1 optimizer.schedule.warmup=0"), 0, "step");
}

static void a_full_disk_stops_the_run_which_then_resumes(void **state) {
    Fixture *f = *state;
    expect(f, run(f, "name=whole %s probe.spectrum_every=1", tiny), 0, "8 steps");
    /* no file may grow beyond what metrics.jsonl has after step 7 and a bit of the next line: as on a full disk */
    shell(f,
          "trap '' XFSZ; ulimit -f $(($(sed '/\"step\":8/,$d' runs/whole/metrics.jsonl | wc -c) / 512 + 4)); "
          "%s name=a %s probe.spectrum_every=1 >out 2>&1; "
          "test $? = 2 && grep -q 'train_gpt: runs/a/metrics.jsonl: cannot write' out",
          f->binary, tiny);
    expect(f, run(f, "--resume runs/a"), 0, "8 steps");
    for (int step = 1; step <= 8; step++) assert_same_step(f, "runs/whole/metrics.jsonl", "runs/a/metrics.jsonl", step);
}

/* The run folder's name fits into a path, its config.json's does not. */
static void a_start_that_fails_leaves_no_run_folder(void **state) {
    Fixture *f = *state;
    char parent[1005];
    for (int i = 0; i < 1004; i++) parent[i] = (char)(i % 201 == 200 ? '/' : 'p');
    parent[1004] = 0;
    expect(f, run(f, "runs_dir=%s name=aaaaaaaaaa %s", parent, tiny), 2, "pppp/pppp");
    shell(f, "test -d %s && test ! -e %s/aaaaaaaaaa", parent, parent);
}

static void a_damaged_checkpoint_is_passed_over(void **state) {
    Fixture *f = *state;
    run(f, "name=a %s", tiny);
    shell(f, "printf 'x' | dd of=runs/a/checkpoints/step_00000008/model.safetensors bs=1 seek=3000 conv=notrunc "
             "2>/dev/null");
    expect(f, run(f, "--resume runs/a"), 0, "step_00000008");
    shell(f, "rm -r runs/a/checkpoints");
    expect(f, run(f, "--resume runs/a"), 2, "runs/a");
}

static void latent_attention_is_planned_evaluated_and_sampled(void **state) {
    Fixture *f = *state;
    expect(f, run(f, "--dry-run %s model.attention=mla optimizer.muon.per_head='[\"q_rope\"]'", tiny), 0,
           "layers.0-1.q_rope per head");
    static const char *const parts[] = {"layers.0-1.q_down", "layers.0-1.kv_down", "layers.0-1.k_rope",
                                        "3 L H (D + E) T"};
    for (int i = 0; i < 4; i++)
        if (!strstr(f->output, parts[i])) fail_msg("the plan lacks %s:\n%s", parts[i], f->output);
    expect(f, run(f, "--dry-run %s model.attention=mla device=cuda", tiny), 0, "sum_heads");
    expect(f, run(f, "name=a %s model.attention=mla qk_clip.threshold=0.001", tiny), 0,
           "2 heads (latent, ranks 8 and 8, sizes 8 + 4 and 8)");
    expect(f, run(f, "eval runs/a"), 0, "bits a token");
    expect(f, run(f, "sample runs/a --prompt '1, 2 31' --length 3"), 0, "1 2 31 ");
    expect(f, run(f, "inspect runs/a/checkpoints/step_00000008"), 0, "kv_a_proj_with_mqa");
    shell(f, "rm -r runs/a/checkpoints/step_00000008");
    expect(f, run(f, "--resume runs/a model.kv_rank=4"), 2, "model.kv_rank");
    expect(f, run(f, "--resume runs/a model.head_value=4"), 2, "model.head_value");
}

static void resume_refuses_another_model_or_other_data(void **state) {
    Fixture *f = *state;
    run(f, "name=a %s", tiny);
    shell(f, "rm -r runs/a/checkpoints/step_00000008 && cp -r runs/a before");
    expect(f, run(f, "--resume runs/a model.width=32"), 2, "width");
    expect(f, run(f, "--resume runs/a seed=2"), 2, "data");
    expect(f, run(f, "--resume runs/a model.context=32"), 2, "model.context");
    expect(f, run(f, "--resume runs/a model.norm_eps=0.1"), 2, "model.norm_eps");
    shell(f, "diff -r before runs/a");
}

/* Fine-tuning: the weights of one run, another optimizer and other data. With a rate of 0 the new run's first
 * checkpoint shows what it started with. */
static void a_run_starts_from_the_weights_of_another(void **state) {
    Fixture *f = *state;
    static const char other[] = "optimizer.matrices=adamw data.synthetic_states=3 seed=7 train.steps=1 "
                                "optimizer.schedule.warmup=0 probe.spectrum_every=0 optimizer.lr=0";
    run(f, "name=a %s", tiny);
    static const char *const from[] = {"runs/a", "runs/a/checkpoints/step_00000008", "bare"};
    shell(f, "mkdir bare && cp runs/a/checkpoints/step_00000008/model.safetensors bare && "
             "cp runs/a/checkpoints/step_00000008/config.json bare");
    for (int i = 0; i < 3; i++) {
        expect(f, run(f, "name=b %s %s model.context=8 train.init_from=%s", tiny, other, from[i]), 0, "weights  of");
        shell(f, "cmp runs/a/checkpoints/step_00000008/model.safetensors "
                 "runs/b/checkpoints/step_00000001/model.safetensors");
        shell(f, "mv runs/a a"); /* a resumed run needs the old one no more */
        expect(f, run(f, "--resume runs/b train.steps=2 optimizer.lr=0.001"), 0, "2 steps");
        shell(f, "mv a runs/a && rm -r runs/b");
    }
}

static void a_run_does_not_start_from_what_does_not_fit(void **state) {
    Fixture *f = *state;
    run(f, "name=a %s model.bias=true", tiny);
    shell(f, "mv runs old");
    static const char *const cases[][2] = {
        {"train.init_from=nowhere", "nowhere is neither a run nor a checkpoint"},
        {"train.init_from=old/a model.bias=true model.norm_eps=1e-3", "rms_norm_eps 1e-05, this run's 0.001"},
        {"train.init_from=old/a model.bias=true model.heads=1", "num_attention_heads 2, this run's 1"},
        {"train.init_from=old/a", "bias"},
        {"train.init_from=old/a model.bias=true model.vocab=33", "vocab_size 32"},
    };
    for (int i = 0; i < 5; i++) expect(f, run(f, "name=b %s %s", tiny, cases[i][0]), 2, cases[i][1]);
    shell(f,
          "printf x | dd of=old/a/checkpoints/step_00000008/model.safetensors bs=1 seek=2000 conv=notrunc 2>/dev/null");
    expect(f, run(f, "name=b %s train.init_from=old/a/checkpoints/step_00000008 model.bias=true", tiny), 2, "damaged");
    shell(f, "test ! -d runs || test -z \"$(ls runs)\"");
}

static void bad_input_exits_with_2_and_one_sentence(void **state) {
    Fixture *f = *state;
    static const struct {
        const char *arguments, *part;
    } cases[] = {
        {"missing.json", "missing.json"},
        {"model.widht=3", "did you mean"},
        {"model.width=abc", "model.width"},
        {"model.width=10 model.heads=3", "model.width"},
        {"model.qk_norm=true qk_clip.enabled=true", "qk_norm"},
        {"model.qk_norm=true probe.bound_every=5", "probe.bound_every"},
        {"probe.logits_every=-1", "probe.logits_every"},
        {"data.train=nowhere/*.bin", "nowhere/*.bin"},
        {"data.train=text.bin data.val=text.bin", "text.bin"},
        {"data.train=cut.bin data.val=cut.bin", "cut.bin"},
        {"data.train=large.bin data.val=large.bin model.vocab=64", "large.bin"},
        {"runs_dir=text.bin model.layers=1 model.width=16 model.heads=2", "text.bin"},
        {"device=gpu", "device"},
        {"--resume nowhere", "nowhere"},
        {"sample nowhere", "nowhere"},
        {"eval nowhere", "nowhere"},
        {"inspect nowhere", "nowhere"},
        {"prepare out nowhere.txt", "nowhere.txt"},
        {"prepare", "prepare OUT_DIR"},
        {"--frobnicate", "--frobnicate"},
        {"-h", "unknown option -h"},
        {"seed=1 --resume runs/a", "--resume must be the first argument"},
        {"sample runs/a --length many", "--length"},
    };
    shell(f, "echo 'This is not a token file.' > text.bin");
    run(f, "prepare data text.bin");
    shell(f, "cp data/train_000001.bin large.bin; head -c 1030 large.bin > cut.bin; rm -r data");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        expect(f, run(f, "%s", cases[i].arguments), 2, cases[i].part);
        assert_ptr_equal(strchr(f->output, '\n'), f->output + strlen(f->output) - 1); /* one line */
        shell(f, "test ! -e runs");
    }
}

/* ---- the other commands ----------------------------------------------------------------------------------------- */

static void text_is_prepared_trained_on_evaluated_and_continued(void **state) {
    Fixture *f = *state;
    shell(f, "for i in $(seq 400); do echo \"the cat number $i sat on the mat\"; done > cats.txt");
    expect(f, run(f, "prepare cats cats.txt"), 0, "train_000001.bin");
    expect(f, run(f, "name=cats 'data.train=cats/train*.bin' 'data.val=cats/val*.bin' %s model.vocab=256", tiny), 0,
           "8 steps");
    expect(f, run(f, "eval runs/cats"), 0, "bits a byte");
    expect(f, run(f, "sample runs/cats --prompt 'the cat' --length 20 --seed 3"), 0, "the cat");
    char *first = strdup(f->output);
    run(f, "sample runs/cats --prompt 'the cat' --length 20 --seed 3");
    assert_string_equal(first, f->output);
    free(first);
    expect(f, run(f, "sample runs/cats --prompt '' --length 300 --temperature 100"), 0, "");
    for (const char *c = f->output; *c; c++)
        if ((unsigned char)*c < ' ' && *c != '\n' && *c != '\t') fail_msg("control character %d", *c);
    expect(f, run(f, "sample runs/cats --prompt '' --length 5 --top-k 1000000 --temperature 0"), 0, "");
    expect(f, run(f, "inspect runs/cats"), 0, "step_00000008");
    expect(f, run(f, "inspect cats/train_000001.bin"), 0, "tokens");
    expect(f, run(f, "inspect runs/cats/checkpoints/step_00000008/model.safetensors"), 0, "model.norm.weight");
    expect(f, run(f, "inspect runs/cats/checkpoints/step_00000008"), 0, "model.norm.weight");
}

static void without_a_tokenizer_a_prompt_is_numbers(void **state) {
    Fixture *f = *state;
    run(f, "name=a %s", tiny);
    expect(f, run(f, "sample runs/a --prompt '1, 2 31' --length 3"), 0, "1 2 31 ");
    expect(f, run(f, "sample runs/a --prompt '32'"), 2, "[0, 32)");
    expect(f, run(f, "sample runs/a --prompt 'the cat'"), 2, "tokenizer.bin");
    expect(f, run(f, "eval runs/a"), 0, "bits a token");
}

static void dry_run_and_help_print_and_write_nothing(void **state) {
    Fixture *f = *state;
    expect(f, run(f, "--dry-run %s", tiny), 0, "layers.0-1.q");
    assert_non_null(strstr(f->output, "total"));
    static const char *const optimizers[] = {"muon", "normuon", "adamuon", "sgd", "lion", "adamw"};
    for (size_t i = 0; i < sizeof optimizers / sizeof optimizers[0]; i++) {
        char row[32];
        snprintf(row, sizeof row, "16 x 16  %s", optimizers[i]);
        expect(f, run(f, "--dry-run %s optimizer.matrices=%s", tiny, optimizers[i]), 0, row);
        expect(f, run(f, "--dry-run %s device=cuda optimizer.matrices=%s", tiny, optimizers[i]), 0, "roofline");
    }
    expect(f, run(f, "--help"), 0, "optimizer.muon.momentum");
    expect(f, run(f, "--version"), 0, "train_gpt");
    expect(f, run(f, "--schema"), 0, "\"$schema\"");
    cJSON *schema = cJSON_Parse(f->output);
    assert_non_null(schema);
    cJSON_Delete(schema);
    shell(f, "test -z \"$(ls)\"");
}

int main(void) {
#define PROGRAM_TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        PROGRAM_TEST(a_resumed_run_equals_the_uninterrupted_one_bit_for_bit),
        PROGRAM_TEST(every_optimizer_resumes_bit_for_bit),
        PROGRAM_TEST(what_a_resume_changes_holds_for_the_next_one),
        PROGRAM_TEST(the_same_seed_gives_the_same_bits_and_another_seed_others),
        PROGRAM_TEST(a_run_never_overwrites_another),
        PROGRAM_TEST(metrics_hold_every_documented_field),
        PROGRAM_TEST(measurements_of_updates_come_at_their_steps),
        PROGRAM_TEST(measurements_of_one_step_agree),
        PROGRAM_TEST(elements_bound_the_norm_under_adamw_and_nothing_does_without_decay),
        PROGRAM_TEST(measurements_of_updates_change_no_weight),
        PROGRAM_TEST(a_skipped_step_measures_nothing),
        PROGRAM_TEST(a_retired_key_is_read_ignored_and_said_once),
        PROGRAM_TEST(shadows_start_anew_where_a_checkpoint_has_none),
        PROGRAM_TEST(qk_clip_is_logged_when_a_head_passes_tau),
        PROGRAM_TEST(measurements_of_logits_come_at_their_steps),
        PROGRAM_TEST(a_resumed_run_has_the_lines_and_the_clips_of_an_uninterrupted_one),
        PROGRAM_TEST(progress_fits_into_80_columns),
        PROGRAM_TEST(a_nan_in_a_step_skips_it_and_leaves_the_weights),
        PROGRAM_TEST(a_nan_in_an_evaluation_is_a_null),
        PROGRAM_TEST(a_nan_stops_the_run_when_configured),
        PROGRAM_TEST(an_interrupt_finishes_the_step_and_writes_a_checkpoint),
        PROGRAM_TEST(an_interrupt_before_the_first_step_leaves_a_run_to_resume),
        PROGRAM_TEST(a_full_disk_stops_the_run_which_then_resumes),
        PROGRAM_TEST(a_start_that_fails_leaves_no_run_folder),
        PROGRAM_TEST(a_damaged_checkpoint_is_passed_over),
        PROGRAM_TEST(latent_attention_is_planned_evaluated_and_sampled),
        PROGRAM_TEST(resume_refuses_another_model_or_other_data),
        PROGRAM_TEST(a_run_starts_from_the_weights_of_another),
        PROGRAM_TEST(a_run_does_not_start_from_what_does_not_fit),
        PROGRAM_TEST(bad_input_exits_with_2_and_one_sentence),
        PROGRAM_TEST(text_is_prepared_trained_on_evaluated_and_continued),
        PROGRAM_TEST(without_a_tokenizer_a_prompt_is_numbers),
        PROGRAM_TEST(dry_run_and_help_print_and_write_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
