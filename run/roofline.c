/* One step on the counting backend, and its table; see roofline.h. */
#include "run/roofline.h"

#include <stdlib.h>

#include "cuda/open.h"

static const double CUDA_BYTES = 0.6e9; /* context, code, cublasLt's workspace */

/* ---- prediction ------------------------------------------------------------------------------------------------- */

Status roofline_predict(Trainer *t, TrainStep *step, Roofline *r) {
    StepReport report;
    const Gpu *gpu = cost_gpu(&t->backend);
    Status status;
    if (FAILED(status, trainer_allocate_evaluation(t))) return status;
    if (FAILED(status, optimizer_allocate(&t->optimizer))) return status;
    probes_force(&t->probes, PROBE_COUNT); /* what is due now and then is not part of a step */
    if (FAILED(status, probes_allocate(&t->probes))) return status;
    cost_reset(&t->backend); /* copies of the set-up are no part of a step */
    if (FAILED(status, step(t, &report))) return status;

    memcpy(r->rows, cost_rows(&t->backend), sizeof r->rows);
    r->step = cost_total(r->rows);
    r->tokens = (double)(t->config.train.batch * t->gpt.T);
    r->model_flops = r->tokens * gpt_flops_per_token(&t->gpt);
    r->peak_flops = t->backend.compute_dtype == DTYPE_BF16 ? gpu->bf16_flops : gpu->fp32_flops;
    r->device_bytes =
        (double)(arena_bytes(&t->gpt.weights) + arena_bytes(&t->gpt.gradients) + arena_bytes(&t->gpt.activations) +
                 arena_bytes(&t->optimizer.state) + arena_bytes(&t->optimizer.scratch) + t->backend.scratch_bytes);
    return status;
}

double roofline_mfu(const Roofline *r, double seconds) {
    return r->model_flops / (seconds * r->peak_flops);
}

/* ---- table ------------------------------------------------------------------------------------------------------ */

/* Of two pointers to rows. */
static int longer_first(const void *a, const void *b) {
    const double x = (*(const CostRow *const *)a)->expected, y = (*(const CostRow *const *)b)->expected;
    return (x < y) - (x > y);
}

static const char *bound_by(const CostRow *c) {
    return c->bound_compute > c->bound / 2 ? "FLOPs" : "bytes";
}

/* The largest of its three parts. */
static const char *expected_by(const CostRow *c) {
    const double compute = c->expected_compute, bytes = c->expected - c->expected_compute - c->wait;
    if (c->wait > compute && c->wait > bytes) return "waits";
    return compute > bytes ? "FLOPs" : "bytes";
}

static void print_line(FILE *out, const char *name, const CostRow *c, const CostRow *step) {
    fprintf(out, "  %-18s %6lld %8.3f %8.2f %8.3f %-5s %9.3f %-5s %5.1f%%\n", name, (long long)c->calls,
            c->flops / 1e12, c->bytes / 1e9, 1e3 * c->bound, bound_by(c), 1e3 * c->expected, expected_by(c),
            100 * c->expected / step->expected);
}

static void print_rows(const Roofline *r, FILE *out) {
    const CostRow *rows[COST_ROWS];
    for (int i = 0; i < COST_ROWS; i++) rows[i] = &r->rows[i];
    qsort(rows, COST_ROWS, sizeof rows[0], longer_first);
    fprintf(out, "  %-18s %6s %8s %8s %8s %-5s %9s %-5s %6s\n", "op", "calls", "TFLOP", "GB", "bound ms", "by",
            "expect ms", "by", "share");
    for (int i = 0; i < COST_ROWS; i++)
        if (rows[i]->calls > 0) print_line(out, cost_row_name((int)(rows[i] - r->rows)), rows[i], &r->step);
    print_line(out, "step", &r->step, &r->step);
}

static void print_rate(const Roofline *r, const char *name, double seconds, FILE *out) {
    fprintf(out, "  %-9s %8.2f ms a step, %8.0f tokens/s, %5.1f %% MFU\n", name, 1e3 * seconds, r->tokens / seconds,
            100 * roofline_mfu(r, seconds));
}

void roofline_print_table(const Trainer *t, const Roofline *r, FILE *out) {
    const TrainConfig *c = &t->config.train;
    fprintf(out, "roofline of a step on one %s: %lld x %lld tokens, %lld at a time, %s\n", cost_gpu(&t->backend)->form,
            (long long)c->batch, (long long)t->gpt.T, (long long)c->micro_batch,
            t->backend.compute_dtype == DTYPE_BF16 ? "bf16" : "fp32");
    print_rows(r, out);
    print_rate(r, "bound", r->step.bound, out);
    print_rate(r, "expected", r->step.expected, out);
}

/* ---- assumptions ------------------------------------------------------------------------------------------------ */

static void print_speeds(const Gpu *gpu, DType dtype, FILE *out) {
    const bool tensor_cores = dtype == DTYPE_BF16;
    fprintf(out, "  gpu       %s: %.4g TFLOP/s of %s, %.4g TB/s,\n", gpu->form,
            (tensor_cores ? gpu->bf16_flops : gpu->fp32_flops) / 1e12,
            tensor_cores ? "dense bf16 products" : "fp32 without tensor cores", gpu->bandwidth / 1e12);
    fprintf(out, "            %.0f GB, %d multiprocessors (%s)\n", gpu->memory / 1e9, gpu->multiprocessors,
            gpu->source);
    fprintf(out, "  bound     the longer of FLOPs / peak and bytes / bandwidth, call by call, at 100 %% of both;\n"
                 "            launches are free\n");
}

static void print_shares(const Gpu *gpu, DType dtype, FILE *out) {
    const CostAssumptions *a = &cost_assumptions;
    fprintf(out,
            "  expected  cuBLASLt's products: %.3g %% of the peak, %.3g %% where a matrix has rows of no multiple of\n",
            100 * a->product, 100 * a->product * a->unaligned);
    fprintf(out, "            16 bytes; dealt out in 128 x 128 tiles, of which the last wave leaves multiprocessors\n");
    fprintf(out, "            idle; with the epilogues asked of it: bias and its gradient%s\n",
            gpu->capability >= 90 ? ", gelu and its gradient" : "");
    fprintf(out,
            "            our own products: mma.sync reaches %.3g %% of this peak; of that, matmul_symmetric %.3g %%\n",
            100 * (dtype == DTYPE_BF16 ? gpu->mma_sync_share : 1), 100 * a->symmetric);
    fprintf(out, "            and attention %.3g %%\n", 100 * a->attention);
    fprintf(out, "            %.3g %% of the bandwidth; %.3g us a launch, %.3g us to wait for a copy to the host\n",
            100 * a->bandwidth, 1e6 * a->launch_seconds, 1e6 * a->sync_seconds);
}

static void print_assumptions(const Trainer *t, const Roofline *r, FILE *out) {
    const Gpu *gpu = cost_gpu(&t->backend);
    const bool svd = t->config.optimizer.muon.orthogonalize != ORTHOGONALIZE_NEWTON_SCHULZ;
    fprintf(out, "assumptions\n");
    print_speeds(gpu, t->backend.compute_dtype, out);
    print_shares(gpu, t->backend.compute_dtype, out);
    fprintf(out,
            "  both      nothing overlaps; each kernel reads and writes its tensors once a pass over them, and finds\n"
            "            none in L2 that the kernel before it left there\n"
            "  TFLOP     as executed: attention on and below the diagonal, with 7 products backward; the tiles on\n"
            "            and below the diagonal of a symmetric product; other arithmetic is free\n");
    fprintf(out, "  MFU       of %.2f TFLOP, 6 N + 6 L C T a token, over the peak\n", r->model_flops / 1e12);
    fprintf(out, "  left out  loading tokens, evaluation, spectra, checkpoints, clipping heads%s\n",
            svd ? ", SVDs on the host" : "");
    if (!cuda_is_built)
        fprintf(out, "  scratch   unknown to a build without CUDA, and taken for 0 in the memory plan\n");
}

void roofline_print(const Trainer *t, const Roofline *r, FILE *out) {
    const Gpu *gpu = cost_gpu(&t->backend);
    roofline_print_table(t, r, out);
    fprintf(out, "  memory    %8.2f GB and about %.1f GB of CUDA's own, of %.0f GB%s\n", r->device_bytes / 1e9,
            CUDA_BYTES / 1e9, gpu->memory / 1e9,
            r->device_bytes + CUDA_BYTES < gpu->memory ? "" : ": it does not fit; lower train.micro_batch");
    fprintf(out, "  Worked out from shapes, not measured: this is the project's performance claim until a GPU\n"
                 "  confirms it.\n");
    print_assumptions(t, r, out);
}
