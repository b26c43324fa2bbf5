/* The largest singular triples of a matrix, and the angle between the subspaces that two sets of them span.
 *
 *      W = sum sigma_i u_i v_iᵀ      sigma_1 >= sigma_2 >= ..      (n,m) W, u_i in Rⁿ, v_i in Rᵐ
 *
 * The vectors of the smaller side are eigenvectors of the fp64 Gram matrix W Wᵀ or Wᵀ W (LAPACK's dsyevr, for the top k
 * alone); those of the larger side follow by a product with W. Private to probe/.
 */
#pragma once

#include <stdint.h>

enum { TRIPLES_MAX = 64 };

typedef struct {
    int64_t rows, columns, count; /* n, m, and k <= min(n, m) */
    double *sigma;                /* (k) descending */
    double *left, *right;         /* (k, n) and (k, m): a vector a row, of length 1 */
} Triples;

/* Memory of one set, in doubles, and the set laid out in it. */
int64_t triples_size(int64_t rows, int64_t columns, int64_t count);
Triples triples_place(double *memory, int64_t rows, int64_t columns, int64_t count);

void triples_copy(Triples *to, const Triples *from); /* of one shape */

/* The top t->count triples of a contiguous (rows, columns) matrix. The largest component of every u_i, by size, is
 * positive. Vectors of a singular value that is 0, or rounding of larger ones, are NaN; so is all of a matrix that is
 * not finite. workspace: triples_workspace_size doubles. Callable from several threads: WorkspaceTask. */
int64_t triples_workspace_size(int64_t rows, int64_t columns, int64_t count);
void triples_find(Triples *t, const float *matrix, double *workspace);

/* How far two sets of k triples span the same subspaces: |U_kᵀ U'_k|_F² / k of the left ones, and so of the right ones,
 * whose bases are orthonormal. 1: the same, 0: orthogonal ones, about k / n (k / m) by chance. NaN: a set has fewer
 * than k singular values that are not 0. */
typedef struct {
    double left, right;
} Alignment;
Alignment triples_align(const Triples *a, const Triples *b);

/* uᵀ M v of a contiguous (rows, columns) matrix. */
double triples_form(const double *u, const float *matrix, const double *v, int64_t rows, int64_t columns);

/* c_i = u_iᵀ U v_i of an update U against the triples, their collisions (collision.c); returns mean c_i² / (|U|_F² / (n
 * m)), which is 1 for a U without any direction of its own, and NaN for a zero U. */
double triples_collide(const Triples *weights, const float *update, double *c);
