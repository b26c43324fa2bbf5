/* Orthogonalization: O = msign(U), the orthogonal factor of U's polar decomposition. With U = P S Qᵀ it is P Qᵀ.
 *
 * Newton-Schulz (Jordan et al. 2024, "Muon") gets there by matrix products alone: each iteration maps every singular
 * value s to a s + b s³ + c s⁵ and leaves the singular vectors where they are; coefficients.h says for which (a, b, c).
 * The exact SVD (LAPACK, on the host) is the tests' oracle and an option of the config.
 *
 * By the same SVD, steepest descent in the Schatten-p norm |W|_p = (sum s^p)^(1/p) (Cesista 2025, "Steepest Descent
 * Under Schatten-p Norms"; Bernstein & Newhouse 2024 for p = infinity). With 1/p + 1/q = 1 and k = min(n, m):
 *
 *      O = k^(1/p) P diag(s^(q-1)) Qᵀ / (sum s^q)^(1/p)
 *
 * maximises <U, O> over the ball |O|_p <= k^(1/p), on whose surface orthogonal matrices lie. p -> infinity gives
 * msign(U), p = 2 gives sqrt(k) U / |U|_F.
 */
#pragma once

#include "base/config.h"
#include "ops/arena.h"

/* What one pass over a batch of matrices works in. U goes into x; the rest is private to orthogonalize(). */
typedef struct {
    Tensor x, next;             /* (layers, heads or 1, n, m): the iterate, and the one after it */
    Tensor gram, poly;          /* (layers, heads or 1, min(n,m), min(n,m)): A = X Xᵀ and B = b A + c A² */
    Tensor factor, next_factor; /* Gram form only, of the same shape: Q and what it becomes */
} OrthogonalizeBuffers;

typedef struct {
    Backend *be;
    OrthogonalizeKind kind;
    NewtonSchulzForm form; /* how its products are done; each gives the same up to rounding */
    double schatten_p;
    DType dtype; /* of X: the backend's; f32 for SVDs, and for coefficients that bf16's rounding would make diverge */
    int iterations, count;
    double triples[COEFFICIENTS_MAX][3];
    Arena host; /* SVDs: LAPACK's working memory for one matrix; empty for Newton-Schulz */
} Orthogonalizer;

/* Resolves the coefficients. STATUS_BAD_INPUT: no such set. Allocates nothing. */
Status orthogonalizer_plan(Orthogonalizer *o, const MuonConfig *config, Backend *be);
/* Makes sure that matrices of this shape will fit. Between plan and allocate. */
void orthogonalizer_admit(Orthogonalizer *o, int64_t rows, int64_t columns);
/* Whether matrices of this shape are iterated on as Gram matrices: where the config says so or, left to choose, where
 * that takes less time; see orthogonalize.c. */
bool orthogonalizer_uses_gram(const Orthogonalizer *o, int64_t rows, int64_t columns);
/* Of one (n, m) matrix. Newton-Schulz with k = min(n, m): 4 n m k + 2 k³ an iteration (A, B X, A²). An SVD costs about
 * 4 n m k + 8 k³ (Golub & Van Loan, figure 8.6.1) and the product U Vᵀ 2 n m k. */
double orthogonalizer_flops(const Orthogonalizer *o, int64_t rows, int64_t columns);
Status orthogonalizer_allocate(Orthogonalizer *o);
void orthogonalizer_free(Orthogonalizer *o);

/* The buffers of one pass over matrices of `shape` (4 numbers), from an arena that measures or that has memory. */
OrthogonalizeBuffers orthogonalizer_layout(const Orthogonalizer *o, Arena *scratch, const int64_t *shape);

/* O = msign(U), or the Schatten-p norm's O, of every matrix in buffers.x. Returns O, which lies in the buffers; U is
 * overwritten. A zero matrix gives zero, a non-finite one gives NaN. */
Tensor orthogonalize(const Orthogonalizer *o, OrthogonalizeBuffers buffers);
