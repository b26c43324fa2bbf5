/* The ops: all arithmetic on tensors that model, optimizer and probe code does. This header is the contract.
 *
 * Outputs come first, then inputs, then numbers. "=" means the output is written, "+=" that it is accumulated into.
 *
 *      T*   activation dtype: f32, or bf16 in bf16 mode. All T* arguments of one call have the same dtype.
 *      f32  always fp32: statistics, vectors (norm weights, biases) and their gradients, weight gradients, losses,
 *           optimizer state, master weights.
 *
 * Arithmetic is done in fp32 or better whatever the storage; only the bias of a linear layer may be rounded to T*
 * first, like the weights beside it. Tensors are contiguous unless marked `strided`: any strides whose last one is 1.
 * Optional arguments are marked [x]: tensor_none() leaves them out. NaN in gives NaN out. Letters: B batch, T context,
 * N = B*T tokens, C width, H heads, K key/value heads, D head size, F mlp width, V vocabulary.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "ops/tensor.h"

typedef struct Backend Backend; /* ops/backend.h */

/* ---- moving ----------------------------------------------------------------------------------------------------- */

/* x = value.   x strided, T* or f32. */
void op_fill(Backend *be, Tensor x, float value);

/* dst = src, converting the dtype.   Same shape, both strided; src may repeat itself by strides of 0 but for the last.
 */
void op_copy(Backend *be, Tensor dst, Tensor src);

/* x *= factor.   x strided. */
void op_scale(Backend *be, Tensor x, float factor);

/* ---- matrix products -------------------------------------------------------------------------------------------- */

typedef struct {
    float alpha; /* of a·b */
    float beta;  /* of the addend */
} MatmulScale;

/* out = alpha a·b + beta addend.   a (..,n,k), b (..,k,m), out and [addend] (..,n,m), with 0 to 2 equal batch
 * dimensions. a and b may be transposed views: their last or their last but one stride is 1. out and addend: last
 * stride 1; out may be addend, and may not overlap a or b. a and b share one dtype; out and addend share one dtype,
 * which may be f32 when a and b are bf16. Accumulates in fp32. */
void op_matmul(Backend *be, Tensor out, Tensor a, Tensor b, Tensor addend, MatmulScale s);

/* out = alpha a·aᵀ + beta addend.   a (..,n,k), out and [addend] (..,n,n), as in op_matmul; addend is symmetric. A
 * backend may compute one half and mirror it. */
void op_matmul_symmetric(Backend *be, Tensor out, Tensor a, Tensor addend, MatmulScale s);

/* out = x wᵀ + bias + addend.   x (N,I) T*, w (O,I) T* strided, [bias] (O) f32, out and [addend] (N,O) T*; out may be
 * addend. The addend is the residual stream: added before the one rounding of the store. */
void op_linear(Backend *be, Tensor out, Tensor x, Tensor w, Tensor bias, Tensor addend);

/* dx = dout w.   dout (N,O) T*, w (O,I) T*, dx (N,I) T*. */
void op_linear_grad_input(Backend *be, Tensor dx, Tensor dout, Tensor w);

/* Whether a gradient replaces what its tensor holds or is added to it. */
typedef enum { GRADIENT_SET, GRADIENT_ADD } GradientMode;

/* dw = or += doutᵀ x, dbias = or += sum over N of dout, as `mode` says.   dw (O,I) f32, [dbias] (O) f32, dout (N,O) T*,
 * x (N,I) T*. A step's first gradient is set: that saves zeroing dw and reading it back. */
void op_linear_grad_weight(Backend *be, Tensor dw, Tensor dbias, Tensor dout, Tensor x, GradientMode mode);

/* pre = x wᵀ + bias, out = gelu(pre) with op_gelu's gelu: one op where the product's epilogue can do it. Whether gelu
 * sees pre before or after its rounding to T* is the backend's choice.   x (N,I) T*, w (O,I) T* strided, [bias] (O)
 * f32, pre, out (N,O) T*. */
void op_linear_gelu(Backend *be, Tensor out, Tensor pre, Tensor x, Tensor w, Tensor bias);

/* dpre = (dout w) gelu'(pre): the gradient of y = gelu(pre) wᵀ.   dout (N,O) T*, w (O,I) T* strided, pre, dpre (N,I)
 * T*. */
void op_linear_gelu_grad(Backend *be, Tensor dpre, Tensor dout, Tensor w, Tensor pre);

/* ---- norms ------------------------------------------------------------------------------------------------------ */

/* out = (x - mean) rstd w + bias, rstd = 1/sqrt(var + eps), over the last dimension (Ba et al. 2016).
 * x, out (N,C) T*; w, [bias] (C) f32; mean, rstd = (N) f32. */
void op_layernorm(Backend *be, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor bias, float eps);

/* dx += , dw +=, dbias +=.   dx, dout, x (N,C) T*; dw, [dbias], w (C) f32. dx accumulates because the residual stream's
 * gradient is already there. */
void op_layernorm_grad(Backend *be, Tensor dx, Tensor dw, Tensor dbias, Tensor dout, Tensor x, Tensor mean, Tensor rstd,
                       Tensor w);

/* out = x rstd w, rstd = 1/sqrt(mean(x²) + eps), over the last dimension (Zhang & Sennrich 2019).
 * x, out (N,C) or (N,H,C) T* strided (the 3-d form normalizes each head by itself); w (C) f32; rstd = (N) or (N,H) f32.
 */
void op_rmsnorm(Backend *be, Tensor out, Tensor rstd, Tensor x, Tensor w, float eps);

/* dx +=, dw +=.   Shapes as in op_rmsnorm; dx, dout, x strided. */
void op_rmsnorm_grad(Backend *be, Tensor dx, Tensor dw, Tensor dout, Tensor x, Tensor rstd, Tensor w);

/* max[0] = max(max[0], max_n ‖x_n‖): the largest Euclidean norm of a row; NaN if one is NaN, and it stays NaN.
 * max (1) f32; x (N,C) T* strided. */
void op_max_norm(Backend *be, Tensor max, Tensor x);

/* ---- embedding and position ------------------------------------------------------------------------------------- */

/* out[n] = wte[tokens[n]] + wpe[n mod T].   tokens (B,T) i32 in [0,V), wte (V,C) T*, [wpe] (>=T,C) T*, out (B*T,C) T*.
 */
void op_embed(Backend *be, Tensor out, Tensor tokens, Tensor wte, Tensor wpe);

/* dwte +=, dwpe +=, each in the fixed order of n.   dwte (V,C) f32, [dwpe] (>=T,C) f32, dout (B*T,C) T*. */
void op_embed_grad(Backend *be, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens);

/* Rotary embedding in place (Su et al. 2021), halves split as in Llama. For i < D/2, with c = table[t][i] and
 * s = table[t][D/2+i]:
 *
 *      x[i], x[i+D/2] = x[i] c - x[i+D/2] s,  x[i+D/2] c + x[i] s
 *
 * x (B,T,H,D) T* strided, D even; table (>=T,D) f32: cosines, then sines. */
void op_rope(Backend *be, Tensor x, Tensor table);

/* The transpose of op_rope: rotates dx back. */
void op_rope_grad(Backend *be, Tensor dx, Tensor table);

/* out[n] = sum of x[n][h] over the heads h, in their order: the gradient of what all heads read (multi-head latent
 * attention's k^R).   x (N,H,D), out (N,D): T*, strided. out may not overlap x. */
void op_sum_heads(Backend *be, Tensor out, Tensor x);

/* ---- attention -------------------------------------------------------------------------------------------------- */

typedef struct {
    float scale;   /* of q·k, normally 1/sqrt(head size) */
    float softcap; /* logits pass through softcap*tanh(logit/softcap); 0 switches it off */
} AttentionParams;

/* Causal softmax attention, and MaxLogit in the same pass. For j <= i (ops/key_range.h), and cap(s) = softcap tanh(s /
 * softcap) or s itself:
 *
 *      s_ij = scale q_i·k_j            p_ij = exp(cap(s_ij) - lse_i)
 *      lse_i = log sum_j exp(cap(s_ij))
 *      out_i = sum_j p_ij v_j
 *      max_logit[h] = max(max_logit[h], max_ij s_ij)          running maxima, before the softcap:
 *      max_abs[h] = max(max_abs[h], max_ij |s_ij|)            a NaN logit makes both NaN, and they stay NaN
 *
 * q (B,T,H,D), k (B,T,K,D), v (B,T,K,E), out (B,T,H,E): T*, strided; query head h reads key head h / (H/K).
 * lse (B,H,T) f32; [max_logit], [max_abs] (H) f32, both or neither. Never stores T x T for more than a tile per thread.
 */
void op_attention(Backend *be, Tensor out, Tensor lse, Tensor max_logit, Tensor max_abs, Tensor q, Tensor k, Tensor v,
                  AttentionParams p);

/* dq =, dk =, dv =.   Shapes as in op_attention, all strided; out and lse are the forward's. */
void op_attention_grad(Backend *be, Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q,
                       Tensor k, Tensor v, AttentionParams p);

/* What op_logit_census takes a logit for. */
typedef struct {
    float scale;       /* of q·k */
    float threshold;   /* tau: logits beyond it are counted */
    int64_t first_row; /* number of q's first sequence among all that the peaks are of */
} CensusParams;

/* What peak and place of op_logit_census have in their second dimension. */
enum { PEAK_SIGNED, PEAK_MAGNITUDE, PEAKS };

/* Where the largest logits are, by a second pass over q and k. For s_ij = scale q_i·k_j in fp32, over all j <= i:
 *
 *      peak[h][PEAK_SIGNED]       running maximum of s_ij,    place[h][..] its (row, i, j): row counts sequences from
 *      peak[h][PEAK_MAGNITUDE]    running maximum of |s_ij|,                first_row on, i and j are positions in it
 *      above[h] += how many s_ij > threshold
 *
 * What is strictly larger replaces a maximum: of equal logits the first in the order of (row, i, j) is kept. A NaN is
 * larger than everything, and the first one stays. peak starts at -infinity: a logit of -infinity has no place.
 * q (B,T,H,D), k (B,T,K,D): T*, strided; query head h reads key head h / (H/K). peak (H,2) f32, place (H,2,3) i32,
 * above (H) f32, a whole number that is exact up to 2^24. */
void op_logit_census(Backend *be, Tensor peak, Tensor place, Tensor above, Tensor q, Tensor k, CensusParams p);

/* ---- mlp -------------------------------------------------------------------------------------------------------- */

/* out = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))) (Hendrycks & Gimpel 2016; "gelu_new").   x, out (N,F) T*. */
void op_gelu(Backend *be, Tensor out, Tensor x);

/* dx = dout gelu'(x).   dx may be dout. */
void op_gelu_grad(Backend *be, Tensor dx, Tensor dout, Tensor x);

/* out = silu(gate) up with x = [gate | up] (Shazeer 2020).   x (N,2F) T*, out (N,F) T*. */
void op_swiglu(Backend *be, Tensor out, Tensor x);

/* dx =.   dout (N,F) T*, x and dx (N,2F) T*; dx may be x. */
void op_swiglu_grad(Backend *be, Tensor dx, Tensor dout, Tensor x);

/* ---- loss ------------------------------------------------------------------------------------------------------- */

/* loss[n] = log sum_v exp(logits[n][v]) - logits[n][targets[n]], in nats; 0 where targets[n] < 0 (ignored).
 * logits (N,V) T*, targets (N) i32 < V, loss (N) f32. */
void op_cross_entropy(Backend *be, Tensor loss, Tensor logits, Tensor targets);

/* The same, and logits = scale (softmax(logits) - onehot(target)), in place; 0 in ignored rows. */
void op_cross_entropy_grad(Backend *be, Tensor loss, Tensor logits, Tensor targets, float scale);

/* total[0] += sum x.   total (1) f32; x strided, f32 or bf16. Accumulates in fp64, in a fixed order. */
void op_sum(Backend *be, Tensor total, Tensor x);

/* total[0] += sum x².   As op_sum. */
void op_sum_squares(Backend *be, Tensor total, Tensor x);

/* ---- optimizers ------------------------------------------------------------------------------------------------- */

/* One AdamW step (Loshchilov & Hutter 2019, algorithm 2, decay decoupled from the gradient). */
typedef struct {
    float lr, beta1, beta2, eps;
    float decay;       /* weight decay; 0 for norms and biases */
    float correction1; /* 1 - beta1^t */
    float correction2; /* 1 - beta2^t */
    float grad_scale;  /* global-norm clipping factor */
    bool cautious;     /* decay as in UpdateStep */
} AdamwStep;

/* g' = grad_scale g;  m = beta1 m + (1-beta1) g';  v = beta2 v + (1-beta2) g'²;
 * w = (1 - lr decay) w - lr (m/correction1) / (sqrt(v/correction2) + eps);  w_copy = w (rounded).
 * cautious: decay as in op_apply_update.
 * w, m, v, g f32, [w_copy] f32 or bf16: same shape, all strided. */
void op_adamw(Backend *be, Tensor w, Tensor w_copy, Tensor m, Tensor v, Tensor g, AdamwStep s);

/* m' = keep m + add g',  u = old m + fresh g'  with the old m: every momentum is a choice of the four. */
typedef struct {
    float keep, add;
    float old, fresh;
    bool sign;        /* u becomes its sign: -1, 0 or 1 */
    float grad_scale; /* g' = grad_scale g */
} MomentumStep;

/* With g' = grad_scale g and the old m:   u = old m + fresh g';  m = keep m + add g';  sign: u = sign(u), 0 for 0.
 * u f32 or bf16, m and g f32: same shape, all strided. */
void op_momentum(Backend *be, Tensor u, Tensor m, Tensor g, MomentumStep s);

/* Second moments of an update, after it has been orthogonalized. */
typedef struct {
    float beta2, eps;
} AdaptStep;

/* v = beta2 v + (1-beta2) mean x²;  out = x / (sqrt(v) + eps).
 * v (..,n,1): the mean is over a row of x (NorMuon, Li et al. 2025);  v (..,n,m): x² itself (AdaMuon, Si et al. 2025).
 * x, out (..,n,m) f32 or bf16, v f32, strided; out may be x. */
void op_adapt(Backend *be, Tensor out, Tensor v, Tensor x, AdaptStep s);

/* For each matrix of the batch: out = x / (‖x‖_F + eps).   x, out (..,n,m), f32 or bf16, strided; out may be x. */
void op_normalize(Backend *be, Tensor out, Tensor x, float eps);

/* Cautious weight decay (Chen et al. 2025) decays only where update and weight have one sign, or one of them is 0. */
typedef struct {
    float keep; /* 1 - lr decay */
    float step;
    bool cautious;
} UpdateStep;

/* w = keep w - step update;  w_copy = w (rounded).   cautious: w = w - step update where update w < 0 for the old w.
 * w f32, [w_copy] and update f32 or bf16: same shape, all strided. */
void op_apply_update(Backend *be, Tensor w, Tensor w_copy, Tensor update, UpdateStep s);

/* ---- the list --------------------------------------------------------------------------------------------------- */

/* One row per op: identifier, slot, and whether a backend must fill the slot. The wrapper is op_<slot>, and the slot
 * has its type.
 *
 *      REQUIRED    a backend without it does not open
 *      DEFAULT     where it is NULL, the wrapper composes it of other ops
 *      OPTIONAL    where it is NULL, nothing stands in for it: who wants it asks first
 */
#define PLAIN_OP_LIST(X)                                                                                               \
    X(FILL, fill, REQUIRED)                                                                                            \
    X(COPY, copy, REQUIRED)                                                                                            \
    X(SCALE, scale, REQUIRED)                                                                                          \
    X(MATMUL, matmul, REQUIRED)                                                                                        \
    X(MATMUL_SYMMETRIC, matmul_symmetric, DEFAULT)                                                                     \
    X(LINEAR, linear, DEFAULT)                                                                                         \
    X(LINEAR_GRAD_INPUT, linear_grad_input, DEFAULT)                                                                   \
    X(LINEAR_GRAD_WEIGHT, linear_grad_weight, DEFAULT)                                                                 \
    X(LAYERNORM, layernorm, REQUIRED)                                                                                  \
    X(LAYERNORM_GRAD, layernorm_grad, REQUIRED)                                                                        \
    X(RMSNORM, rmsnorm, REQUIRED)                                                                                      \
    X(RMSNORM_GRAD, rmsnorm_grad, REQUIRED)                                                                            \
    X(MAX_NORM, max_norm, REQUIRED)                                                                                    \
    X(EMBED, embed, REQUIRED)                                                                                          \
    X(EMBED_GRAD, embed_grad, REQUIRED)                                                                                \
    X(ROPE, rope, REQUIRED)                                                                                            \
    X(ROPE_GRAD, rope_grad, REQUIRED)                                                                                  \
    X(SUM_HEADS, sum_heads, REQUIRED)                                                                                  \
    X(ATTENTION, attention, REQUIRED)                                                                                  \
    X(ATTENTION_GRAD, attention_grad, REQUIRED)                                                                        \
    X(LOGIT_CENSUS, logit_census, REQUIRED)                                                                            \
    X(GELU, gelu, REQUIRED)                                                                                            \
    X(GELU_GRAD, gelu_grad, REQUIRED)                                                                                  \
    X(SWIGLU, swiglu, REQUIRED)                                                                                        \
    X(SWIGLU_GRAD, swiglu_grad, REQUIRED)                                                                              \
    X(CROSS_ENTROPY, cross_entropy, REQUIRED)                                                                          \
    X(CROSS_ENTROPY_GRAD, cross_entropy_grad, REQUIRED)                                                                \
    X(SUM, sum, REQUIRED)                                                                                              \
    X(SUM_SQUARES, sum_squares, REQUIRED)                                                                              \
    X(ADAMW, adamw, REQUIRED)                                                                                          \
    X(MOMENTUM, momentum, REQUIRED)                                                                                    \
    X(ADAPT, adapt, REQUIRED)                                                                                          \
    X(NORMALIZE, normalize, REQUIRED)                                                                                  \
    X(APPLY_UPDATE, apply_update, REQUIRED)

/* Two ops in one; "ref" and "cpu" leave these to the wrappers. */
#define FUSED_OP_LIST(X) X(LINEAR_GELU, linear_gelu, DEFAULT) X(LINEAR_GELU_GRAD, linear_gelu_grad, DEFAULT)

#define OP_LIST(X) PLAIN_OP_LIST(X) FUSED_OP_LIST(X)

typedef enum {
#define X(ID, slot, need) OP_##ID,
    OP_LIST(X)
#undef X
        OP_COUNT
} OpId;

extern const char *const op_names[OP_COUNT];
