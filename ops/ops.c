/* The op wrappers: the one place that checks arguments, honours the sticky failure, times, scans and injects faults.
 *
 * Every wrapper has the same three parts:
 *
 *      OpCall c = op_begin(be, OP_LINEAR);
 *      op_arg(&c, "out", out, T | OUTPUT, "NO");       // the contract of ops.h, in its letters
 *      op_arg(&c, "x", x, T, "NI");                    // a letter seen before must have the same size again
 *      RUN(c, linear, out, x, w, bias, addend);        // unless the backend has failed
 *
 * A leading '*' in the letters stands for any number of dimensions, the same in every argument of the call.
 */
#include "ops/ops.h"

#include <math.h>

#include "base/clock.h"
#include "base/integer.h"
#include "ops/backend.h"

enum { MAX_OUTPUTS = 4, LETTERS = 128, SCAN_CHUNK = 4096 };

/* What an argument may be. The first four are dtypes, one of which is given; T is the activation dtype of the call. */
enum {
    T = 1 << 0,    /* f32 or bf16, like every other T of this call */
    REAL = 1 << 1, /* f32 or bf16 */
    F32 = 1 << 2,
    I32 = 1 << 3,
    OUTPUT = 1 << 4,
    OPTIONAL = 1 << 5,
    STRIDED = 1 << 6,    /* the last stride is 1 */
    TRANSPOSED = 1 << 7, /* the last or the last but one stride is 1 */
};

typedef struct {
    Backend *be;
    OpId op;
    bool has_activation;
    DType activation;
    int64_t size_plus_one[LETTERS]; /* by letter; 0: not seen yet */
    int output_count;
    Tensor outputs[MAX_OUTPUTS];
    double start;
} OpCall;

/* ---- checks ----------------------------------------------------------------------------------------------------- */

static OpCall op_begin(Backend *be, OpId op) {
    return (OpCall){.be = be, .op = op};
}

static void require(const OpCall *c, bool condition, const char *name, Tensor t, const char *rule) {
    char text[96];
    CHECK(condition, "op_%s: %s is %s; %s", op_names[c->op], name, tensor_describe(t, text, sizeof text), rule);
}

static void check_dtype(OpCall *c, const char *name, Tensor t, int rules) {
    bool real = t.dtype == DTYPE_F32 || t.dtype == DTYPE_BF16;
    if (rules & F32) require(c, t.dtype == DTYPE_F32, name, t, "it must be f32");
    if (rules & I32) require(c, t.dtype == DTYPE_I32, name, t, "it must be i32");
    if (rules & (REAL | T)) require(c, real, name, t, "it must be f32 or bf16");
    if (!(rules & T)) return;
    require(c, !c->has_activation || c->activation == t.dtype, name, t, "other arguments have another dtype");
    c->has_activation = true;
    c->activation = t.dtype;
}

static void check_strides(const OpCall *c, const char *name, Tensor t, int rules) {
    int last = t.ndim - 1;
    bool row_major = t.shape[last] <= 1 || t.stride[last] == 1;
    bool column_major = last > 0 && (t.shape[last - 1] <= 1 || t.stride[last - 1] == 1);
    if (rules & TRANSPOSED)
        require(c, row_major || column_major, name, t, "neither of its last two strides is 1");
    else if (rules & STRIDED)
        require(c, row_major, name, t, "its last stride must be 1");
    else
        require(c, tensor_is_contiguous(t), name, t, "it must be contiguous");
}

static void bind_letter(OpCall *c, const char *name, Tensor t, char letter, int64_t size) {
    int64_t *seen = &c->size_plus_one[(unsigned char)letter % LETTERS];
    char text[96];
    CHECK(!*seen || *seen == size + 1, "op_%s: %s is %s with %c = %lld, but %c = %lld in the arguments before it",
          op_names[c->op], name, tensor_describe(t, text, sizeof text), letter, (long long)size, letter,
          (long long)(*seen - 1));
    *seen = size + 1;
}

static void check_shape(OpCall *c, const char *name, Tensor t, const char *letters) {
    bool any = letters[0] == '*';
    const char *named = letters + any;
    int lead = t.ndim - (int)strlen(named);
    require(c, any ? lead >= 0 : lead == 0, name, t, "it has the wrong number of dimensions");
    if (any) bind_letter(c, name, t, '*', lead);
    for (int i = 0; i < lead; i++) bind_letter(c, name, t, (char)('0' + i), t.shape[i]);
    for (int i = 0; named[i]; i++) bind_letter(c, name, t, named[i], t.shape[lead + i]);
}

static void op_arg(OpCall *c, const char *name, Tensor t, int rules, const char *letters) {
    if ((rules & OPTIONAL) && !tensor_present(t)) return;
    require(c, tensor_present(t), name, t, "it has no memory");
    check_dtype(c, name, t, rules);
    check_strides(c, name, t, rules);
    check_shape(c, name, t, letters);
    if (rules & OUTPUT) c->outputs[c->output_count++] = t;
}

static int64_t size_of(const OpCall *c, char letter) {
    return c->size_plus_one[(unsigned char)letter] - 1;
}

/* ---- before and after the slot ---------------------------------------------------------------------------------- */

static bool op_start(OpCall *c) {
    if (c->be->failure.code) return false;
    if (c->be->profile) c->start = clock_seconds();
    return true;
}

static void stop_timer(OpCall *c) {
    OpTimer *timer = &c->be->timers[c->op];
    Status status = c->be->ops.sync(c->be);
    if (status.code) backend_fail(c->be, op_names[c->op], status);
    timer->calls++;
    timer->seconds += clock_seconds() - c->start;
}

static void inject_fault(OpCall *c) {
    Tensor first = c->outputs[0];
    for (int i = 0; i < first.ndim; i++) first = tensor_slice(first, i, 0, 1);
    c->be->ops.fill(c->be, first, NAN);
}

/* Through a small buffer, because nothing is allocated by an op. */
static bool row_holds_nan(Backend *be, Tensor row) {
    uint32_t buffer[SCAN_CHUNK];
    for (int64_t start = 0; start < row.shape[0]; start += SCAN_CHUNK) {
        int64_t count = smaller(SCAN_CHUNK, row.shape[0] - start);
        backend_to_host(be, buffer, tensor_slice(row, 0, start, count));
        for (int64_t i = 0; i < count; i++) {
            float value;
            if (row.dtype == DTYPE_BF16)
                value = bf16_to_f32(((const bf16 *)(const void *)buffer)[i]);
            else
                memcpy(&value, &buffer[i], sizeof value);
            if (isnan(value)) return true;
        }
    }
    return false;
}

static bool holds_nan(Backend *be, Tensor t) {
    if (tensor_is_contiguous(t)) return row_holds_nan(be, tensor_1d(t.data, t.dtype, tensor_numel(t)));
    for (int64_t i = 0; i < t.shape[0]; i++)
        if (holds_nan(be, tensor_index(t, i))) return true;
    return false;
}

/* Infinities are left alone: a running maximum starts at -inf. */
static void scan_outputs(OpCall *c) {
    for (int i = 0; i < c->output_count; i++) {
        char text[96];
        if (c->be->failure.code || !holds_nan(c->be, c->outputs[i])) continue;
        backend_fail(c->be, op_names[c->op],
                     status_error(STATUS_DIVERGED, "output %d, %s, holds a NaN; its inputs or this op made it", i + 1,
                                  tensor_describe(c->outputs[i], text, sizeof text)));
    }
}

static void op_end(OpCall *c) {
    Backend *be = c->be;
    if (be->profile) stop_timer(c);
    if (c->op == be->fault_op && be->fault_countdown >= 0 && be->fault_countdown-- == 0) inject_fault(c);
    if (be->scan_nan) scan_outputs(c);
}

/* The slot's work, unless the backend has failed. */
#define RUN(c, slot, ...)                                                                                              \
    do {                                                                                                               \
        if (!op_start(&(c))) break;                                                                                    \
        be->ops.slot(be, __VA_ARGS__);                                                                                 \
        op_end(&(c));                                                                                                  \
    } while (0)

/* ---- moving ----------------------------------------------------------------------------------------------------- */

void op_fill(Backend *be, Tensor x, float value) {
    OpCall c = op_begin(be, OP_FILL);
    op_arg(&c, "x", x, REAL | STRIDED | OUTPUT, "*");
    RUN(c, fill, x, value);
}

void op_copy(Backend *be, Tensor dst, Tensor src) {
    OpCall c = op_begin(be, OP_COPY);
    op_arg(&c, "dst", dst, REAL | STRIDED | OUTPUT, "*");
    op_arg(&c, "src", src, REAL | STRIDED, "*");
    RUN(c, copy, dst, src);
}

void op_scale(Backend *be, Tensor x, float factor) {
    OpCall c = op_begin(be, OP_SCALE);
    op_arg(&c, "x", x, REAL | STRIDED | OUTPUT, "*");
    RUN(c, scale, x, factor);
}

/* ---- matrix products -------------------------------------------------------------------------------------------- */

static const MatmulScale product = {.alpha = 1, .beta = 0};
static const MatmulScale product_added = {.alpha = 1, .beta = 1};

static bool same_strides(Tensor a, Tensor b) {
    for (int i = 0; i < a.ndim; i++)
        if (a.shape[i] > 1 && a.stride[i] != b.stride[i]) return false;
    return true;
}

static void check_product(const OpCall *c, Tensor out, Tensor a, Tensor addend) {
    require(c, out.dtype == a.dtype || out.dtype == DTYPE_F32, "out", out, "it must be f32 or of a's dtype");
    require(c, out.data != a.data, "out", out, "it must not be a");
    if (!tensor_present(addend)) return;
    require(c, addend.dtype == out.dtype, "addend", addend, "it must be of out's dtype");
    require(c, addend.data != out.data || same_strides(addend, out), "addend", addend, "it must be out or elsewhere");
}

void op_matmul(Backend *be, Tensor out, Tensor a, Tensor b, Tensor addend, MatmulScale s) {
    OpCall c = op_begin(be, OP_MATMUL);
    op_arg(&c, "out", out, REAL | STRIDED | OUTPUT, "*nm");
    op_arg(&c, "a", a, T | TRANSPOSED, "*nk");
    op_arg(&c, "b", b, T | TRANSPOSED, "*km");
    op_arg(&c, "addend", addend, REAL | STRIDED | OPTIONAL, "*nm");
    check_product(&c, out, a, addend);
    require(&c, out.data != b.data, "out", out, "it must not be b");
    RUN(c, matmul, out, a, b, addend, s);
}

void op_matmul_symmetric(Backend *be, Tensor out, Tensor a, Tensor addend, MatmulScale s) {
    OpCall c = op_begin(be, OP_MATMUL_SYMMETRIC);
    op_arg(&c, "out", out, REAL | STRIDED | OUTPUT, "*nn");
    op_arg(&c, "a", a, T | TRANSPOSED, "*nk");
    op_arg(&c, "addend", addend, REAL | STRIDED | OPTIONAL, "*nn");
    check_product(&c, out, a, addend);
    if (be->ops.matmul_symmetric)
        RUN(c, matmul_symmetric, out, a, addend, s);
    else
        RUN(c, matmul, out, a, tensor_transpose(a), addend, s);
}

/* The fallbacks call the slot of matmul, not op_matmul, so that the time counts once and under the name that was asked
 * for. They cannot serve a bias: it is f32, and an addend has the dtype of out. */
void op_linear(Backend *be, Tensor out, Tensor x, Tensor w, Tensor bias, Tensor addend) {
    OpCall c = op_begin(be, OP_LINEAR);
    op_arg(&c, "out", out, T | OUTPUT, "NO");
    op_arg(&c, "x", x, T, "NI");
    op_arg(&c, "w", w, T | STRIDED, "OI");
    op_arg(&c, "bias", bias, F32 | OPTIONAL, "O");
    op_arg(&c, "addend", addend, T | OPTIONAL, "NO");
    require(&c, be->ops.linear || !tensor_present(bias), "bias", bias, "this backend has no linear slot to add it");
    if (be->ops.linear)
        RUN(c, linear, out, x, w, bias, addend);
    else
        RUN(c, matmul, out, x, tensor_transpose(w), addend, product_added);
}

void op_linear_grad_input(Backend *be, Tensor dx, Tensor dout, Tensor w) {
    OpCall c = op_begin(be, OP_LINEAR_GRAD_INPUT);
    op_arg(&c, "dx", dx, T | OUTPUT, "NI");
    op_arg(&c, "dout", dout, T, "NO");
    op_arg(&c, "w", w, T | STRIDED, "OI");
    if (be->ops.linear_grad_input)
        RUN(c, linear_grad_input, dx, dout, w);
    else
        RUN(c, matmul, dx, dout, w, tensor_none(), product);
}

void op_linear_grad_weight(Backend *be, Tensor dw, Tensor dbias, Tensor dout, Tensor x, GradientMode mode) {
    OpCall c = op_begin(be, OP_LINEAR_GRAD_WEIGHT);
    op_arg(&c, "dw", dw, F32 | OUTPUT, "OI");
    op_arg(&c, "dbias", dbias, F32 | OPTIONAL | OUTPUT, "O");
    op_arg(&c, "dout", dout, T, "NO");
    op_arg(&c, "x", x, T, "NI");
    require(&c, be->ops.linear_grad_weight || !tensor_present(dbias), "dbias", dbias,
            "this backend has no linear_grad_weight slot to sum it");
    if (be->ops.linear_grad_weight)
        RUN(c, linear_grad_weight, dw, dbias, dout, x, mode);
    else
        RUN(c, matmul, dw, tensor_transpose(dout), x, dw, mode == GRADIENT_ADD ? product_added : product);
}

void op_linear_gelu(Backend *be, Tensor out, Tensor pre, Tensor x, Tensor w, Tensor bias) {
    OpCall c = op_begin(be, OP_LINEAR_GELU);
    op_arg(&c, "out", out, T | OUTPUT, "NO");
    op_arg(&c, "pre", pre, T | OUTPUT, "NO");
    op_arg(&c, "x", x, T, "NI");
    op_arg(&c, "w", w, T | STRIDED, "OI");
    op_arg(&c, "bias", bias, F32 | OPTIONAL, "O");
    require(&c, out.data != pre.data, "pre", pre, "it must not be out");
    if (!be->ops.linear_gelu) {
        op_linear(be, pre, x, w, bias, tensor_none());
        op_gelu(be, out, pre);
        return;
    }
    RUN(c, linear_gelu, out, pre, x, w, bias);
}

void op_linear_gelu_grad(Backend *be, Tensor dpre, Tensor dout, Tensor w, Tensor pre) {
    OpCall c = op_begin(be, OP_LINEAR_GELU_GRAD);
    op_arg(&c, "dpre", dpre, T | OUTPUT, "NI");
    op_arg(&c, "dout", dout, T, "NO");
    op_arg(&c, "w", w, T | STRIDED, "OI");
    op_arg(&c, "pre", pre, T, "NI");
    require(&c, dpre.data != pre.data, "dpre", dpre, "it must not be pre");
    if (!be->ops.linear_gelu_grad) {
        op_linear_grad_input(be, dpre, dout, w);
        op_gelu_grad(be, dpre, dpre, pre);
        return;
    }
    RUN(c, linear_gelu_grad, dpre, dout, w, pre);
}

/* ---- norms ------------------------------------------------------------------------------------------------------ */

void op_layernorm(Backend *be, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor bias, float eps) {
    OpCall c = op_begin(be, OP_LAYERNORM);
    op_arg(&c, "out", out, T | OUTPUT, "NC");
    op_arg(&c, "mean", mean, F32 | OUTPUT, "N");
    op_arg(&c, "rstd", rstd, F32 | OUTPUT, "N");
    op_arg(&c, "x", x, T, "NC");
    op_arg(&c, "w", w, F32, "C");
    op_arg(&c, "bias", bias, F32 | OPTIONAL, "C");
    RUN(c, layernorm, out, mean, rstd, x, w, bias, eps);
}

void op_layernorm_grad(Backend *be, Tensor dx, Tensor dw, Tensor dbias, Tensor dout, Tensor x, Tensor mean, Tensor rstd,
                       Tensor w) {
    OpCall c = op_begin(be, OP_LAYERNORM_GRAD);
    op_arg(&c, "dx", dx, T | OUTPUT, "NC");
    op_arg(&c, "dw", dw, F32 | OUTPUT, "C");
    op_arg(&c, "dbias", dbias, F32 | OPTIONAL | OUTPUT, "C");
    op_arg(&c, "dout", dout, T, "NC");
    op_arg(&c, "x", x, T, "NC");
    op_arg(&c, "mean", mean, F32, "N");
    op_arg(&c, "rstd", rstd, F32, "N");
    op_arg(&c, "w", w, F32, "C");
    RUN(c, layernorm_grad, dx, dw, dbias, dout, x, mean, rstd, w);
}

static void check_rmsnorm_rank(const OpCall *c, Tensor x) {
    require(c, x.ndim == 2 || x.ndim == 3, "x", x, "it must be (N,C) or (N,H,C)");
}

void op_rmsnorm(Backend *be, Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) {
    OpCall c = op_begin(be, OP_RMSNORM);
    op_arg(&c, "out", out, T | STRIDED | OUTPUT, "*C");
    op_arg(&c, "rstd", rstd, F32 | OUTPUT, "*");
    op_arg(&c, "x", x, T | STRIDED, "*C");
    op_arg(&c, "w", w, F32, "C");
    check_rmsnorm_rank(&c, x);
    RUN(c, rmsnorm, out, rstd, x, w, eps);
}

void op_rmsnorm_grad(Backend *be, Tensor dx, Tensor dw, Tensor dout, Tensor x, Tensor rstd, Tensor w) {
    OpCall c = op_begin(be, OP_RMSNORM_GRAD);
    op_arg(&c, "dx", dx, T | STRIDED | OUTPUT, "*C");
    op_arg(&c, "dw", dw, F32 | OUTPUT, "C");
    op_arg(&c, "dout", dout, T | STRIDED, "*C");
    op_arg(&c, "x", x, T | STRIDED, "*C");
    op_arg(&c, "rstd", rstd, F32, "*");
    op_arg(&c, "w", w, F32, "C");
    check_rmsnorm_rank(&c, x);
    RUN(c, rmsnorm_grad, dx, dw, dout, x, rstd, w);
}

/* The running maximum or sum that an op brings up to date. */
static void check_scalar(const OpCall *c, const char *name, Tensor t) {
    require(c, t.shape[0] == 1, name, t, "it must have one element");
}

void op_max_norm(Backend *be, Tensor max, Tensor x) {
    OpCall c = op_begin(be, OP_MAX_NORM);
    op_arg(&c, "max", max, F32 | OUTPUT, "S");
    op_arg(&c, "x", x, T | STRIDED, "NC");
    check_scalar(&c, "max", max);
    RUN(c, max_norm, max, x);
}

/* ---- embedding and position ------------------------------------------------------------------------------------- */

static void check_tokens(const OpCall *c, Tensor tokens, Tensor positions) {
    require(c, size_of(c, 'N') == size_of(c, 'B') * size_of(c, 'T'), "tokens", tokens, "B*T is not the rows of out");
    require(c, !tensor_present(positions) || positions.shape[0] >= size_of(c, 'T'), "wpe", positions,
            "it has fewer rows than T");
}

void op_embed(Backend *be, Tensor out, Tensor tokens, Tensor wte, Tensor wpe) {
    OpCall c = op_begin(be, OP_EMBED);
    op_arg(&c, "out", out, T | OUTPUT, "NC");
    op_arg(&c, "tokens", tokens, I32, "BT");
    op_arg(&c, "wte", wte, T, "VC");
    op_arg(&c, "wpe", wpe, T | OPTIONAL, "PC");
    check_tokens(&c, tokens, wpe);
    RUN(c, embed, out, tokens, wte, wpe);
}

void op_embed_grad(Backend *be, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens) {
    OpCall c = op_begin(be, OP_EMBED_GRAD);
    op_arg(&c, "dwte", dwte, F32 | OUTPUT, "VC");
    op_arg(&c, "dwpe", dwpe, F32 | OPTIONAL | OUTPUT, "PC");
    op_arg(&c, "dout", dout, T, "NC");
    op_arg(&c, "tokens", tokens, I32, "BT");
    check_tokens(&c, tokens, dwpe);
    RUN(c, embed_grad, dwte, dwpe, dout, tokens);
}

static OpCall begin_rope(Backend *be, OpId op, Tensor x, Tensor table) {
    OpCall c = op_begin(be, op);
    op_arg(&c, "x", x, T | STRIDED | OUTPUT, "BTHD");
    op_arg(&c, "table", table, F32, "PD");
    require(&c, x.shape[3] % 2 == 0, "x", x, "the head size must be even");
    require(&c, table.shape[0] >= x.shape[1], "table", table, "it has fewer rows than T");
    return c;
}

void op_rope(Backend *be, Tensor x, Tensor table) {
    OpCall c = begin_rope(be, OP_ROPE, x, table);
    RUN(c, rope, x, table);
}

void op_rope_grad(Backend *be, Tensor dx, Tensor table) {
    OpCall c = begin_rope(be, OP_ROPE_GRAD, dx, table);
    RUN(c, rope_grad, dx, table);
}

void op_sum_heads(Backend *be, Tensor out, Tensor x) {
    OpCall c = op_begin(be, OP_SUM_HEADS);
    op_arg(&c, "out", out, T | STRIDED | OUTPUT, "ND");
    op_arg(&c, "x", x, T | STRIDED, "NHD");
    RUN(c, sum_heads, out, x);
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

static void check_groups(const OpCall *c, Tensor k) {
    int64_t key_heads = size_of(c, 'K');
    require(c, key_heads > 0 && size_of(c, 'H') % key_heads == 0, "k", k, "its heads do not divide the query's");
}

void op_attention(Backend *be, Tensor out, Tensor lse, Tensor max_logit, Tensor max_abs, Tensor q, Tensor k, Tensor v,
                  AttentionParams p) {
    OpCall c = op_begin(be, OP_ATTENTION);
    op_arg(&c, "out", out, T | STRIDED | OUTPUT, "BTHE");
    op_arg(&c, "lse", lse, F32 | OUTPUT, "BHT");
    op_arg(&c, "max_logit", max_logit, F32 | OPTIONAL | OUTPUT, "H");
    op_arg(&c, "max_abs", max_abs, F32 | OPTIONAL | OUTPUT, "H");
    require(&c, tensor_present(max_logit) == tensor_present(max_abs), "max_abs", max_abs, "it comes with max_logit");
    op_arg(&c, "q", q, T | STRIDED, "BTHD");
    op_arg(&c, "k", k, T | STRIDED, "BTKD");
    op_arg(&c, "v", v, T | STRIDED, "BTKE");
    check_groups(&c, k);
    RUN(c, attention, out, lse, max_logit, max_abs, q, k, v, p);
}

void op_attention_grad(Backend *be, Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q,
                       Tensor k, Tensor v, AttentionParams p) {
    OpCall c = op_begin(be, OP_ATTENTION_GRAD);
    op_arg(&c, "dq", dq, T | STRIDED | OUTPUT, "BTHD");
    op_arg(&c, "dk", dk, T | STRIDED | OUTPUT, "BTKD");
    op_arg(&c, "dv", dv, T | STRIDED | OUTPUT, "BTKE");
    op_arg(&c, "dout", dout, T | STRIDED, "BTHE");
    op_arg(&c, "out", out, T | STRIDED, "BTHE");
    op_arg(&c, "lse", lse, F32, "BHT");
    op_arg(&c, "q", q, T | STRIDED, "BTHD");
    op_arg(&c, "k", k, T | STRIDED, "BTKD");
    op_arg(&c, "v", v, T | STRIDED, "BTKE");
    check_groups(&c, k);
    RUN(c, attention_grad, dq, dk, dv, dout, out, lse, q, k, v, p);
}

/* place is not an output for op_end: the bits of -1 are those of a NaN. */
void op_logit_census(Backend *be, Tensor peak, Tensor place, Tensor above, Tensor q, Tensor k, CensusParams p) {
    OpCall c = op_begin(be, OP_LOGIT_CENSUS);
    op_arg(&c, "peak", peak, F32 | OUTPUT, "HP");
    op_arg(&c, "place", place, I32, "HPC");
    op_arg(&c, "above", above, F32 | OUTPUT, "H");
    op_arg(&c, "q", q, T | STRIDED, "BTHD");
    op_arg(&c, "k", k, T | STRIDED, "BTKD");
    require(&c, size_of(&c, 'P') == PEAKS, "peak", peak, "it must be (H,2)");
    require(&c, size_of(&c, 'C') == 3, "place", place, "it must be (H,2,3)");
    check_groups(&c, k);
    RUN(c, logit_census, peak, place, above, q, k, p);
}

/* ---- mlp -------------------------------------------------------------------------------------------------------- */

void op_gelu(Backend *be, Tensor out, Tensor x) {
    OpCall c = op_begin(be, OP_GELU);
    op_arg(&c, "out", out, T | OUTPUT, "NF");
    op_arg(&c, "x", x, T, "NF");
    RUN(c, gelu, out, x);
}

void op_gelu_grad(Backend *be, Tensor dx, Tensor dout, Tensor x) {
    OpCall c = op_begin(be, OP_GELU_GRAD);
    op_arg(&c, "dx", dx, T | OUTPUT, "NF");
    op_arg(&c, "dout", dout, T, "NF");
    op_arg(&c, "x", x, T, "NF");
    RUN(c, gelu_grad, dx, dout, x);
}

void op_swiglu(Backend *be, Tensor out, Tensor x) {
    OpCall c = op_begin(be, OP_SWIGLU);
    op_arg(&c, "out", out, T | OUTPUT, "NF");
    op_arg(&c, "x", x, T, "NG");
    require(&c, x.shape[1] == 2 * out.shape[1], "x", x, "it must be twice as wide as out");
    RUN(c, swiglu, out, x);
}

void op_swiglu_grad(Backend *be, Tensor dx, Tensor dout, Tensor x) {
    OpCall c = op_begin(be, OP_SWIGLU_GRAD);
    op_arg(&c, "dx", dx, T | OUTPUT, "NG");
    op_arg(&c, "dout", dout, T, "NF");
    op_arg(&c, "x", x, T, "NG");
    require(&c, x.shape[1] == 2 * dout.shape[1], "x", x, "it must be twice as wide as dout");
    RUN(c, swiglu_grad, dx, dout, x);
}

/* ---- loss ------------------------------------------------------------------------------------------------------- */

void op_cross_entropy(Backend *be, Tensor loss, Tensor logits, Tensor targets) {
    OpCall c = op_begin(be, OP_CROSS_ENTROPY);
    op_arg(&c, "loss", loss, F32 | OUTPUT, "N");
    op_arg(&c, "logits", logits, T, "NV");
    op_arg(&c, "targets", targets, I32, "N");
    RUN(c, cross_entropy, loss, logits, targets);
}

void op_cross_entropy_grad(Backend *be, Tensor loss, Tensor logits, Tensor targets, float scale) {
    OpCall c = op_begin(be, OP_CROSS_ENTROPY_GRAD);
    op_arg(&c, "loss", loss, F32 | OUTPUT, "N");
    op_arg(&c, "logits", logits, T | OUTPUT, "NV");
    op_arg(&c, "targets", targets, I32, "N");
    RUN(c, cross_entropy_grad, loss, logits, targets, scale);
}

static OpCall begin_total(Backend *be, OpId op, Tensor total, Tensor x) {
    OpCall c = op_begin(be, op);
    op_arg(&c, "total", total, F32 | OUTPUT, "S");
    op_arg(&c, "x", x, REAL | STRIDED, "*");
    check_scalar(&c, "total", total);
    return c;
}

void op_sum(Backend *be, Tensor total, Tensor x) {
    OpCall c = begin_total(be, OP_SUM, total, x);
    RUN(c, sum, total, x);
}

void op_sum_squares(Backend *be, Tensor total, Tensor x) {
    OpCall c = begin_total(be, OP_SUM_SQUARES, total, x);
    RUN(c, sum_squares, total, x);
}

/* ---- optimizers ------------------------------------------------------------------------------------------------- */

void op_adamw(Backend *be, Tensor w, Tensor w_copy, Tensor m, Tensor v, Tensor g, AdamwStep s) {
    OpCall c = op_begin(be, OP_ADAMW);
    op_arg(&c, "w", w, F32 | STRIDED | OUTPUT, "*");
    op_arg(&c, "w_copy", w_copy, REAL | STRIDED | OPTIONAL | OUTPUT, "*");
    op_arg(&c, "m", m, F32 | STRIDED | OUTPUT, "*");
    op_arg(&c, "v", v, F32 | STRIDED | OUTPUT, "*");
    op_arg(&c, "g", g, F32 | STRIDED, "*");
    RUN(c, adamw, w, w_copy, m, v, g, s);
}

void op_momentum(Backend *be, Tensor u, Tensor m, Tensor g, MomentumStep s) {
    OpCall c = op_begin(be, OP_MOMENTUM);
    op_arg(&c, "u", u, REAL | STRIDED | OUTPUT, "*");
    op_arg(&c, "m", m, F32 | STRIDED | OUTPUT, "*");
    op_arg(&c, "g", g, F32 | STRIDED, "*");
    RUN(c, momentum, u, m, g, s);
}

void op_adapt(Backend *be, Tensor out, Tensor v, Tensor x, AdaptStep s) {
    OpCall c = op_begin(be, OP_ADAPT);
    op_arg(&c, "out", out, REAL | STRIDED | OUTPUT, "*nm");
    op_arg(&c, "v", v, F32 | STRIDED | OUTPUT, "*nk");
    op_arg(&c, "x", x, REAL | STRIDED, "*nm");
    require(&c, size_of(&c, 'k') == 1 || size_of(&c, 'k') == size_of(&c, 'm'), "v", v, "its rows have x's length or 1");
    RUN(c, adapt, out, v, x, s);
}

void op_normalize(Backend *be, Tensor out, Tensor x, float eps) {
    OpCall c = op_begin(be, OP_NORMALIZE);
    op_arg(&c, "out", out, REAL | STRIDED | OUTPUT, "*nm");
    op_arg(&c, "x", x, REAL | STRIDED, "*nm");
    RUN(c, normalize, out, x, eps);
}

void op_apply_update(Backend *be, Tensor w, Tensor w_copy, Tensor update, UpdateStep s) {
    OpCall c = op_begin(be, OP_APPLY_UPDATE);
    op_arg(&c, "w", w, F32 | STRIDED | OUTPUT, "*");
    op_arg(&c, "w_copy", w_copy, REAL | STRIDED | OPTIONAL | OUTPUT, "*");
    op_arg(&c, "update", update, REAL | STRIDED, "*");
    RUN(c, apply_update, w, w_copy, update, s);
}
