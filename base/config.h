/* Configuration: one struct, one table of options (base/config_options.c) that drives parsing, range checks, --help,
 * --schema and docs/configuration.md.
 *
 * Sources, later ones win: the table's defaults; the defaults of model.preset; the JSON file; key=value of the command
 * line. A loaded Config is complete and consistent: every number is in its range, impossible combinations are refused
 * (STATUS_BAD_INPUT: key path, file and line, nearest known key). Nothing else checks options again.
 */
#pragma once

#include <stdbool.h>
#include <stdio.h>

#include "base/file.h"
#include "base/status.h"

enum { NAME_SIZE = 64, COEFFICIENTS_MAX = 16, LIST_MAX = 16 };

/* Every optimizer: its enum and its name, which is that of its row, optimizer_NAME (optim/optimizer_row.h), too. */
#define OPTIMIZER_LIST(X)                                                                                              \
    X(MUON, muon)                                                                                                      \
    X(ADAMW, adamw)                                                                                                    \
    X(NORMUON, normuon)                                                                                                \
    X(ADAMUON, adamuon)                                                                                                \
    X(SGD, sgd)                                                                                                        \
    X(LION, lion)
#define OPTIMIZER_ENUM(ID, name) OPTIMIZER_##ID,
typedef enum { OPTIMIZER_LIST(OPTIMIZER_ENUM) OPTIMIZER_COUNT } OptimizerKind;

/* Every named set of Newton-Schulz coefficients; its numbers are in optim/coefficients.c. */
#define COEFFICIENT_LIST(X)                                                                                            \
    X(MUON, "muon")                                                                                                    \
    X(SU, "su")                                                                                                        \
    X(TAYLOR, "taylor")                                                                                                \
    X(CUBIC, "cubic")                                                                                                  \
    X(YOU_5, "you-5")                                                                                                  \
    X(SU_5, "su-5")                                                                                                    \
    X(POLAR_EXPRESS, "polar-express")                                                                                  \
    X(CANS, "cans")                                                                                                    \
    X(DEEPSEEK_V4, "deepseek-v4")

typedef enum { PRESET_GPT2, PRESET_LLAMA } Preset;
typedef enum { ATTENTION_MHA, ATTENTION_MLA } AttentionKind; /* mha: kv_heads < heads makes it grouped-query */
typedef enum { NORM_LAYERNORM, NORM_RMSNORM } NormKind;
typedef enum { POSITION_LEARNED, POSITION_ROPE } PositionKind;
typedef enum { MLP_GELU, MLP_SWIGLU } MlpKind;
typedef enum { ON_NONFINITE_SKIP, ON_NONFINITE_STOP } OnNonfinite;
typedef enum { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_WSD } ScheduleKind;
typedef enum { MUON_MOMENTUM_SUM, MUON_MOMENTUM_EMA } MuonMomentumForm;
typedef enum { ORTHOGONALIZE_NEWTON_SCHULZ, ORTHOGONALIZE_SVD, ORTHOGONALIZE_SCHATTEN } OrthogonalizeKind;
typedef enum { FORM_AUTO, FORM_PLAIN, FORM_SYMMETRIC, FORM_GRAM } NewtonSchulzForm;
typedef enum { SCALE_RMS, SCALE_ORIGINAL, SCALE_SPECTRAL, SCALE_NONE } UpdateScale;

/* Whose step dry_run can predict; ops/cost.c has a row for each. */
#define GPU_LIST(X) X(A100) X(H100) X(H200) X(4090) X(B200)
#define X(name)     GPU_##name,
typedef enum { GPU_LIST(X) GPU_COUNT } GpuKind;
#undef X

/* Measurements: one row each, in the order in which their fields are written. Each has a key probe.<name>_every, of
 * which this is the default, and is the file probe/<name>.c. */
#define PROBE_LIST(X)                                                                                                  \
    X(COLLISION, collision, "200",                                                                                     \
      "Steps between measurements of how updates meet the largest singular triples of the weights; 0: off.")           \
    X(MOMENTUM, momentum, "200",                                                                                       \
      "Steps between comparisons of momentum and gradient, and of the gradients of micro-batches; 0: off.")            \
    X(SHADOW, shadow, "200",                                                                                           \
      "Steps between measurements of what AdamW and Muon would each do with the run's gradients; 0: off.")             \
    X(LOGITS, logits, "100",                                                                                           \
      "Steps between censuses of attention logits: where the largest are, how many exceed tau; 0: off.")               \
    X(BOUND, bound, "100",                                                                                             \
      "Steps between bounds of attention logits from norms of inputs and weights; 0: off, as with model.qk_norm.")     \
    X(SPECTRUM, spectrum, "100", "Steps between measurements of singular values; 0: off.")

typedef enum {
#define X(ID, name, every, help) PROBE_##ID,
    PROBE_LIST(X)
#undef X
        PROBE_COUNT
} ProbeId;

typedef struct {
    Preset preset;
    int64_t layers, heads, kv_heads, width, context, vocab;
    AttentionKind attention;
    int64_t q_rank, kv_rank;                  /* mla; 0 under mha. q_rank 0: queries have no low rank */
    int64_t head_nope, head_rope, head_value; /* mla, of one head; 0 under mha */
    NormKind norm;
    PositionKind position;
    MlpKind mlp;
    int64_t mlp_width;
    bool bias, tie_embeddings, qk_norm;
    double attention_softcap; /* 0: off */
    double rope_theta, norm_eps, init_std;
} ModelConfig;

typedef struct {
    char train[PATH_SIZE]; /* glob of token shards, or "synthetic" */
    char val[PATH_SIZE];
    int64_t synthetic_states; /* contexts of the built-in language's grammar */
    double synthetic_zipf;    /* exponent of its word frequencies */
} DataConfig;

typedef struct {
    int64_t steps, batch, micro_batch; /* sequences */
    double grad_clip;                  /* 0: off */
    int64_t eval_every;                /* 0: only at the end */
    int64_t eval_batches;              /* micro-batches; 0: the whole validation set */
    OnNonfinite on_nonfinite;
    char init_from[PATH_SIZE]; /* run or checkpoint whose weights a new run starts with; "seed": none */
} TrainConfig;

typedef struct {
    ScheduleKind kind;
    int64_t warmup;  /* steps */
    double cooldown; /* wsd: fraction of all steps at the end that decay */
    double final;    /* fraction of lr at the end */
} ScheduleConfig;

/* Newton-Schulz coefficients: a named set, or per-iteration triples given in the config. */
typedef struct {
    char set[NAME_SIZE]; /* "" when the triples are given */
    int count;
    double triples[COEFFICIENTS_MAX][3];
} CoefficientsConfig;

/* The momentum is that of NorMuon, AdaMuon and SGD, too. */
typedef struct {
    double momentum;
    double momentum_start;                      /* where the warmup begins and the cooldown ends */
    int64_t momentum_warmup, momentum_cooldown; /* steps; 0: none */
    MuonMomentumForm momentum_form;
    bool nesterov;
    OrthogonalizeKind orthogonalize;
    NewtonSchulzForm form;
    double schatten_p;
    CoefficientsConfig coefficients;
    int64_t iterations; /* of a set with one triple; a per-iteration table has its own length */
    UpdateScale scale;
    double rms;
    int per_head_count; /* blocks ("q", "q_rope", "k", "v", "o") that are orthogonalized head by head */
    char per_head[LIST_MAX][NAME_SIZE];
} MuonConfig;

typedef struct {
    double lr; /* 0: optimizer.lr */
    double beta1, beta2, eps;
} AdamwConfig;

typedef struct {
    double beta2, eps; /* of the second moment of the orthogonalized update */
} AdaptConfig;

typedef struct {
    double beta1, beta2;
} LionConfig;

typedef struct {
    char pattern[NAME_SIZE]; /* shell pattern on block names: "embed", "layers.0.*", "layers.*.q" */
    OptimizerKind optimizer;
} RouteOverride;

typedef struct {
    OptimizerKind matrices;
    double lr, weight_decay;
    bool cautious_decay;
    int64_t mup_base_width;  /* 0: off */
    ScheduleConfig schedule; /* of lr */
    ScheduleConfig decay_schedule;
    MuonConfig muon;
    AdamwConfig adamw;
    AdaptConfig normuon, adamuon;
    LionConfig lion;
    int override_count; /* optimizer.overrides: {"pattern": "adamw", ...}; the last that matches wins */
    RouteOverride overrides[LIST_MAX];
} OptimizerConfig;

typedef struct {
    bool enabled;
    double threshold; /* tau */
    double alpha;     /* W_q takes gamma^alpha, W_k gamma^(1-alpha); mla: of q^C and k^C */
} QkClipConfig;

typedef struct {
#define X(ID, name, every, help) int64_t name##_every; /* steps; 0: off */
    PROBE_LIST(X)
#undef X
    bool orthogonality, rms; /* what else spectrum measures, from the same singular values */
    int64_t collision_top;   /* k: singular triples of a block */
    int blocks_count;        /* that collision, momentum and shadow watch */
    char blocks[LIST_MAX][NAME_SIZE];
} ProbeConfig;

typedef struct {
    int64_t every; /* steps; 0: only at the end */
    int64_t keep;  /* newest that stay; 0: all */
} CheckpointConfig;

typedef struct {
    bool scan_nan;         /* stop at the first op that makes a NaN, and name it (slow) */
    char fault[NAME_SIZE]; /* "op:calls": that op's next output after so many calls becomes NaN; "off" */
} DebugConfig;

typedef struct {
    GpuKind gpu; /* whose step --dry-run device=cuda predicts */
} DryRunConfig;

typedef struct {
    char name[NAME_SIZE];
    int64_t seed;
    char device[NAME_SIZE];    /* auto, ref, cpu, cuda */
    char precision[NAME_SIZE]; /* auto, fp32, bf16 */
    int64_t threads;           /* 0: all */
    bool profile;              /* print a table of op times at the end */
    char runs_dir[PATH_SIZE];
    ModelConfig model;
    DataConfig data;
    TrainConfig train;
    OptimizerConfig optimizer;
    QkClipConfig qk_clip;
    ProbeConfig probe;
    CheckpointConfig checkpoint;
    DebugConfig debug;
    DryRunConfig dry_run;
    char note[2 * PATH_SIZE]; /* lines that tell the user which keys were ignored; no key of its own */
} Config;

/* path NULL: defaults only. overrides: "a.b=value" strings (value as JSON, or a bare string). */
Status config_load(Config *config, const char *path, int override_count, char **overrides);

/* The fully resolved configuration as indented JSON, which config_load reads back to the same Config. Caller frees. */
char *config_to_json(const Config *config);

void config_print_help(FILE *out);   /* every option: path, type, range, default, unit, meaning */
void config_print_schema(FILE *out); /* JSON Schema, draft 2020-12 */
