/* Backend: where tensors live and who computes on them. A table of function pointers chosen at run time.
 *
 * Model, optimizer and probe code calls the op_*() wrappers of ops/ops.h, never the slots below. The wrapper checks
 * shapes and dtypes, times the op, and calls the slot; so an implementation may rely on the contract in ops.h.
 *
 *      "ref"   plain loops in host memory; the specification                        ref/
 *      "cpu"   oneDNN or CBLAS, OpenMP, SIMD; starts from ref's table and overrides cpu/
 *      "cuda"  kernels and cuBLASLt                                                 cuda/
 *
 * Failures of a device are sticky: the first is kept with the op's name, later ops do nothing, backend_sync returns it.
 * Nothing is allocated by an op: what an op needs beside its arguments comes from `scratch`, reserved once at set-up.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "ops/tensor.h"

typedef struct Backend Backend;

/* One row per op: identifier, slot. The wrapper is op_<slot>. */
#define OP_LIST(X)                                                                                                     \
    X(FILL, fill)                                                                                                      \
    X(COPY, copy)                                                                                                      \
    X(SCALE, scale)                                                                                                    \
    X(MATMUL, matmul)                                                                                                  \
    X(MATMUL_SYMMETRIC, matmul_symmetric)                                                                              \
    X(LINEAR, linear)                                                                                                  \
    X(LINEAR_GRAD_INPUT, linear_grad_input)                                                                            \
    X(LINEAR_GRAD_WEIGHT, linear_grad_weight)                                                                          \
    X(LINEAR_GELU, linear_gelu)                                                                                        \
    X(LINEAR_GELU_GRAD, linear_gelu_grad)                                                                              \
    X(LAYERNORM, layernorm)                                                                                            \
    X(LAYERNORM_GRAD, layernorm_grad)                                                                                  \
    X(RMSNORM, rmsnorm)                                                                                                \
    X(RMSNORM_GRAD, rmsnorm_grad)                                                                                      \
    X(MAX_NORM, max_norm)                                                                                              \
    X(EMBED, embed)                                                                                                    \
    X(EMBED_GRAD, embed_grad)                                                                                          \
    X(ROPE, rope)                                                                                                      \
    X(ROPE_GRAD, rope_grad)                                                                                            \
    X(SUM_HEADS, sum_heads)                                                                                            \
    X(ATTENTION, attention)                                                                                            \
    X(ATTENTION_GRAD, attention_grad)                                                                                  \
    X(LOGIT_CENSUS, logit_census)                                                                                      \
    X(GELU, gelu)                                                                                                      \
    X(GELU_GRAD, gelu_grad)                                                                                            \
    X(SWIGLU, swiglu)                                                                                                  \
    X(SWIGLU_GRAD, swiglu_grad)                                                                                        \
    X(CROSS_ENTROPY, cross_entropy)                                                                                    \
    X(CROSS_ENTROPY_GRAD, cross_entropy_grad)                                                                          \
    X(SUM, sum)                                                                                                        \
    X(SUM_SQUARES, sum_squares)                                                                                        \
    X(ADAMW, adamw)                                                                                                    \
    X(MOMENTUM, momentum)                                                                                              \
    X(ADAPT, adapt)                                                                                                    \
    X(NORMALIZE, normalize)                                                                                            \
    X(APPLY_UPDATE, apply_update)

typedef enum {
#define X(ID, slot) OP_##ID,
    OP_LIST(X)
#undef X
        OP_COUNT
} OpId;

extern const char *const op_names[OP_COUNT];

/* ---- numbers that ops take -------------------------------------------------------------------------------------- */

typedef struct {
    float alpha; /* of a·b */
    float beta;  /* of the addend */
} MatmulScale;

/* Whether a gradient replaces what its tensor holds or is added to it. */
typedef enum { GRADIENT_SET, GRADIENT_ADD } GradientMode;

typedef struct {
    float scale;   /* of q·k, normally 1/sqrt(head size) */
    float softcap; /* logits pass through softcap*tanh(logit/softcap); 0 switches it off */
} AttentionParams;

/* What op_logit_census takes a logit for. */
typedef struct {
    float scale;       /* of q·k */
    float threshold;   /* tau: logits beyond it are counted */
    int64_t first_row; /* number of q's first sequence among all that the peaks are of */
} CensusParams;

/* What peak and place of op_logit_census have in their second dimension. */
enum { PEAK_SIGNED, PEAK_MAGNITUDE, PEAKS };

/* One AdamW step (Loshchilov & Hutter 2019, algorithm 2, decay decoupled from the gradient). */
typedef struct {
    float lr, beta1, beta2, eps;
    float decay;       /* weight decay; 0 for norms and biases */
    float correction1; /* 1 - beta1^t */
    float correction2; /* 1 - beta2^t */
    float grad_scale;  /* global-norm clipping factor */
    bool cautious;     /* decay as in UpdateStep */
} AdamwStep;

/* m' = keep m + add g',  u = old m + fresh g'  with the old m: every momentum is a choice of the four. */
typedef struct {
    float keep, add;
    float old, fresh;
    bool sign;        /* u becomes its sign: -1, 0 or 1 */
    float grad_scale; /* g' = grad_scale g */
} MomentumStep;

/* Second moments of an update, after it has been orthogonalized. */
typedef struct {
    float beta2, eps;
} AdaptStep;

/* Cautious weight decay (Chen et al. 2025) decays only where update and weight have one sign, or one of them is 0. */
typedef struct {
    float keep; /* 1 - lr decay */
    float step;
    bool cautious;
} UpdateStep;

/* The largest sizes that ops will be called with: what backend_reserve sizes the scratch memory by. */
typedef struct {
    int64_t width;     /* longest row of any norm, embedding or linear layer */
    int64_t vocab;     /* columns of the logits */
    int64_t batch;     /* B of attention */
    int64_t context;   /* T of attention */
    int64_t heads;     /* H of attention */
    int64_t head_size; /* D of attention */
} OpLimits;

/* ---- the table -------------------------------------------------------------------------------------------------- */

typedef struct {
    void (*fill)(Backend *, Tensor x, float value);
    void (*copy)(Backend *, Tensor dst, Tensor src);
    void (*scale)(Backend *, Tensor x, float factor);
    void (*matmul)(Backend *, Tensor out, Tensor a, Tensor b, Tensor addend, MatmulScale);
    void (*matmul_symmetric)(Backend *, Tensor out, Tensor a, Tensor addend, MatmulScale);
    void (*linear)(Backend *, Tensor out, Tensor x, Tensor w, Tensor bias, Tensor addend);
    void (*linear_grad_input)(Backend *, Tensor dx, Tensor dout, Tensor w);
    void (*linear_grad_weight)(Backend *, Tensor dw, Tensor dbias, Tensor dout, Tensor x, GradientMode);
    void (*linear_gelu)(Backend *, Tensor out, Tensor pre, Tensor x, Tensor w, Tensor bias);
    void (*linear_gelu_grad)(Backend *, Tensor dpre, Tensor dout, Tensor w, Tensor pre);
    void (*layernorm)(Backend *, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor bias, float eps);
    void (*layernorm_grad)(Backend *, Tensor dx, Tensor dw, Tensor dbias, Tensor dout, Tensor x, Tensor mean,
                           Tensor rstd, Tensor w);
    void (*rmsnorm)(Backend *, Tensor out, Tensor rstd, Tensor x, Tensor w, float eps);
    void (*rmsnorm_grad)(Backend *, Tensor dx, Tensor dw, Tensor dout, Tensor x, Tensor rstd, Tensor w);
    void (*max_norm)(Backend *, Tensor max, Tensor x);
    void (*embed)(Backend *, Tensor out, Tensor tokens, Tensor wte, Tensor wpe);
    void (*embed_grad)(Backend *, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens);
    void (*rope)(Backend *, Tensor x, Tensor table);
    void (*rope_grad)(Backend *, Tensor dx, Tensor table);
    void (*sum_heads)(Backend *, Tensor out, Tensor x);
    void (*attention)(Backend *, Tensor out, Tensor lse, Tensor max_logit, Tensor max_abs, Tensor q, Tensor k, Tensor v,
                      AttentionParams);
    void (*attention_grad)(Backend *, Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q,
                           Tensor k, Tensor v, AttentionParams);
    void (*logit_census)(Backend *, Tensor peak, Tensor place, Tensor above, Tensor q, Tensor k, CensusParams);
    void (*gelu)(Backend *, Tensor out, Tensor x);
    void (*gelu_grad)(Backend *, Tensor dx, Tensor dout, Tensor x);
    void (*swiglu)(Backend *, Tensor out, Tensor x);
    void (*swiglu_grad)(Backend *, Tensor dx, Tensor dout, Tensor x);
    void (*cross_entropy)(Backend *, Tensor loss, Tensor logits, Tensor targets);
    void (*cross_entropy_grad)(Backend *, Tensor loss, Tensor logits, Tensor targets, float scale);
    void (*sum)(Backend *, Tensor total, Tensor x);
    void (*sum_squares)(Backend *, Tensor total, Tensor x);
    void (*adamw)(Backend *, Tensor w, Tensor w_copy, Tensor m, Tensor v, Tensor g, AdamwStep);
    void (*momentum)(Backend *, Tensor u, Tensor m, Tensor g, MomentumStep);
    void (*adapt)(Backend *, Tensor out, Tensor v, Tensor x, AdaptStep);
    void (*normalize)(Backend *, Tensor out, Tensor x, float eps);
    void (*apply_update)(Backend *, Tensor w, Tensor w_copy, Tensor update, UpdateStep);

    /* Memory: zeroed, 64-byte aligned; NULL if there is none. */
    void *(*alloc)(Backend *, int64_t bytes);
    void (*free)(Backend *, void *memory, int64_t bytes);
    void (*to_host)(Backend *, void *host, Tensor src);         /* src contiguous; waits */
    void (*from_host)(Backend *, Tensor dst, const void *host); /* dst contiguous; host may be reused on return */
    Status (*sync)(Backend *);
    int64_t (*scratch_bytes)(const Backend *, const OpLimits *);
    void (*close)(Backend *);

    /* Only of devices with memory and time of their own; NULL where an op has done its work when it returns. The
     * functions of ops/backend.c do the like there. */
    int64_t (*free_bytes)(Backend *);              /* what alloc could still give */
    void *(*alloc_host)(Backend *, int64_t bytes); /* host memory that the device copies to by itself; or NULL */
    void (*free_host)(Backend *, void *memory);    /* of alloc_host */
    void (*to_host_later)(Backend *, void *host, Tensor src); /* src contiguous; host from alloc_host; does not wait */
    void (*call_later)(Backend *, void (*function)(void *), void *argument);
    void (*mark)(Backend *, int mark);
    double (*elapsed)(Backend *, int from, int to);
} BackendOps;

typedef struct {
    int64_t calls;
    double seconds;
} OpTimer;

/* How much of a long job is done at a time, at most. */
typedef struct {
    int64_t optimizer_bytes; /* buffers of the matrices that one pass of the optimizer batches */
    int64_t logits;          /* elements: made and used up before the next ones */
} PieceSizes;

extern const PieceSizes host_pieces;   /* what caches hold, many times over */
extern const PieceSizes device_pieces; /* what keeps a hundred multiprocessors busy */

/* Moments on the device's own clock. */
enum { MARK_OPTIMIZER_BEGIN, MARK_OPTIMIZER_END, MARK_COUNT };

struct Backend {
    const char *name;
    char description[160]; /* "oneDNN 2.6 (avx512_core_bf16), 2 threads" */
    DType compute_dtype;   /* of activations and working weights: DTYPE_F32 or DTYPE_BF16 */
    int threads;           /* of the host */
    PieceSizes pieces;
    int64_t peak_size; /* n of the n x n product that measures the peak rate: large, yet well below 0.1 s */
    BackendOps ops;
    void *state; /* of the implementation */
    void *scratch;
    int64_t scratch_bytes;
    int64_t planned_bytes;    /* that the run will allocate in all, for messages; 0: not known */
    int64_t waits;            /* how often the host asked for results or for the end of the work: once a step */
    double marks[MARK_COUNT]; /* where the implementation has none of its own */

    Status failure; /* sticky */
    const char *failed_op;

    bool profile;  /* time every op, syncing after each */
    bool scan_nan; /* after every op, fail if an output holds a NaN and name the op (slow) */
    OpId fault_op; /* test aid: after `fault_countdown` more calls of this op its first output element becomes NaN; */
    int64_t fault_countdown; /* < 0: off */
    OpTimer timers[OP_COUNT];
};

/* ---- life ------------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *device;    /* "auto", "ref", "cpu", "cuda" */
    const char *precision; /* "auto", "fp32", "bf16" */
    int threads;           /* 0: all cores that this process may use */
} BackendRequest;

void backend_close(Backend *be);

/* Scratch for ops up to these sizes; call once, before the first op. */
int64_t backend_scratch_bytes(const Backend *be, OpLimits limits);
Status backend_reserve(Backend *be, OpLimits limits);

/* Out of memory, the message says how much was asked, free and planned, and which option lowers it. */
Status backend_alloc(Backend *be, void **memory, int64_t bytes, const char *purpose);
Status backend_alloc_for(Backend *be, void **memory, int64_t bytes, const char *purpose, const char *remedy);
void backend_free(Backend *be, void *memory, int64_t bytes);
void backend_to_host(Backend *be, void *host, Tensor src); /* waits */
void backend_from_host(Backend *be, Tensor dst, const void *host);
void backend_fail(Backend *be, const char *op, Status failure); /* keeps the first */
Status backend_sync(Backend *be);                               /* waits */

/* Whether ops return before their work is done. Then a run keeps the device busy by never waiting but for what it
 * cannot do without, and reads the rest with that. */
bool backend_is_asynchronous(const Backend *be);
/* Host memory for backend_to_host_later; NULL if there is none. */
void *backend_alloc_host(Backend *be, int64_t bytes);
void backend_free_host(Backend *be, void *memory);
/* As backend_to_host, but host memory holds the tensor only once the device has got there: when a function given to
 * backend_call_later after it runs, or the host has waited. The function must not use the backend; it may run on
 * another thread, and at once where nothing is asynchronous. */
void backend_to_host_later(Backend *be, void *host, Tensor src);
void backend_call_later(Backend *be, void (*function)(void *), void *argument);
/* Notes the moment when all work so far is done, and tells the seconds between two; wait before you ask. */
void backend_mark(Backend *be, int mark);
double backend_elapsed(Backend *be, int from, int to);

/* The rate of a large square matrix product in the backend's precision, in FLOP/s, measured now (about 0.1 s): the
 * ceiling that `mfu` is a fraction of. */
double backend_measure_peak(Backend *be);

/* Prints calls, seconds and share of every op that ran, slowest first. */
void backend_print_profile(const Backend *be);

/* ---- implementations: each fills the table, or says in Status why it cannot -------------------------------------- */

/* Every slot but linear_gelu and linear_gelu_grad, which the wrappers compose. */
void ref_fill_ops(BackendOps *ops);
Status ref_backend_open(Backend *be, BackendRequest request);
Status cpu_backend_open(Backend *be, BackendRequest request);
Status cuda_backend_open(Backend *be, BackendRequest request);
extern const bool cuda_is_built; /* false with cuda/none.c: then "auto" passes over cuda without a word */
/* The cuda backend's scratch, for --dry-run too: needs no device, reads only be->compute_dtype; 0 with cuda/none.c. */
int64_t cuda_scratch_bytes(const Backend *be, const OpLimits *limits);
