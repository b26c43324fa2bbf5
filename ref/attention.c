/* Causal softmax attention, one query row (or, backward, one key row) at a time, so that nothing of size T x T exists.
 *
 *      s_ij = scale q_i·k_j      z_ij = cap(s_ij)      p_ij = exp(z_ij - lse_i)
 *      out_i = sum over the keys j that i sees of p_ij v_j                 (ops/key_range.h: j <= i)
 *
 * Backward (Dao et al. 2022, algorithm 4, with the softcap's derivative):
 *
 *      delta_i = dout_i·out_i                    ds_ij = p_ij (dout_i·v_j - delta_i) cap'(s_ij)
 *      dq_i = scale sum over j of ds_ij k_j
 *      dk_j = scale sum over i of ds_ij q_i           dv_j = sum over i of p_ij dout_i
 *
 * where i are the queries that see j; dk and dv also sum over the query heads that share the key head. The census at
 * the end looks at s_ij alone.
 */
#include <math.h>

#include "base/integer.h"
#include "ops/key_range.h"
#include "ref/ref.h"

enum {
    MAX_HEAD_SIZE = 1024, /* sums of one row are kept in double on the stack */
    MAX_GROUP = 64,       /* query heads to a key head */
};

/* A model may have larger heads than fit: that is the device's failure, not a mistake in the program. */
static bool fits(Backend *be, const char *op, Tensor q, Tensor k, Tensor v) {
    int64_t size = larger(q.shape[3], v.shape[3]), group = q.shape[2] / k.shape[2];
    if (size <= MAX_HEAD_SIZE && group <= MAX_GROUP) return true;
    backend_fail(be, op,
                 BAD_INPUT("head size %lld with %lld query heads to a key head is more than the %d and %d that it "
                           "can do; use device=cpu",
                           (long long)size, (long long)group, MAX_HEAD_SIZE, MAX_GROUP));
    return false;
}

/* The head (T,D) of a (B,T,H,D) tensor. */
static Tensor head_of(Tensor t, int64_t b, int64_t h) {
    t = tensor_slice(tensor_index(t, b), 1, h, 1);
    t.ndim = 2;
    t.shape[1] = t.shape[2];
    t.stride[1] = t.stride[2];
    return t;
}

static double dot(Tensor a, int64_t i, Tensor b, int64_t j) {
    double sum = 0;
    for (int64_t d = 0; d < a.shape[1]; d++) sum += get2(a, i, d) * get2(b, j, d);
    return sum;
}

static double cap(double s, AttentionParams p) {
    double c = (double)p.softcap;
    return c > 0 ? c * tanh(s / c) : s;
}

static double cap_derivative(double s, AttentionParams p) {
    double t = p.softcap > 0 ? tanh(s / (double)p.softcap) : 0;
    return 1 - t * t;
}

/* A NaN on either side wins. */
static double sticky_max(double a, double b) {
    return a >= b || isnan(a) ? a : b;
}

static void accumulate_row(double *sum, double weight, Tensor t, int64_t row) {
    for (int64_t d = 0; d < t.shape[1]; d++) sum[d] += weight * get2(t, row, d);
}

static void store_row(Tensor t, int64_t row, const double *sum, double factor) {
    for (int64_t d = 0; d < t.shape[1]; d++) set2(t, row, d, factor * sum[d]);
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* log sum over j of exp(z_ij); raises the running maxima in the same pass. */
static double row_lse(Tensor q, Tensor k, int64_t i, AttentionParams p, double *max_logit, double *max_abs) {
    const KeyRange keys = keys_of_query(i);
    double top = -HUGE_VAL, sum = 0;
    for (int64_t j = keys.first; j < keys.end; j++) {
        double s = (double)p.scale * dot(q, i, k, j);
        *max_logit = sticky_max(*max_logit, s);
        *max_abs = sticky_max(*max_abs, fabs(s));
        top = sticky_max(top, cap(s, p));
    }
    for (int64_t j = keys.first; j < keys.end; j++) sum += exp(cap((double)p.scale * dot(q, i, k, j), p) - top);
    return top + log(sum);
}

static void row_out(Tensor out, Tensor q, Tensor k, Tensor v, int64_t i, double lse, AttentionParams p) {
    const KeyRange keys = keys_of_query(i);
    double sum[MAX_HEAD_SIZE] = {0};
    for (int64_t j = keys.first; j < keys.end; j++)
        accumulate_row(sum, exp(cap((double)p.scale * dot(q, i, k, j), p) - lse), v, j);
    store_row(out, i, sum, 1);
}

void ref_attention(Backend *be, Tensor out, Tensor lse, Tensor max_logit, Tensor max_abs, Tensor q, Tensor k, Tensor v,
                   AttentionParams p) {
    if (!fits(be, "attention", q, k, v)) return;
    int64_t H = q.shape[2], group = H / k.shape[2];
    const bool watched = tensor_present(max_logit);
    for (int64_t b = 0; b < q.shape[0]; b++)
        for (int64_t h = 0; h < H; h++) {
            Tensor qh = head_of(q, b, h), kh = head_of(k, b, h / group), vh = head_of(v, b, h / group);
            double largest = watched ? get1(max_logit, h) : 0, largest_abs = watched ? get1(max_abs, h) : 0;
            for (int64_t i = 0; i < q.shape[1]; i++) {
                double row = row_lse(qh, kh, i, p, &largest, &largest_abs);
                row_out(head_of(out, b, h), qh, kh, vh, i, row, p);
                set3(lse, b, h, i, row);
            }
            if (!watched) continue;
            set1(max_logit, h, largest);
            set1(max_abs, h, largest_abs);
        }
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* One query head: all that p_ij and ds_ij depend on. */
typedef struct {
    Tensor q, k, v, dout, out; /* (T,D) or (T,E) */
    Tensor lse;                /* (T) */
    AttentionParams p;
} HeadGrad;

typedef struct {
    double p, ds;
} Pair;

static Pair pair_of(const HeadGrad *g, int64_t i, int64_t j) {
    double s = (double)g->p.scale * dot(g->q, i, g->k, j);
    double p = exp(cap(s, g->p) - get1(g->lse, i));
    double delta = dot(g->dout, i, g->out, i);
    return (Pair){.p = p, .ds = p * (dot(g->dout, i, g->v, j) - delta) * cap_derivative(s, g->p)};
}

static void grad_query_head(Tensor dq, const HeadGrad *g) {
    for (int64_t i = 0; i < dq.shape[0]; i++) {
        const KeyRange keys = keys_of_query(i);
        double sum[MAX_HEAD_SIZE] = {0};
        for (int64_t j = keys.first; j < keys.end; j++) accumulate_row(sum, pair_of(g, i, j).ds, g->k, j);
        store_row(dq, i, sum, (double)g->p.scale);
    }
}

/* `heads` are the `group` query heads that read this key head. */
static void grad_key_head(Tensor dk, Tensor dv, const HeadGrad *heads, int64_t group) {
    for (int64_t j = 0; j < dk.shape[0]; j++) {
        const KeyRange queries = queries_of_key(j, dk.shape[0]);
        double sum_k[MAX_HEAD_SIZE] = {0}, sum_v[MAX_HEAD_SIZE] = {0};
        for (int64_t h = 0; h < group; h++)
            for (int64_t i = queries.first; i < queries.end; i++) {
                Pair pair = pair_of(&heads[h], i, j);
                accumulate_row(sum_k, pair.ds, heads[h].q, i);
                accumulate_row(sum_v, pair.p, heads[h].dout, i);
            }
        store_row(dk, j, sum_k, (double)heads[0].p.scale);
        store_row(dv, j, sum_v, 1);
    }
}

void ref_attention_grad(Backend *be, Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q,
                        Tensor k, Tensor v, AttentionParams p) {
    if (!fits(be, "attention_grad", q, k, v)) return;
    int64_t K = k.shape[2], group = q.shape[2] / K;
    for (int64_t b = 0; b < q.shape[0]; b++)
        for (int64_t kh = 0; kh < K; kh++) {
            HeadGrad heads[MAX_GROUP];
            for (int64_t i = 0; i < group; i++) {
                int64_t h = kh * group + i;
                heads[i] = (HeadGrad){.q = head_of(q, b, h),
                                      .k = head_of(k, b, kh),
                                      .v = head_of(v, b, kh),
                                      .dout = head_of(dout, b, h),
                                      .out = head_of(out, b, h),
                                      .lse = tensor_index(tensor_index(lse, b), h),
                                      .p = p};
                grad_query_head(head_of(dq, b, h), &heads[i]);
            }
            grad_key_head(head_of(dk, b, kh), head_of(dv, b, kh), heads, group);
        }
}

/* ---- census ----------------------------------------------------------------------------------------------------- */

/* A NaN beats every number, and nothing beats a NaN. */
static bool beats(float value, float held) {
    return value > held || (isnan(value) && !isnan(held));
}

/* Pairs come in the order of (row, i, j), so that of equal logits the first stays. */
static void note_logit(Tensor peak, Tensor place, int64_t h, int which, float value, const int64_t *pair) {
    if (!beats(value, (float)get2(peak, h, which))) return;
    set2(peak, h, which, (double)value);
    for (int i = 0; i < 3; i++) set3(place, h, which, i, (double)pair[i]);
}

void ref_logit_census(Backend *be, Tensor peak, Tensor place, Tensor above, Tensor q, Tensor k, CensusParams p) {
    int64_t H = q.shape[2], group = H / k.shape[2];
    for (int64_t b = 0; b < q.shape[0]; b++)
        for (int64_t h = 0; h < H; h++) {
            Tensor qh = head_of(q, b, h), kh = head_of(k, b, h / group);
            double count = 0;
            for (int64_t i = 0; i < q.shape[1]; i++) {
                const KeyRange keys = keys_of_query(i);
                for (int64_t j = keys.first; j < keys.end; j++) {
                    float s = (float)((double)p.scale * dot(qh, i, kh, j));
                    int64_t pair[3] = {p.first_row + b, i, j};
                    note_logit(peak, place, h, PEAK_SIGNED, s, pair);
                    note_logit(peak, place, h, PEAK_MAGNITUDE, fabsf(s), pair);
                    count += s > p.threshold;
                }
            }
            add1(above, h, count);
        }
}
