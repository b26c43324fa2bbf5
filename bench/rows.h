/* Rows: what bench measures. Each function measures the cases of the rows it serves and adds a result for each. */
#pragma once

#include "bench/session.h"
#include "bench/table.h"

typedef struct {
    Table table;
    bool quick;             /* only the cases of the quick set */
    const char *row;        /* the one to measure */
    const char *program;    /* train_gpt, for measurements of whole processes */
    char folder[PATH_SIZE]; /* temporary, for run folders */
} Bench;

typedef Status RowFunction(Bench *bench);

RowFunction row_gemm;      /* the ceiling itself, fp32 and bf16 */
RowFunction row_linear;    /* op_linear and its gradients at the models' shapes */
RowFunction row_bandwidth; /* triad, and AdamW against it */

RowFunction row_models; /* training steps: baby, gpt2, and a curve for each of width, depth, ... */

RowFunction row_muon;          /* a Muon step against an AdamW step at 64k tokens */
RowFunction row_newton_schulz; /* orthogonalization alone */

RowFunction row_gpu; /* training steps on a GPU, beside their prediction */

RowFunction row_overhead; /* MaxLogit, spectra, metrics, checkpoints */
RowFunction row_memory;   /* peak of a process against its plan */

/* The models of the goals, as options. */
#define BABY                                                                                                           \
    "model.preset=gpt2 model.layers=6 model.heads=6 model.width=384 model.context=256 model.vocab=256 train.batch=16 "
#define GPT2_124M "model.preset=gpt2 model.layers=12 model.heads=12 model.width=768 model.vocab=50257 train.batch=4 "
#define ADAMW     "optimizer.matrices=adamw "
#define MUON      "optimizer.matrices=muon "

/* fp32 and bf16 of every measurement that is made in both. */
enum { PRECISIONS = 2 };
extern const char *const precisions[PRECISIONS];

double bench_budget(const Bench *bench); /* seconds of repetitions that a case may take */
