/* Singular-value spectra of weights, momentum and updates.
 *
 * With sigma_1 .. sigma_r the r = min(n,m) singular values of an (n,m) matrix W:
 *
 *      p_i = sigma_i / sum sigma        entropy        = -sum p ln p   (nats)            (Roy & Vetterli 2007)
 *                                       effective_rank = exp(entropy)
 *      p_i = sigma_i^2 / sum sigma^2    entropy_sq     = -(1/ln r) sum p ln p, in [0,1]  (Moonlight 2025)
 *                                       stable_rank    = |W|_F^2 / sigma_max^2
 *      rms = |W|_F / sqrt(n m)          |O Oᵀ - I|_F   = sqrt(sum (sigma_i^2 - 1)^2)     (I of the smaller side)
 *
 * The values are square roots of the eigenvalues of the fp64 Gram matrix, by LAPACK: several times faster than an SVD
 * (the tests' oracle), and exact to fp32's own rounding: values below about sqrt(r) 1.5e-8 sigma_max come out as 0.
 */
#pragma once

#include "model/params.h"

typedef struct {
    double sigma_max, sigma_min, rms, entropy, entropy_sq, effective_rank, stable_rank;
    double orthogonality_error; /* |O Oᵀ - I|_F */
    double below_half;          /* share of the values that are below 1/2 */
} Spectrum;

/* Of r singular values in any order, of a matrix whose larger side is `length`. All zero: so is every field but the
 * last two. Some value not finite: every field is NaN. r = 1: entropy_sq is 1, the limit of equal values. */
Spectrum spectrum_from_values(const double *sigma, int64_t r, int64_t length);

/* All singular values of a (rows, columns) row-major matrix, descending, into sigma (min(rows, columns) of them).
 * workspace: spectrum_workspace_size(rows, columns) doubles. For many matrices in parallel see SpectrumProbe: the BLAS
 * must not start threads of its own then. NaN if the matrix is not finite. */
int64_t spectrum_workspace_size(int64_t rows, int64_t columns);
void spectrum_singular_values(double *sigma, const float *matrix, int64_t rows, int64_t columns, double *workspace);

typedef enum { SPECTRUM_WEIGHT, SPECTRUM_MOMENTUM, SPECTRUM_UPDATE } SpectrumOf;

/* A run of matrices and what they are. */
typedef struct {
    int kind; /* block kind: its role is the name in the metrics */
    int64_t first_layer;
    BlockSplit split; /* of the run: how the optimizer takes the matrices */
    SpectrumOf of;
    double step, decay; /* of the caller, for the records: lr s and lr wd of an update */
} SpectrumRun;

typedef struct {
    int kind;
    int64_t layer;
    int head; /* -1: the whole block */
    SpectrumOf of;
    bool unit; /* one matrix to the optimizer: the whole block, or a head where the run is split per head */
    double step, decay;
    Spectrum spectrum;
} SpectrumRecord;

/* Which heads have records of their own, beside those of q and k: none, or every one that a run is split into. */
typedef enum { SPECTRUM_HEADS_OF_QK, SPECTRUM_HEADS_AS_SPLIT } SpectrumHeads;
bool spectrum_has_heads(const BlockKind *kind); /* q, q_rope and k */

/* Collects the records of one step: every hidden matrix whole, and heads. All memory is taken by
 * spectrum_probe_create: workspace for each thread, and host copies of the longest run of matrices; on a device that
 * runs asynchronously, of as much of a step as fits into a GiB. */
typedef struct SpectrumProbe SpectrumProbe;
Status spectrum_probe_create(SpectrumProbe **probe, const ParamTable *params, Backend *be, SpectrumHeads heads);
void spectrum_probe_free(SpectrumProbe *probe);           /* NULL is fine */
int64_t spectrum_probe_bytes(const SpectrumProbe *probe); /* all that create took, for the plan */
void spectrum_probe_begin(SpectrumProbe *probe);          /* forgets the records */

/* Copies a run of blocks to the host and measures its matrices, in parallel: now, or, on a device that runs
 * asynchronously, once spectrum_probe_finish has been called and the device has got there. run: (layers, heads or 1,
 * rows, columns), f32 or bf16, strided, as params_block_run gives it for what.split; a run that comes split per head is
 * put together for the whole block's record. Records come in the order: whole matrices by layer, then heads by layer
 * and head. */
void spectrum_probe_add(SpectrumProbe *probe, SpectrumRun what, Tensor run);
/* All matrices of the step have been added: a thread of the host measures what is still to be measured, while the
 * caller goes on with the next step. */
void spectrum_probe_finish(SpectrumProbe *probe);
/* Of all matrices added, in the order of the calls. Waits for that thread. */
const SpectrumRecord *spectrum_probe_records(SpectrumProbe *probe, int64_t *count);
