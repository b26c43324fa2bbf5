/* metrics.jsonl, the progress line and the plan; see report.h. */
#include "run/report.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"

/* ---- plan ------------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name, *what;
    int64_t bytes;
} MemoryRow;

enum { MEMORY_ROWS = 7 };

typedef struct {
    MemoryRow rows[MEMORY_ROWS];
} MemoryPlan;

static MemoryPlan plan_memory(const Trainer *t) {
    const Gpt *g = &t->gpt;
    return (MemoryPlan){{
        {"weights", "fp32 masters and working copies", arena_bytes(&g->weights)},
        {"gradients", "fp32", arena_bytes(&g->gradients)},
        {"optimizer", "momentum, second moments, orthogonalizer", optimizer_planned_bytes(&t->optimizer)},
        {"activations", "of one micro-batch", arena_bytes(&g->activations)},
        {"scratch", "of the ops", backend_scratch_bytes(&t->backend, gpt_op_limits(g))},
        {"probe", "measurements, mostly on the host", probes_bytes(&t->probes)},
        {"program", "code, libraries, mapped data so far", t->base_memory},
    }};
}

void report_print_plan(const Trainer *t, FILE *out) {
    const Gpt *g = &t->gpt;
    const MemoryPlan memory = plan_memory(t);
    int64_t total = 0;
    fprintf(out, "memory\n");
    for (const MemoryRow *row = memory.rows; row < memory.rows + MEMORY_ROWS; row++) {
        fprintf(out, "  %-12s %9.1f MiB   %s\n", row->name, (double)row->bytes / 0x1p20, row->what);
        total += row->bytes;
    }
    fprintf(out, "  %-12s %9.1f MiB\n", "total", (double)total / 0x1p20);

    const double flops = gpt_flops_per_token(g), tokens = (double)(t->config.train.batch * g->T);
    fprintf(out, "work\n");
    fprintf(out, "  %-12s %9.2f MFLOP per token (%s)\n", "model", flops / 1e6, gpt_flops_formula(g));
    fprintf(out, "  %-12s %9.2f GFLOP per step of %.0f tokens\n", "model", flops * tokens / 1e9, tokens);
    fprintf(out, "  %-12s %9.2f GFLOP per step\n", "optimizer", optimizer_step_flops(&t->optimizer) / 1e9);
}

void report_print_header(const Trainer *t) {
    const Gpt *g = &t->gpt;
    const ModelConfig *m = &t->config.model;
    char heads[160];
    printf("model    %lld layers, width %lld, %lld heads (%s), mlp %lld, context %lld, vocabulary %lld: "
           "%.2f M parameters\n",
           (long long)m->layers, (long long)m->width, (long long)m->heads, gpt_describe_heads(g, heads, sizeof heads),
           (long long)m->mlp_width, (long long)m->context, (long long)m->vocab, (double)g->params.count / 1e6);
    printf("device   %s, %s\n", t->backend.description, dtype_name(t->backend.compute_dtype));
    if (t->device_note[0]) printf("         %s\n", t->device_note);
    if (t->weights_from[0]) printf("weights  of %s\n", t->weights_from);
    printf("data     %s\n", dataset_facts(t->train_data)->description);
    printf("         %s\n", dataset_facts(t->val_data)->description);
    optimizer_print_routes(&t->optimizer, stdout);
}

/* ---- metrics.jsonl ---------------------------------------------------------------------------------------------- */

Status report_start(Trainer *t) {
    cJSON *line = cJSON_CreateObject();
    cJSON_AddStringToObject(line, "event", t->step == 0 ? "start" : "resume");
    metrics_add_number(line, "step", (double)t->step);
    cJSON_AddStringToObject(line, "name", t->config.name);
    metrics_add_number(line, "parameters", (double)t->gpt.params.count);
    cJSON_AddStringToObject(line, "device", t->backend.description);
    cJSON_AddStringToObject(line, "precision", t->backend.compute_dtype == DTYPE_BF16 ? "bf16" : "fp32");
    metrics_add_number(line, "threads", t->backend.threads);
    metrics_add_number(line, "peak_flops", t->peak_flops);
    metrics_add_number(line, "flops_per_token", gpt_flops_per_token(&t->gpt));
    metrics_add_number(line, "tokens_per_step", (double)(t->config.train.batch * t->gpt.T));
    metrics_add_number(line, "entropy_floor", dataset_facts(t->val_data)->entropy_floor);

    const MemoryPlan plan = plan_memory(t);
    cJSON *memory = cJSON_AddObjectToObject(line, "memory");
    for (int i = 0; i < MEMORY_ROWS; i++) metrics_add_number(memory, plan.rows[i].name, (double)plan.rows[i].bytes);
    metrics_add_number(memory, "optimizer_state", (double)arena_bytes(&t->optimizer.state));

    char *config = config_to_json(&t->config);
    cJSON_AddItemToObject(line, "config", cJSON_Parse(config));
    free(config);
    return metrics_write(&t->metrics, line);
}

static void add_max_logits(cJSON *line, const Trainer *t) {
    cJSON *layers = cJSON_AddArrayToObject(line, "max_logit_heads");
    for (int64_t l = 0; l < t->gpt.L; l++) {
        cJSON *heads = cJSON_CreateArray();
        for (int64_t h = 0; h < t->gpt.H; h++)
            cJSON_AddItemToArray(heads, metrics_number((double)t->max_logit[l * t->gpt.H + h]));
        cJSON_AddItemToArray(layers, heads);
    }
}

static void add_clips(cJSON *line, const Trainer *t, int64_t count) {
    cJSON *clipped = cJSON_AddArrayToObject(line, "clipped");
    for (int64_t i = 0; i < count; i++) {
        cJSON *event = cJSON_CreateObject();
        metrics_add_number(event, "layer", (double)t->clips[i].layer);
        metrics_add_number(event, "head", (double)t->clips[i].head);
        metrics_add_float(event, "gamma", t->clips[i].gamma);
        metrics_add_float(event, "max_logit", t->clips[i].max_logit);
        cJSON_AddItemToArray(clipped, event);
    }
}

static double tokens_per_second(const Trainer *t, const StepReport *r) {
    return (double)(t->config.train.batch * t->gpt.T) / r->step_seconds;
}

static double mfu(const Trainer *t, const StepReport *r) {
    return tokens_per_second(t, r) * gpt_flops_per_token(&t->gpt) / t->peak_flops;
}

/* A MetricsFinish. */
static Status finish_line(void *trainer, cJSON *line) {
    Trainer *t = trainer;
    probes_report_late(&t->probes, line);
    return t->backend.failure; /* then the device failed before it had delivered the matrices */
}

Status report_step(Trainer *t, const StepReport *r) {
    cJSON *line = cJSON_CreateObject();
    metrics_add_number(line, "step", (double)t->step);
    metrics_add_number(line, "tokens", (double)(t->samples * t->gpt.T));
    metrics_add_number(line, "loss", r->loss);
    metrics_add_number(line, "lr", r->lr);
    metrics_add_number(line, "grad_norm", r->grad_norm);
    if (!r->applied) cJSON_AddTrueToObject(line, "skipped");
    if (r->evaluated) metrics_add_number(line, "val_loss", r->val_loss);
    metrics_add_float(line, "max_logit", (float)r->max_logit);
    metrics_add_float(line, "max_abs_logit", (float)r->max_abs);
    add_max_logits(line, t);
    if (r->clip_count > 0) add_clips(line, t, r->clip_count);
    metrics_add_float(line, "tokens_per_s", (float)tokens_per_second(t, r));
    metrics_add_float(line, "mfu", (float)mfu(t, r));
    metrics_add_float(line, "step_ms", (float)(1e3 * r->step_seconds));
    metrics_add_float(line, "optimizer_ms", (float)(1e3 * r->optimizer_seconds));
    return probes_report(&t->probes, line) ? metrics_write_later(&t->metrics, line, finish_line, t)
                                           : metrics_write(&t->metrics, line);
}

/* ---- progress --------------------------------------------------------------------------------------------------- */

Progress progress_begin(const Trainer *t) {
    printf("run      %s\n", t->run_dir);
    printf("         step   loss    val       lr MaxLogit clips tokens/s   MFU left\n");
    return (Progress){.started = clock_seconds(), .first_step = t->step, .terminal = isatty(STDOUT_FILENO) == 1};
}

static void print_time(double seconds) {
    const long s = lround(seconds);
    const bool hours = s >= 3600;
    printf(hours ? "%ldh%02ldm" : "%ldm%02lds", hours ? s / 3600 : s / 60, hours ? s / 60 % 60 : s % 60);
}

/* A line that stays for every evaluation; between them one that is rewritten each second on a terminal, or a line every
 * ten seconds in a log. It fits into 80 columns: a terminal can not rewrite a line that it had to wrap. */
void progress_step(Progress *p, const Trainer *t, const StepReport *r) {
    const double now = clock_seconds();
    const bool first = t->step == p->first_step + 1;
    if (!r->evaluated && !first && r->applied && now - p->last_line < (p->terminal ? 1.0 : 10.0)) return;
    p->last_line = now;

    const int64_t steps = t->config.train.steps;
    char val[32] = "";
    if (r->evaluated) snprintf(val, sizeof val, "%.4f", r->val_loss);
    printf("%6lld/%6lld %6.4f %6s %8.2e %8.2f %5lld %8.0f %4.1f%% ", (long long)t->step, (long long)steps, r->loss, val,
           r->lr, r->max_logit, (long long)r->clip_count, tokens_per_second(t, r), 100 * mfu(t, r));
    print_time((now - p->started) / (double)(t->step - p->first_step) * (double)(steps - t->step));
    if (!r->applied) printf("\n       not finite: step skipped, weights untouched");
    p->open = p->terminal && !r->evaluated && r->applied;
    printf("%s%s", p->terminal ? "\033[K" : "", p->open ? "\r" : "\n");
    fflush(stdout);
}

void progress_end(const Progress *p, const Trainer *t, Status status) {
    if (p->open) printf("\n");
    if (status.code) return;
    if (t->step == p->first_step && t->step >= t->config.train.steps) {
        printf("nothing to do: the run is at step %lld of %lld; go on with: ./train_gpt --resume %s train.steps=N\n",
               (long long)t->step, (long long)t->config.train.steps, t->run_dir);
        return;
    }
    const double seconds = clock_seconds() - p->started;
    const double tokens = (double)((t->step - p->first_step) * t->config.train.batch * t->gpt.T);
    printf("%lld steps, %.2f M tokens in ", (long long)t->step, tokens / 1e6);
    print_time(seconds);
    printf("; metrics and checkpoints are in %s\n", t->run_dir);
    if (t->step < t->config.train.steps) printf("stopped early; go on with: ./train_gpt --resume %s\n", t->run_dir);
}
