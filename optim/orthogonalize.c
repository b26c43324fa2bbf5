/* Newton-Schulz and exact SVD; see orthogonalize.h.
 *
 * Newton-Schulz iterates on the small side. X is stored (n, m) and stays so; for n > m the products are taken through
 * transposed views, which moves no data:
 *
 *      n <= m (wide)    A = X Xᵀ (n,n)     X <- a X + B X
 *      n >  m (tall)    A = Xᵀ X (m,m)     X <- a X + X B       the transpose of the line above: B is symmetric
 *
 * Everything is batched over layers and heads, and ping-pongs between two buffers of X. In bf16 mode X, A and B are
 * rounded to bf16 after each product, as in the reference implementation; products accumulate in fp32. Coefficients
 * that would not survive that run in fp32.
 *
 * Gram form. Iteration i is X <- P_i X with P_i = a I + B a polynomial in A, so that all of it happens among small
 * matrices, and X is read twice instead of twice an iteration:
 *
 *      A = X Xᵀ,  Q = I;   Q <- P Q,  A <- P A P  for each iteration;   X <- Q X
 *
 * In A a singular value s is s², and rounding that puts a small s² off, or below zero, grows with the factor a² of each
 * iteration. So X and A are made anew before the growth reaches GROWTH_MAX. In fp32 this pays where the small side is
 * small enough (orthogonalizer_uses_gram). bf16 keeps the plain form: Q has gains from a^5 = 485 down to 1 side by
 * side, which its 8 bits cannot hold, and in fp32 the small products would cost what is saved. optimizer.muon.form asks
 * for a form; the Gram form then runs in fp32 everywhere.
 */
#include "optim/orthogonalize.h"

#include <cblas.h>
#include <float.h>
#include <lapacke.h>
#include <math.h>

#include "base/config_options.h"
#include "base/integer.h"
#include "ops/ops.h"
#include "optim/coefficients.h"

/* ---- coefficients ----------------------------------------------------------------------------------------------- */

static Status unknown_set(const char *name) {
    char names[LINE_SIZE];
    return BAD_INPUT("optimizer.muon.coefficients: unknown set \"%s\"; use one of %s, or a list of [a, b, c]", name,
                     option_join_choices(option_find("optimizer.muon.coefficients"), names));
}

static const double *triple_of(const Orthogonalizer *o, int iteration) {
    return o->triples[o->count == 1 ? 0 : iteration];
}

/* The largest |a s + b s³ + c s⁵| for s in [0, end]. */
static double peak(const double *abc, double end) {
    enum { GRID = 1000 };
    double highest = 0;
    for (int i = 1; i <= GRID; i++) {
        double s = end * i / GRID;
        highest = fmax(highest, fabs(s * (abc[0] + s * s * (abc[1] + s * s * abc[2]))));
    }
    return highest;
}

/* Some sets (su, cans) map the end of their range onto the end of the next, with slopes of 5 to 26 there: values that
 * rounding pushes out run off, to 1e10 in a few iterations. Rounding A, B and X to bf16 moves them by up to 3/512. */
static bool survives_bf16(const Orthogonalizer *o) {
    const double runaway = 2.5; /* no set's range goes beyond 2 on its way */
    double end = 1;
    for (int i = 0; i < o->iterations && end < runaway; i++) end = peak(triple_of(o, i), end * (1 + 3. / 512));
    return end < 1.5;
}

static bool takes_svd(const Orthogonalizer *o) {
    return o->kind != ORTHOGONALIZE_NEWTON_SCHULZ;
}

/* ---- plain or Gram form ----------------------------------------------------------------------------------------- */

static const double GROWTH_MAX = 1e3; /* times fp32's 6e-8: A's smallest eigenvalues are off by 6e-5 at the end */

/* The end of the Gram form's segment that begins with iteration `first`. The last iteration needs no further A. */
static int segment_end(const Orthogonalizer *o, int first) {
    double growth = 1;
    int end = first + 1;
    while (end < o->iterations) {
        double a = triple_of(o, end - 1)[0];
        growth *= a * a;
        if (growth > GROWTH_MAX) break;
        end++;
    }
    return end;
}

/* Multiply-adds of a segment, with k = min(n,m) and l the larger: A k²l / 2 and Q X k²l; and k³ times 1/2 for each B, 2
 * for each new A, 1 for each Q but the first. */
static double segment_cost(int iterations, double k, double l) {
    return 1.5 * k * k * l + k * k * k * (0.5 * iterations + 3.0 * (iterations - 1));
}

bool orthogonalizer_uses_gram(const Orthogonalizer *o, int64_t rows, int64_t columns) {
    if (takes_svd(o) || o->dtype != DTYPE_F32) return false;
    if (o->form != FORM_AUTO) return o->form == FORM_GRAM;
    double k = (double)smaller(rows, columns), l = (double)larger(rows, columns), gram = 0;
    for (int first = 0, end; first < o->iterations; first = end) {
        end = segment_end(o, first);
        gram += segment_cost(end - first, k, l);
    }
    return gram < o->iterations * segment_cost(1, k, l); /* the plain form: segments of one iteration */
}

/* ---- setting up ------------------------------------------------------------------------------------------------- */

Status orthogonalizer_plan(Orthogonalizer *o, const MuonConfig *config, Backend *be) {
    const CoefficientsConfig *given = &config->coefficients;
    const CoefficientSet *set = coefficient_set_find(given->set);
    if (given->set[0] && !set) return unknown_set(given->set);
    *o = (Orthogonalizer){.be = be,
                          .kind = config->orthogonalize,
                          .form = config->form,
                          .schatten_p = config->schatten_p,
                          .count = set ? set->count : given->count};
    CHECK(o->count >= 1 && o->count <= COEFFICIENTS_MAX, "%d coefficient triples", o->count);
    memcpy(o->triples, set ? set->triples : given->triples, sizeof o->triples);
    o->iterations = o->count == 1 ? (int)config->iterations : o->count;
    bool keep_fp32 = takes_svd(o) || o->form == FORM_GRAM || !survives_bf16(o);
    o->dtype = keep_fp32 ? DTYPE_F32 : be->compute_dtype;
    return status_ok();
}

OrthogonalizeBuffers orthogonalizer_layout(const Orthogonalizer *o, Arena *scratch, const int64_t *shape) {
    if (takes_svd(o)) return (OrthogonalizeBuffers){.x = arena_take(scratch, o->dtype, 4, shape)};
    int64_t small = smaller(shape[2], shape[3]);
    int64_t square[4] = {shape[0], shape[1], small, small};
    OrthogonalizeBuffers w = {.x = arena_take(scratch, o->dtype, 4, shape),
                              .next = arena_take(scratch, o->dtype, 4, shape),
                              .gram = arena_take(scratch, o->dtype, 4, square),
                              .poly = arena_take(scratch, o->dtype, 4, square)};
    if (orthogonalizer_uses_gram(o, shape[2], shape[3])) {
        w.factor = arena_take(scratch, o->dtype, 4, square);
        w.next_factor = arena_take(scratch, o->dtype, 4, square);
    }
    return w;
}

/* ---- Newton-Schulz ---------------------------------------------------------------------------------------------- */

static void swap(Tensor *a, Tensor *b) {
    Tensor previous = *a;
    *a = *b;
    *b = previous;
}

/* out = alpha a aᵀ + beta addend, which is symmetric. */
static void square(const Orthogonalizer *o, Tensor out, Tensor a, Tensor addend, MatmulScale s) {
    if (o->form == FORM_PLAIN)
        op_matmul(o->be, out, a, tensor_transpose(a), addend, s);
    else
        op_matmul_symmetric(o->be, out, a, addend, s);
}

static void gram_of(const Orthogonalizer *o, Tensor A, Tensor X) {
    bool tall = X.shape[2] > X.shape[3];
    square(o, A, tall ? tensor_transpose(X) : X, tensor_none(), (MatmulScale){.alpha = 1});
}

/* One iteration: writes the next X. */
static void newton_schulz_step(const Orthogonalizer *o, const OrthogonalizeBuffers *w, const double *abc) {
    const float a = (float)abc[0], b = (float)abc[1], c = (float)abc[2];
    Tensor X = w->x, A = w->gram, B = w->poly;
    bool tall = X.shape[2] > X.shape[3];
    gram_of(o, A, X);
    square(o, B, A, A, (MatmulScale){.alpha = c, .beta = b}); /* A is symmetric: A² = A Aᵀ */
    op_matmul(o->be, w->next, tall ? X : B, tall ? B : X, X, (MatmulScale){.alpha = 1, .beta = a});
}

/* Q = a I + B: w = keep w - step update, with w = I. */
static void first_factor(Backend *be, Tensor Q, Tensor B, float a) {
    Tensor diagonal = Q;
    diagonal.stride[2] += Q.stride[3];
    diagonal.shape[3] = 1;
    op_fill(be, Q, 0);
    op_fill(be, diagonal, 1);
    op_apply_update(be, Q, tensor_none(), B, (UpdateStep){.keep = a, .step = -1});
}

/* Iterations first .. end - 1 as one product of X. Writes the next X. */
static void gram_segment(const Orthogonalizer *o, OrthogonalizeBuffers *w, int first, int end) {
    Backend *be = o->be;
    Tensor A = w->gram, B = w->poly;
    gram_of(o, A, w->x);
    for (int i = first; i < end; i++) {
        const double *abc = triple_of(o, i);
        const float a = (float)abc[0];
        const MatmulScale add_a = {.alpha = 1, .beta = a};
        square(o, B, A, A, (MatmulScale){.alpha = (float)abc[2], .beta = (float)abc[1]});
        if (i + 1 < end) { /* A <- P A P; P A = B A + a A lies where Q goes next */
            Tensor PA = w->next_factor;
            op_matmul(be, PA, B, A, A, add_a);
            op_matmul(be, A, PA, B, PA, add_a);
        }
        if (i == first) {
            first_factor(be, w->factor, B, a);
        } else {
            op_matmul(be, w->next_factor, B, w->factor, w->factor, add_a);
            swap(&w->factor, &w->next_factor);
        }
    }
    Tensor X = w->x, Q = w->factor;
    bool tall = X.shape[2] > X.shape[3]; /* Q is symmetric */
    op_matmul(be, w->next, tall ? X : Q, tall ? Q : X, tensor_none(), (MatmulScale){.alpha = 1});
}

static Tensor newton_schulz(const Orthogonalizer *o, OrthogonalizeBuffers w) {
    op_normalize(o->be, w.x, w.x, 1e-7f); /* no singular value above 1: outside, the polynomials diverge */
    bool gram = tensor_present(w.factor);
    for (int i = 0, end; i < o->iterations; i = end) {
        end = gram ? segment_end(o, i) : i + 1;
        if (gram)
            gram_segment(o, &w, i, end);
        else
            newton_schulz_step(o, &w, triple_of(o, i));
        swap(&w.x, &w.next);
    }
    return w.x;
}

/* ---- exact SVD -------------------------------------------------------------------------------------------------- */

/* LAPACK's working memory for one (rows, columns) matrix. It works in columns, so our row-major U is its Uᵀ: m x n,
 * with the factors left (m, small) and right (small, n); msign commutes with the transpose. */
typedef struct {
    int64_t work_size;
    double *matrix, *left, *right, *sigma, *work;
    lapack_int *iwork;
    float *staging; /* the matrix on its way from and to the backend */
} SvdMemory;

static SvdMemory svd_layout(Arena *host, int64_t rows, int64_t columns) {
    const int64_t small = smaller(rows, columns), large = larger(rows, columns);
    const int64_t work_size = 4 * small * small + 7 * small + large; /* dgesdd, jobz = 'S' */
    return (SvdMemory){.work_size = work_size,
                       .matrix = arena_take_host(host, rows * columns, sizeof(double)),
                       .left = arena_take_host(host, columns * small, sizeof(double)),
                       .right = arena_take_host(host, small * rows, sizeof(double)),
                       .sigma = arena_take_host(host, small, sizeof(double)),
                       .work = arena_take_host(host, work_size, sizeof(double)),
                       .iwork = arena_take_host(host, 8 * small, sizeof(lapack_int)),
                       .staging = arena_take_host(host, rows * columns, sizeof(float))};
}

void orthogonalizer_admit(Orthogonalizer *o, int64_t rows, int64_t columns) {
    Arena measured = arena_measure_host("exact SVD", "set optimizer.muon.orthogonalize to \"newton-schulz\"");
    svd_layout(&measured, rows, columns);
    if (takes_svd(o) && measured.used > o->host.used) o->host = measured;
}

double orthogonalizer_flops(const Orthogonalizer *o, int64_t rows, int64_t columns) {
    double k = (double)smaller(rows, columns), product = (double)rows * (double)columns * k;
    if (takes_svd(o)) return 6 * product + 8 * k * k * k;
    return o->iterations * (4 * product + 2 * k * k * k);
}

Status orthogonalizer_allocate(Orthogonalizer *o) {
    return takes_svd(o) ? arena_allocate(&o->host, o->be) : status_ok();
}

void orthogonalizer_free(Orthogonalizer *o) {
    arena_free(&o->host);
}

/* How many singular values fp32 data can tell from zero: msign(0) = 0, and the vectors of the rest are arbitrary. */
static int64_t numerical_rank(const double *sigma, int64_t small, int64_t large) {
    double noise = sigma[0] * (double)large * (double)FLT_EPSILON;
    int64_t rank = 0;
    while (rank < small && sigma[rank] > noise) rank++;
    return rank;
}

static bool widen_finite(double *out, const float *x, int64_t n) {
    bool finite = true;
    for (int64_t i = 0; i < n; i++) {
        out[i] = (double)x[i];
        finite = finite && isfinite(x[i]);
    }
    return finite;
}

/* left = left * diag(k^(1/p) s^(q-1) / (sum s^q)^(1/p)) over the rank. With s as shares of the largest no power
 * overflows: O does not depend on the size of U. */
static void weigh_for_schatten(const Orthogonalizer *o, SvdMemory s, int64_t m, int64_t small, int64_t rank) {
    const double p = o->schatten_p, q = p / (p - 1);
    double sum = 0;
    for (int64_t i = 0; i < rank; i++) sum += pow(s.sigma[i] / s.sigma[0], q);
    for (int64_t i = 0; i < rank; i++)
        cblas_dscal((int)m, pow((double)small / sum, 1 / p) * pow(s.sigma[i] / s.sigma[0], q - 1), s.left + i * m, 1);
}

static void exact_msign(const Orthogonalizer *o, Tensor x) {
    int64_t n = x.shape[0], m = x.shape[1], small = smaller(n, m), large = larger(n, m);
    Arena host = o->host;
    SvdMemory s = svd_layout(&host, n, m);
    backend_to_host(o->be, s.staging, x);
    bool valid = widen_finite(s.matrix, s.staging, n * m) && /* LAPACK may not return from an infinity */
                 LAPACKE_dgesdd_work(LAPACK_COL_MAJOR, 'S', (lapack_int)m, (lapack_int)n, s.matrix, (lapack_int)m,
                                     s.sigma, s.left, (lapack_int)m, s.right, (lapack_int)small, s.work,
                                     (lapack_int)s.work_size, s.iwork) == 0;
    int64_t rank = valid ? numerical_rank(s.sigma, small, large) : 0;
    if (valid && o->kind == ORTHOGONALIZE_SCHATTEN) weigh_for_schatten(o, s, m, small, rank);
    if (valid) /* left * right over the rank, columns first */
        cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)n, (int)rank, 1, s.left, (int)m, s.right,
                    (int)small, 0, s.matrix, (int)m);
    for (int64_t i = 0; i < n * m; i++) s.staging[i] = valid ? (float)s.matrix[i] : NAN;
    backend_from_host(o->be, x, s.staging);
}

static Tensor exact_msign_batch(const Orthogonalizer *o, Tensor x) {
    CHECK(o->host.base, "no memory for an SVD of (%lld,%lld)", (long long)x.shape[2], (long long)x.shape[3]);
    for (int64_t layer = 0; layer < x.shape[0]; layer++)
        for (int64_t head = 0; head < x.shape[1]; head++) exact_msign(o, tensor_index(tensor_index(x, layer), head));
    return x;
}

/* ---- both ------------------------------------------------------------------------------------------------------- */

Tensor orthogonalize(const Orthogonalizer *o, OrthogonalizeBuffers buffers) {
    return takes_svd(o) ? exact_msign_batch(o, buffers.x) : newton_schulz(o, buffers);
}
