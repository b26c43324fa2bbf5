/* Inside of backend "cpu": what its files need of each other. Everything else is static.
 *
 *      backend.c      opens and closes; precision and threads
 *      memory.c       memory on huge pages; sums over rows and over threads
 *      gemm.c         matmul, linear and its gradients
 *      symmetric.c    matmul_symmetric: half the blocks, then a mirror
 *      gemm_onednn.c  the product itself, by oneDNN
 *      gemm_cblas.c   the product itself, by CBLAS, for builds without oneDNN
 *      attention.h    what attention_forward.c, attention_backward.c and census.c share: tiles
 *      sweep.c        cuts strided tensors into pieces for threads
 *      simd.h         arithmetic on rows of f32 or bf16
 *      norm.c  elementwise.c  embedding.c  loss.c  optimizer.c      one parallel sweep over memory each
 *
 * Threads are OpenMP's, always with a static schedule; a sum over rows is made of one partial sum per thread, added in
 * the order of the threads. So results depend on the number of threads, and on nothing else that varies.
 * Ops that need memory beside their arguments find it in be->scratch, from its start, and leave nothing there.
 */
#pragma once

#include "ops/backend.h"

/* cpu_fill, cpu_copy, ..., each of its wrapper's type. */
#define X(ID, slot, need) __typeof__(op_##slot) cpu_##slot;
PLAIN_OP_LIST(X)
#undef X
#pragma GCC diagnostic ignored "-Wunused-parameter" /* a slot's type is given: not every op looks at its backend */

/* What each needs of be->scratch for ops up to these sizes; the others need room for cpu_partial(be, part, 2) at most.
 */
int64_t cpu_gemm_scratch_bytes(const Backend *be, const OpLimits *limits);
int64_t cpu_norm_scratch_bytes(const Backend *be, const OpLimits *limits);
int64_t cpu_attention_forward_scratch_bytes(const Backend *be, const OpLimits *limits);
int64_t cpu_attention_backward_scratch_bytes(const Backend *be, const OpLimits *limits);
int64_t cpu_census_scratch_bytes(const Backend *be, const OpLimits *limits);

/* ---- the matrix product's library: gemm_onednn.c or gemm_cblas.c --------------------------------------------------
 */

/* out = alpha a·b + beta addend + bias, as op_matmul; bias (m) f32. beta is 0 where addend is absent. */
typedef struct {
    Tensor out, a, b, addend, bias;
    float alpha, beta;
} Product;

Status cpu_library_open(Backend *be); /* its state becomes be->state */
void cpu_library_close(Backend *be);
bool cpu_library_multiplies(const Backend *be, DType dtype);           /* without a detour through fp32 */
void cpu_library_describe(const Backend *be, char *text, size_t size); /* "oneDNN 2.6 (brg:avx512_core_bf16)" */
void cpu_library_multiply(Backend *be, const Product *p);

/* ---- memory ----------------------------------------------------------------------------------------------------- */

/* Zeroed, for free(), which is what ref's slot calls; NULL if there is none. Large pieces lie on huge pages, each
 * touched first by the thread that sweeps it. */
void *cpu_alloc(int64_t bytes);

/* ---- sums over rows and over threads ---------------------------------------------------------------------------- */

/* [begin, end) of n items that fall to thread `part` of `parts`. */
typedef struct {
    int64_t begin, end;
} Range;

static inline Range range_of(int64_t n, int part, int parts) {
    return (Range){n * part / parts, n * (part + 1) / parts};
}

/* Scratch of one thread: n floats (or half as many doubles) on cache lines of their own. A parallel region that uses it
 * has num_threads(be->threads): OpenMP's own number is that of the backend that was opened last.
 *
 *      | part 0: n floats, padding | part 1: n floats, padding | ...
 */
void *cpu_partial(const Backend *be, int part, int64_t n);
int64_t cpu_partial_bytes(const Backend *be, int64_t n); /* of all threads */

/* sum[i] += partial(0)[first + i] + partial(1)[first + i] + ... for i < count. Called by all threads of a parallel
 * region behind a barrier; `n` as in cpu_partial. */
void cpu_add_partials(const Backend *be, float *sum, int64_t n, int64_t first, int64_t count);

double cpu_total_of_squares(Backend *be, Tensor x); /* in fp64 */
