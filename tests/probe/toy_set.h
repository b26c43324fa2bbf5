/* Probes without a model: a table of a grouped-query model's parameters, an optimizer's routes over them, and a set of
 * probes, which the tests tell of steps as they like. q, k and v lie within one matrix, gate and up within another; o
 * has its heads in columns, gate and up are tall. There is no down.
 *
 *      Toy t;
 *      toy_open(&t, "ref", (char *[]){"probe.collision_every=1", NULL});       // all other probes are off
 *      toy_begin(&t, 1);
 *      probes_update(&t.set, &event);
 *      cJSON *line = toy_end(&t);
 *      double relative = number_of(rows_of(line, "collision")->child, "relative");
 */
#pragma once

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "probe/probe.h"
#include "tests/tensors.h"

enum { LAYERS = 3, WIDTH = 12, HEADS = 4, KV_HEADS = 2, HEAD_SIZE = 3, MLP = 20, CONTEXT = 7 };

typedef struct {
    Backend be;
    Config config;
    Gpt gpt; /* what probes of updates read: the table and its memory, L, H and T */
    Optimizer optimizer;
    PhaseClock phases;
    ProbeSet set;
} Toy;

/* ---- life ------------------------------------------------------------------------------------------------------- */

static inline void toy_describe(ParamTable *t) {
    params_add_block(t, "embed", ROLE_EMBED, params_add(t, "wte", 0, 50, WIDTH), 0, 50, 1, HEADS_IN_ROWS);
    int qkv = params_add(t, "qkv", LAYERS, (HEADS + 2 * KV_HEADS) * HEAD_SIZE, WIDTH);
    params_add_block(t, "q", ROLE_Q, qkv, 0, HEADS * HEAD_SIZE, HEADS, HEADS_IN_ROWS);
    params_add_block(t, "k", ROLE_K, qkv, HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS, HEADS_IN_ROWS);
    params_add_block(t, "v", ROLE_V, qkv, (HEADS + KV_HEADS) * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS,
                     HEADS_IN_ROWS);
    int out = params_add(t, "out", LAYERS, WIDTH, HEADS * HEAD_SIZE);
    params_add_block(t, "o", ROLE_O, out, 0, WIDTH, HEADS, HEADS_IN_COLUMNS);
    int up = params_add(t, "up", LAYERS, 2 * MLP, WIDTH);
    params_add_block(t, "gate", ROLE_GATE, up, 0, MLP, 1, HEADS_IN_ROWS);
    params_add_block(t, "up", ROLE_UP, up, MLP, MLP, 1, HEADS_IN_ROWS);
    params_add_block(t, "norm", ROLE_NORM, params_add(t, "norm", LAYERS, WIDTH, 0), 0, WIDTH, 1, HEADS_IN_ROWS);
}

/* Every element, padding included, a function of the seed. */
static inline void toy_fill(Toy *t, Tensor storage, uint64_t seed) {
    const int64_t count = t->gpt.params.elements;
    double *values = calloc((size_t)count, sizeof *values);
    for (int64_t i = 0; i < count; i++) values[i] = test_uniform(seed, i);
    test_write(&t->be, storage, values);
    free(values);
}

static inline void toy_allocate_params(Toy *t) {
    Gpt *g = &t->gpt;
    g->weights = arena_measure("weights");
    g->gradients = arena_measure("gradients");
    params_layout(&g->params, &g->weights, &g->gradients, DTYPE_F32);
    assert_ok(arena_allocate(&g->weights, &t->be));
    assert_ok(arena_allocate(&g->gradients, &t->be));
    params_layout(&g->params, &g->weights, &g->gradients, DTYPE_F32);
    toy_fill(t, g->params.master, 7);
}

/* `options` end with NULL. */
static inline void toy_configure(Config *config, char **options) {
    char *all[32] = {
#define X(ID, name, every, help) "probe." #name "_every=0",
        PROBE_LIST(X)
#undef X
    };
    int count = PROBE_COUNT;
    while (*options) all[count++] = *options++;
    assert_ok(config_load(config, NULL, count, all));
}

/* All but the probes. */
static inline void toy_prepare(Toy *t, const char *device, char **options) {
    *t = (Toy){0};
    toy_configure(&t->config, options);
    test_open(&t->be, device, "fp32");
    test_reserve(&t->be, (OpLimits){.width = 64});
    toy_describe(&t->gpt.params);
    toy_allocate_params(t);
    t->gpt.be = &t->be;
    t->gpt.L = LAYERS;
    t->gpt.H = HEADS;
    t->gpt.T = CONTEXT;
    assert_ok(optimizer_plan(&t->optimizer, &t->gpt.params, &t->config.optimizer, &t->be));
    assert_ok(optimizer_allocate(&t->optimizer));
}

static inline void toy_plan(Toy *t) {
    t->set = (ProbeSet){
        .config = &t->config, .be = &t->be, .gpt = &t->gpt, .optimizer = &t->optimizer, .phases = &t->phases};
    assert_ok(probes_plan(&t->set));
}

static inline void toy_open(Toy *t, const char *device, char **options) {
    toy_prepare(t, device, options);
    toy_plan(t);
    assert_ok(probes_allocate(&t->set));
}

static inline void toy_close(Toy *t) {
    probes_free(&t->set);
    optimizer_free(&t->optimizer);
    arena_free(&t->gpt.weights);
    arena_free(&t->gpt.gradients);
    test_close(&t->be);
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

static inline StepNumbers toy_numbers(int64_t step) {
    return (StepNumbers){.update = step, .step = step, .steps = 10, .lr = 0.01, .grad_scale = 0.5f};
}

/* From the first pass to the optimizer, with the gradients as they are. */
static inline void toy_begin(Toy *t, int64_t step) {
    const StepNumbers numbers = toy_numbers(step);
    phases_begin(&t->phases);
    probes_begin(&t->set, step, 0);
    probes_gradient(&t->set, NULL, &numbers);
}

/* As a reader of the file has it; the caller deletes it. */
static inline cJSON *toy_reread(cJSON *line) {
    char *text = cJSON_PrintUnformatted(line);
    cJSON *read = cJSON_Parse(text);
    assert_non_null(read);
    free(text);
    cJSON_Delete(line);
    return read;
}

static inline cJSON *toy_report(Toy *t) {
    cJSON *line = cJSON_CreateObject();
    assert_false(probes_report(&t->set, line)); /* all is there */
    return toy_reread(line);
}

static inline cJSON *toy_end(Toy *t) {
    probes_end(&t->set);
    return toy_report(t);
}

/* ---- fields ----------------------------------------------------------------------------------------------------- */

static inline const cJSON *rows_of(const cJSON *line, const char *field) {
    const cJSON *rows = cJSON_GetObjectItem(line, field);
    if (!cJSON_IsArray(rows)) fail_msg("%s is not a list", field);
    return rows;
}

static inline double value_of(const cJSON *item, const char *key) {
    if (!cJSON_IsNumber(item) && !cJSON_IsNull(item)) fail_msg("%s is not a number", key);
    return cJSON_IsNull(item) ? (double)NAN : item->valuedouble;
}

/* NaN where there is a null. */
static inline double number_of(const cJSON *row, const char *key) {
    return value_of(cJSON_GetObjectItem(row, key), key);
}

static inline double element_of(const cJSON *row, const char *key, int index) {
    return value_of(cJSON_GetArrayItem(cJSON_GetObjectItem(row, key), index), key);
}

/* A field is rounded to a float and printed with as few digits as bring that back, half of FLT_EPSILON each: what is
 * exact to more digits before cannot have a smaller tolerance here. */
static inline void assert_near(const char *what, double got, double expected, double tolerance) {
    assert_close(what, &got, &expected, 1, (Tolerance){.absolute = tolerance, .relative = (double)FLT_EPSILON});
}

static inline void assert_block(const Toy *t, const cJSON *row, int kind, int64_t layer) {
    assert_non_null(row);
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(row, "role")),
                        role_name(t->gpt.params.kinds[kind].role));
    assert_int_equal((int64_t)number_of(row, "layer"), layer);
}
