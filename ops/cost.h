/* What training costs on a named GPU, worked out from shapes alone: a backend that counts instead of computing.
 *
 * Model and optimizer code runs on it unchanged. Each op adds the FLOPs and bytes of its call, as the kernels of cuda/
 * do the work, to its row of a table; tensors get addresses that nothing may touch, so a step of any size takes
 * milliseconds and no memory. What is read back is zero: nothing has been computed.
 *
 *      bound       the roofline (Williams et al. 2009): a call takes the longer of FLOPs / peak and bytes / bandwidth,
 *                  at all of both; launching is free
 *      expected    the same with the shares of peak and bandwidth that such kernels reach elsewhere (CostAssumptions),
 *                  and with the time of each launch
 *
 * Calls follow one another: nothing overlaps. Both are predictions; only a GPU can confirm them.
 */
#pragma once

#include "ops/backend.h"
#include "base/config.h"

typedef struct {
    const char *name;      /* of dry_run.gpu */
    const char *form;      /* board, memory */
    const char *source;    /* of these numbers */
    double bf16_flops;     /* FLOP/s of dense products with fp32 accumulation, on tensor cores */
    double fp32_flops;     /* outside of the tensor cores: the fp32 mode takes no TF32 */
    double bandwidth;      /* of its memory, bytes/s */
    double host_bandwidth; /* of PCIe, one direction */
    double memory;         /* bytes */
    int multiprocessors;
    int capability;        /* 90: sm_90 */
    double mma_sync_share; /* of bf16_flops, by mma.sync, which our own kernels use; cuBLASLt uses newer instructions */
} Gpu;

extern const Gpu gpus[GPU_COUNT]; /* by GpuKind */

/* Shares of the peak that are expected, of the bandwidth, and times beside the work. */
typedef struct {
    double product;   /* cuBLASLt, of the peak */
    double unaligned; /* factor, where a row of a matrix is not a multiple of 16 bytes */
    double symmetric; /* own kernels, of the peak by mma.sync */
    double attention; /* both passes: softmax between the products, masked halves of tiles on the diagonal */
    double bandwidth;
    double host_bandwidth;
    double launch_seconds;
    double sync_seconds;
    double small_tile; /* factor, of a product cut into tiles of 64 x 64 instead of 128 x 128 */
    int64_t slab;      /* least terms of a tile: longer ones are cut, where that makes work for idle multiprocessors */
} CostAssumptions;

extern const CostAssumptions cost_assumptions;

typedef struct {
    int64_t calls, launches;
    double flops, bytes;                     /* executed FLOPs of products; other arithmetic counts as free */
    double bound, bound_compute;             /* seconds; the part of calls that FLOPs bound */
    double expected, expected_compute, wait; /* likewise; `wait` is the part of launches and of waiting for copies */
} CostRow;

enum { COST_TRANSFERS = OP_COUNT, COST_ROWS }; /* a row per op, and one for copies between host and device */

/* Precision "auto" is bf16. be->name is "cuda". scratch_bytes: that backend's own. */
typedef int64_t ScratchBytes(const Backend *be, const OpLimits *limits);
Status cost_backend_open(Backend *be, const Gpu *gpu, const char *precision, ScratchBytes *scratch_bytes);
const Gpu *cost_gpu(const Backend *be);
const CostRow *cost_rows(const Backend *be); /* COST_ROWS of them, since cost_reset or the opening */
void cost_reset(Backend *be);
CostRow cost_total(const CostRow *rows);
const char *cost_row_name(int row);
