/* FLOPs and bytes of every op, a GPU's speeds, and the backend that counts; see cost.h.
 *
 * A slot below is the cost of one call: its products' FLOPs, what its kernels read and write, and how many kernels it
 * launches. Bytes are counted once per kernel and tensor: L2 gives no tensor to the next kernel for free, and within a
 * kernel re-reads of a tile hit it. The letters are those of ops/ops.h.
 */
#include "ops/cost.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ops/key_range.h"

/* Peaks without sparsity. mma.sync: all of the peak up to Ada; 62.9 % on Hopper (Luo et al. 2024, arXiv 2402.13499);
 * on Blackwell, whose tensor cores it does not drive, a guess. */
#define ROW(id, ...) [GPU_##id] = {.name = #id, __VA_ARGS__}
const Gpu gpus[GPU_COUNT] = {
    ROW(A100, .form = "A100 SXM4 80 GB", .source = "NVIDIA A100 data sheet", .bf16_flops = 312e12,
        .fp32_flops = 19.5e12, .bandwidth = 2.039e12, .host_bandwidth = 32e9, .memory = 80e9, .multiprocessors = 108,
        .capability = 80, .mma_sync_share = 1),
    ROW(H100, .form = "H100 SXM5 80 GB", .source = "NVIDIA H100 data sheet", .bf16_flops = 989e12, .fp32_flops = 67e12,
        .bandwidth = 3.35e12, .host_bandwidth = 64e9, .memory = 80e9, .multiprocessors = 132, .capability = 90,
        .mma_sync_share = 0.63),
    ROW(H200, .form = "H200 SXM 141 GB", .source = "NVIDIA H200 data sheet", .bf16_flops = 989e12, .fp32_flops = 67e12,
        .bandwidth = 4.8e12, .host_bandwidth = 64e9, .memory = 141e9, .multiprocessors = 132, .capability = 90,
        .mma_sync_share = 0.63),
    ROW(4090, .form = "GeForce RTX 4090 PCIe 24 GB", .source = "NVIDIA Ada GPU architecture white paper",
        .bf16_flops = 165.2e12, .fp32_flops = 82.6e12, .bandwidth = 1.008e12, .host_bandwidth = 32e9, .memory = 24e9,
        .multiprocessors = 128, .capability = 89, .mma_sync_share = 1),
    ROW(B200, .form = "HGX B200 SXM 180 GB", .source = "NVIDIA HGX B200 data sheet", .bf16_flops = 2250e12,
        .fp32_flops = 75e12, .bandwidth = 8e12, .host_bandwidth = 64e9, .memory = 180e9, .multiprocessors = 148,
        .capability = 100, .mma_sync_share = 0.3),
};
#undef ROW

/* None measured here. Attention after FlashAttention-2, which is made of mma.sync too: 50 to 73 % of an A100 and 35 %
 * of an H100 on long contexts with wide heads (Dao 2023; Shah et al. 2024), about half of that at a context of 1024 and
 * heads of 64. The rest is what cuBLAS and streaming kernels commonly reach. */
const CostAssumptions cost_assumptions = {
    .product = 0.75,
    .unaligned = 0.5,
    .symmetric = 0.65,
    .attention = 0.4,
    .bandwidth = 0.85,
    .host_bandwidth = 0.8,
    .launch_seconds = 3e-6,
    .sync_seconds = 10e-6,
    .small_tile = 0.6,
    .slab = 1024,
};

#pragma GCC diagnostic ignored "-Wunused-parameter" /* a slot's type is given: not every argument costs */

enum { LARGE_TILE = 128, SMALL_TILE = 64 };

typedef struct {
    const Gpu *gpu;
    CostRow rows[COST_ROWS];
} Ledger;

/* ---- counting --------------------------------------------------------------------------------------------------- */

/* Of a kernel, or of several of which one has all the products: products and memory traffic overlap within. */
typedef struct {
    double flops, bytes;
    DType dtype;  /* of the products' operands: which peak holds */
    double share; /* of that peak that is expected; 0: no products */
    int launches;
} Work;

static Ledger *ledger_of(const Backend *be) {
    return be->state;
}

static double peak(const Gpu *gpu, DType dtype) {
    return dtype == DTYPE_BF16 ? gpu->bf16_flops : gpu->fp32_flops;
}

static void add(CostRow *row, CostRow call) {
    row->calls += call.calls;
    row->launches += call.launches;
    row->flops += call.flops;
    row->bytes += call.bytes;
    row->bound += call.bound;
    row->bound_compute += call.bound_compute;
    row->expected += call.expected;
    row->expected_compute += call.expected_compute;
    row->wait += call.wait;
}

static void count_kernels(Backend *be, OpId op, Work work) {
    const Gpu *gpu = ledger_of(be)->gpu;
    const double compute = work.flops / peak(gpu, work.dtype), traffic = work.bytes / gpu->bandwidth;
    const double likely_compute = work.flops > 0 ? compute / work.share : 0;
    const double likely_traffic = traffic / cost_assumptions.bandwidth;
    const double wait = work.launches * cost_assumptions.launch_seconds;
    add(&ledger_of(be)->rows[op], (CostRow){.launches = work.launches,
                                            .flops = work.flops,
                                            .bytes = work.bytes,
                                            .bound = fmax(compute, traffic),
                                            .bound_compute = compute > traffic ? compute : 0,
                                            .expected = fmax(likely_compute, likely_traffic) + wait,
                                            .expected_compute = likely_compute > likely_traffic ? likely_compute : 0,
                                            .wait = wait});
}

static void count(Backend *be, OpId op, Work work) {
    count_kernels(be, op, work);
    ledger_of(be)->rows[op].calls++;
}

/* Of a tensor's elements; 0 of one that is absent. */
static double bytes(Tensor t) {
    return tensor_present(t) ? (double)tensor_bytes(t) : 0;
}

/* An op without products. */
static void count_traffic(Backend *be, OpId op, double moved, int launches) {
    count(be, op, (Work){.bytes = moved, .launches = launches});
}

/* One more kernel of an op that has been counted. */
static void count_pass(Backend *be, OpId op, double moved) {
    count_kernels(be, op, (Work){.bytes = moved, .launches = 1});
}

static double ceil_divide(int64_t a, int64_t b) {
    return (double)((a + b - 1) / b);
}

/* Share of the multiprocessors at work when equal pieces are dealt out in waves. */
static double wave_share(const Backend *be, double pieces) {
    const double places = ledger_of(be)->gpu->multiprocessors;
    return pieces > 0 ? pieces / (ceil(pieces / places) * places) : 1;
}

/* Of the peak, by the instruction that our own kernels use. */
static double mma_sync_share(const Backend *be, DType dtype) {
    return dtype == DTYPE_BF16 ? ledger_of(be)->gpu->mma_sync_share : 1;
}

/* Of `tiles` tiles of a size; small ones use each number that they load half as often. */
static double tile_share(const Backend *be, double tiles, int64_t tile) {
    return wave_share(be, tiles) * (tile == SMALL_TILE ? cost_assumptions.small_tile : 1);
}

static double tile_share_of_product(const Backend *be, double batch, int64_t n, int64_t m, int64_t k, int64_t tile) {
    const double slabs = k > cost_assumptions.slab ? (double)(k / cost_assumptions.slab) : 1;
    return tile_share(be, batch * ceil_divide(n, tile) * ceil_divide(m, tile) * slabs, tile);
}

/* Vector loads and TMA want rows of whole 16 bytes. A transposed view's rows are its columns. */
static bool is_aligned(Tensor t) {
    for (int i = 0; i < t.ndim; i++)
        if (t.stride[i] != 1 && t.shape[i] > 1 && t.stride[i] * dtype_size(t.dtype) % 16) return false;
    return true;
}

/* ---- matrix products -------------------------------------------------------------------------------------------- */

/* A product of n x k by k x m in cuBLASLt, `batch` times: 2 n m k FLOPs each. */
static Work product(const Backend *be, double batch, int64_t n, int64_t m, int64_t k, Tensor a, Tensor b, Tensor out) {
    const bool aligned = is_aligned(a) && is_aligned(b) && is_aligned(out);
    return (Work){.flops = batch * 2.0 * (double)n * (double)m * (double)k,
                  .bytes = bytes(a) + bytes(b) + bytes(out),
                  .dtype = a.dtype,
                  .share = cost_assumptions.product * (aligned ? 1 : cost_assumptions.unaligned) *
                           fmax(tile_share_of_product(be, batch, n, m, k, LARGE_TILE),
                                tile_share_of_product(be, batch, n, m, k, SMALL_TILE)),
                  .launches = 1};
}

static double batches(Tensor t) {
    double batch = 1;
    for (int i = 0; i < t.ndim - 2; i++) batch *= (double)t.shape[i];
    return batch;
}

static void count_matmul(Backend *be, Tensor out, Tensor a, Tensor b, Tensor addend, MatmulScale s) {
    const int64_t n = out.shape[out.ndim - 2], m = out.shape[out.ndim - 1], k = a.shape[a.ndim - 1];
    Work work = product(be, batches(out), n, m, k, a, b, out);
    if (s.beta != 0) work.bytes += bytes(addend);
    count(be, OP_MATMUL, work);
}

/* The triangle of t (t + 1) / 2 tiles on and below the diagonal, with whole tiles at the edges. */
static Work triangle(const Backend *be, double matrices, int64_t n, int64_t k, int64_t tile) {
    const double side = ceil_divide(n, tile), tiles = matrices * side * (side + 1) / 2;
    const double share = cost_assumptions.symmetric * mma_sync_share(be, DTYPE_BF16) * tile_share(be, tiles, tile);
    return (Work){.flops = tiles * (double)(tile * tile) * 2.0 * (double)k, .share = share};
}

/* The kernel takes the better size of tiles: many small matrices waste less of small ones, few fill the device with
 * them. In fp32 it is a whole product. */
static void count_matmul_symmetric(Backend *be, Tensor out, Tensor a, Tensor addend, MatmulScale s) {
    const int64_t n = out.shape[out.ndim - 1], k = a.shape[a.ndim - 1];
    const Work large = triangle(be, batches(out), n, k, LARGE_TILE),
               small = triangle(be, batches(out), n, k, SMALL_TILE);
    const Work better = large.flops / large.share < small.flops / small.share ? large : small;
    Work work = product(be, batches(out), n, n, k, a, a, out);
    work.bytes -= bytes(a);
    if (a.dtype == DTYPE_BF16) work.flops = better.flops, work.share = better.share;
    if (s.beta != 0) work.bytes += bytes(addend);
    count(be, OP_MATMUL_SYMMETRIC, work);
}

/* An epilogue takes a bias of the matrices' dtype: a launch of its own rounds it. */
static Work product_with_bias(const Backend *be, Tensor out, Tensor x, Tensor w, Tensor bias) {
    Work work = product(be, 1, x.shape[0], w.shape[0], x.shape[1], x, w, out);
    work.bytes += bytes(bias);
    if (tensor_present(bias) && x.dtype != DTYPE_F32) work.launches++;
    return work;
}

static void count_linear(Backend *be, Tensor out, Tensor x, Tensor w, Tensor bias, Tensor addend) {
    Work work = product_with_bias(be, out, x, w, bias);
    work.bytes += bytes(addend);
    count(be, OP_LINEAR, work);
}

static void count_linear_grad_input(Backend *be, Tensor dx, Tensor dout, Tensor w) {
    count(be, OP_LINEAR_GRAD_INPUT, product(be, 1, dout.shape[0], w.shape[1], w.shape[0], dout, w, dx));
}

/* GRADIENT_ADD reads what is there. The epilogue sums the bias gradient, and a launch of its own adds it. */
static void count_linear_grad_weight(Backend *be, Tensor dw, Tensor dbias, Tensor dout, Tensor x, GradientMode mode) {
    Work work = product(be, 1, dw.shape[0], dw.shape[1], x.shape[0], dout, x, dw);
    work.bytes += bytes(dbias) + (mode == GRADIENT_ADD ? bytes(dw) + bytes(dbias) : 0);
    if (tensor_present(dbias) && mode == GRADIENT_ADD) work.launches++;
    count(be, OP_LINEAR_GRAD_WEIGHT, work);
}

/* Gelu moves `fused` bytes in a product's epilogue. Before sm_90 that is slower than a pass of its own, and not used.
 */
static void count_with_gelu(Backend *be, OpId op, Work work, double fused, double alone) {
    const bool fuses = ledger_of(be)->gpu->capability >= 90;
    if (fuses) work.bytes += fused;
    count(be, op, work);
    if (!fuses) count_pass(be, op, alone);
}

static void count_linear_gelu(Backend *be, Tensor out, Tensor pre, Tensor x, Tensor w, Tensor bias) {
    count_with_gelu(be, OP_LINEAR_GELU, product_with_bias(be, pre, x, w, bias), bytes(out), bytes(pre) + bytes(out));
}

static void count_linear_gelu_grad(Backend *be, Tensor dpre, Tensor dout, Tensor w, Tensor pre) {
    const Work work = product(be, 1, dout.shape[0], w.shape[1], w.shape[0], dout, w, dpre);
    count_with_gelu(be, OP_LINEAR_GELU_GRAD, work, bytes(pre), 2 * bytes(dpre) + bytes(pre));
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

enum { ATTENTION_ROWS = 128, WIDE_HEAD = 128 };

/* Of all pairs that are seen, in all heads. A product of width D takes 2 D FLOPs a pair. */
static Work attention_products(const Backend *be, Tensor q, int64_t width) {
    const double heads = (double)(q.shape[0] * q.shape[2]);
    return (Work){.flops = heads * seen_pairs(q.shape[1]) * 2 * (double)width,
                  .dtype = q.dtype,
                  .share = cost_assumptions.attention * mma_sync_share(be, q.dtype) *
                           wave_share(be, heads * ceil_divide(q.shape[1], ATTENTION_ROWS))};
}

/* Two products, q kᵀ and p v. Blocks raise the heads' maxima by themselves. */
static void count_attention(Backend *be, Tensor out, Tensor lse, Tensor max_logit, Tensor max_abs, Tensor q, Tensor k,
                            Tensor v, AttentionParams p) {
    Work work = attention_products(be, q, q.shape[3] + v.shape[3]);
    work.bytes = bytes(q) + bytes(k) + bytes(v) + bytes(out) + bytes(lse) + 2 * (bytes(max_logit) + bytes(max_abs));
    work.launches = 1;
    count(be, OP_ATTENTION, work);
}

/* Three kernels: delta, the rows' sums of dout * out; dk and dv by tiles of keys, from q kᵀ, dout vᵀ, pᵀ dout and dsᵀ
 * q; dq by tiles of queries, from q kᵀ, dout vᵀ and ds k. Making q kᵀ and dout vᵀ twice, 7 products instead of 5, is
 * the price of no two blocks adding to one gradient. Of wide heads dk and dv come one after the other: q kᵀ once more.
 */
static void count_attention_grad(Backend *be, Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse,
                                 Tensor q, Tensor k, Tensor v, AttentionParams p) {
    const int64_t D = q.shape[3], E = v.shape[3];
    const bool wide = D > WIDE_HEAD || E > WIDE_HEAD;
    const double inputs = bytes(q) + bytes(k) + bytes(v) + bytes(dout) + 2 * bytes(lse);
    Work work = attention_products(be, q, 4 * D + 3 * E + (wide ? D : 0));
    work.bytes =
        bytes(dout) + bytes(out) + 3 * bytes(lse) + (wide ? 3 : 2) * inputs + bytes(dq) + bytes(dk) + bytes(dv);
    work.launches = wide ? 4 : 3;
    count(be, OP_ATTENTION_GRAD, work);
}

/* q kᵀ once more, in fp32 whatever the tensors' type; each block leaves its peaks and count, which a second kernel
 * compares. */
static void count_logit_census(Backend *be, Tensor peak, Tensor place, Tensor above, Tensor q, Tensor k,
                               CensusParams p) {
    enum { CENSUS_ROWS = 16, CENSUS_RECORD = 32 };
    const double blocks = (double)(q.shape[0] * q.shape[2]) * ceil_divide(q.shape[1], CENSUS_ROWS);
    Work work = attention_products(be, q, q.shape[3]);
    work.dtype = DTYPE_F32;
    work.share = cost_assumptions.attention * wave_share(be, blocks);
    work.bytes = bytes(q) + bytes(k) + 2 * (bytes(peak) + bytes(place) + bytes(above)) + 2 * CENSUS_RECORD * blocks;
    work.launches = 2;
    count(be, OP_LOGIT_CENSUS, work);
}

/* ---- memory traffic --------------------------------------------------------------------------------------------- */

/* Ops without products: their kernels, and what these move. */
#define TRAFFIC(ID, slot, launches, moved, ...)                                                                        \
    static void count_##slot(Backend *be, __VA_ARGS__) {                                                               \
        count_traffic(be, OP_##ID, moved, launches);                                                                   \
    }

TRAFFIC(FILL, fill, 1, bytes(x), Tensor x, float value)

/* What a stride of 0 repeats is read once. */
static void count_copy(Backend *be, Tensor dst, Tensor src) {
    for (int i = 0; i < src.ndim; i++)
        if (src.stride[i] == 0) src.shape[i] = 1;
    count_traffic(be, OP_COPY, bytes(src) + bytes(dst), 1);
}

TRAFFIC(SCALE, scale, 1, 2 * bytes(x), Tensor x, float factor)

/* A row stays in registers between its mean, its variance and its output. */
TRAFFIC(LAYERNORM, layernorm, 1, bytes(x) + bytes(out) + bytes(mean) + bytes(rstd) + bytes(w) + bytes(bias), Tensor out,
        Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor bias, float eps)

/* dx is read and written. The second kernel folds the blocks' partial sums of dw and dbias. */
TRAFFIC(LAYERNORM_GRAD, layernorm_grad, 2,
        2 * (bytes(dx) + bytes(dw) + bytes(dbias)) + bytes(dout) + bytes(x) + bytes(mean) + bytes(rstd) + bytes(w),
        Tensor dx, Tensor dw, Tensor dbias, Tensor dout, Tensor x, Tensor mean, Tensor rstd, Tensor w)
TRAFFIC(RMSNORM, rmsnorm, 1, bytes(x) + bytes(out) + bytes(rstd) + bytes(w), Tensor out, Tensor rstd, Tensor x,
        Tensor w, float eps)
TRAFFIC(RMSNORM_GRAD, rmsnorm_grad, 2, 2 * bytes(dx) + bytes(dout) + bytes(x) + bytes(rstd) + bytes(w) + 2 * bytes(dw),
        Tensor dx, Tensor dw, Tensor dout, Tensor x, Tensor rstd, Tensor w)

/* Partial maxima, then theirs. */
TRAFFIC(MAX_NORM, max_norm, 2, bytes(x) + 2 * bytes(max), Tensor max, Tensor x)

/* A row of wte for each token; wpe once. */
static void count_embed(Backend *be, Tensor out, Tensor tokens, Tensor wte, Tensor wpe) {
    const double positions = tensor_present(wpe) ? bytes(out) / (double)tokens.shape[0] : 0;
    count_traffic(be, OP_EMBED, bytes(tokens) + 2 * bytes(out) + positions, 1);
}

/* Places are sorted by token, 8 bits at a time in three kernels; then each token's rows of dout are summed in two. Rows
 * of dwte that some token has are read and written, N of them at most. dwpe sums over the batch. */
static void count_embed_grad(Backend *be, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens) {
    const double row = (double)dwte.shape[1] * 4, places = (double)tensor_numel(tokens);
    const int64_t largest = dwte.shape[0] - 1;
    const int digits = largest >> 16 ? 3 : largest >> 8 ? 2 : 1;
    const double sorting = digits * 5 * bytes(tokens), rows = fmin((double)dwte.shape[0], places);
    count_traffic(be, OP_EMBED_GRAD, sorting + bytes(dout) + 2 * rows * row, 3 * digits + 2);
    if (tensor_present(dwpe)) count_pass(be, OP_EMBED_GRAD, bytes(dout) + 2 * (double)tokens.shape[1] * row);
}

TRAFFIC(ROPE, rope, 1, 2 * bytes(x) + bytes(table), Tensor x, Tensor table)
TRAFFIC(ROPE_GRAD, rope_grad, 1, 2 * bytes(dx) + bytes(table), Tensor dx, Tensor table)
TRAFFIC(SUM_HEADS, sum_heads, 1, bytes(out) + bytes(x), Tensor out, Tensor x)
TRAFFIC(GELU, gelu, 1, bytes(out) + bytes(x), Tensor out, Tensor x)
TRAFFIC(GELU_GRAD, gelu_grad, 1, bytes(dx) + bytes(dout) + bytes(x), Tensor dx, Tensor dout, Tensor x)
TRAFFIC(SWIGLU, swiglu, 1, bytes(out) + bytes(x), Tensor out, Tensor x)
TRAFFIC(SWIGLU_GRAD, swiglu_grad, 1, bytes(dx) + bytes(dout) + bytes(x), Tensor dx, Tensor dout, Tensor x)

/* Maximum and sum in one pass over a row. */
TRAFFIC(CROSS_ENTROPY, cross_entropy, 1, bytes(logits) + bytes(targets) + bytes(loss), Tensor loss, Tensor logits,
        Tensor targets)

/* The same pass, and a second one that reads the logits again and writes their gradient over them. */
TRAFFIC(CROSS_ENTROPY_GRAD, cross_entropy_grad, 1, 3 * bytes(logits) + bytes(targets) + bytes(loss), Tensor loss,
        Tensor logits, Tensor targets, float scale)

/* A fixed number of partial sums, then their sum. */
TRAFFIC(SUM, sum, 2, bytes(x) + 2 * bytes(total), Tensor total, Tensor x)
TRAFFIC(SUM_SQUARES, sum_squares, 2, bytes(x) + 2 * bytes(total), Tensor total, Tensor x)
TRAFFIC(ADAMW, adamw, 1, 2 * (bytes(w) + bytes(m) + bytes(v)) + bytes(g) + bytes(w_copy), Tensor w, Tensor w_copy,
        Tensor m, Tensor v, Tensor g, AdamwStep s)
TRAFFIC(MOMENTUM, momentum, 1, 2 * bytes(m) + bytes(g) + bytes(u), Tensor u, Tensor m, Tensor g, MomentumStep s)

/* A warp sums a row, and finds it in cache for the second pass. */
TRAFFIC(ADAPT, adapt, 1, bytes(x) + bytes(out) + 2 * bytes(v), Tensor out, Tensor v, Tensor x, AdaptStep s)

/* A pass for the norm, in partial sums that a second kernel adds up; one that divides. */
TRAFFIC(NORMALIZE, normalize, 3, 2 * bytes(x) + bytes(out), Tensor out, Tensor x, float eps)
TRAFFIC(APPLY_UPDATE, apply_update, 1, 2 * bytes(w) + bytes(w_copy) + bytes(update), Tensor w, Tensor w_copy,
        Tensor update, UpdateStep s)

/* ---- memory and host -------------------------------------------------------------------------------------------- */

/* Addresses alone: a page that is touched ends the program. */
static void *reserve(Backend *be, int64_t size) {
    void *memory =
        mmap(NULL, size > 0 ? (size_t)size : 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void unreserve(Backend *be, void *memory, int64_t size) {
    munmap(memory, size > 0 ? (size_t)size : 1);
}

static void count_transfer(Backend *be, double moved, double wait) {
    const double seconds = moved / ledger_of(be)->gpu->host_bandwidth;
    add(&ledger_of(be)->rows[COST_TRANSFERS], (CostRow){.calls = 1,
                                                        .bytes = moved,
                                                        .bound = seconds,
                                                        .expected = seconds / cost_assumptions.host_bandwidth + wait,
                                                        .wait = wait});
}

static void count_to_host(Backend *be, void *host, Tensor src) {
    memset(host, 0, (size_t)tensor_bytes(src)); /* a loss and a gradient that a step accepts */
    count_transfer(be, bytes(src), cost_assumptions.sync_seconds);
}

/* The host does not wait for it. */
static void count_to_host_later(Backend *be, void *host, Tensor src) {
    memset(host, 0, (size_t)tensor_bytes(src));
    count_transfer(be, bytes(src), cost_assumptions.launch_seconds);
}

static void count_from_host(Backend *be, Tensor dst, const void *host) {
    count_transfer(be, bytes(dst), cost_assumptions.launch_seconds);
}

static Status sync_nothing(Backend *be) {
    return status_ok();
}

static void close_ledger(Backend *be) {
    free(be->state);
}

/* ---- the backend ------------------------------------------------------------------------------------------------ */

static const BackendOps counting_ops = {
#define X(ID, slot, need) .slot = count_##slot,
    OP_LIST(X)
#undef X
        .alloc = reserve,
    .free = unreserve,
    .to_host = count_to_host,
    .to_host_later = count_to_host_later,
    .from_host = count_from_host,
    .sync = sync_nothing,
    .close = close_ledger,
};

Status cost_backend_open(Backend *be, const Gpu *gpu, const char *precision, ScratchBytes *scratch_bytes) {
    Ledger *ledger = calloc(1, sizeof *ledger);
    if (!ledger) return NO_MEMORY("no memory for the costs of %d ops", OP_COUNT);
    ledger->gpu = gpu;
    *be = (Backend){.name = "cuda",
                    .compute_dtype = strcmp(precision, "fp32") ? DTYPE_BF16 : DTYPE_F32,
                    .ops = counting_ops,
                    .pieces = device_pieces,
                    .state = ledger,
                    .fault_countdown = -1};
    be->ops.scratch_bytes = scratch_bytes;
    snprintf(be->description, sizeof be->description, "%s, predicted: nothing is computed", gpu->form);
    Status status = backend_check_slots(be);
    if (status.code) backend_close(be);
    return status;
}

const Gpu *cost_gpu(const Backend *be) {
    return ledger_of(be)->gpu;
}

const CostRow *cost_rows(const Backend *be) {
    return ledger_of(be)->rows;
}

CostRow cost_total(const CostRow *rows) {
    CostRow total = {0};
    for (int i = 0; i < COST_ROWS; i++) add(&total, rows[i]);
    return total;
}

void cost_reset(Backend *be) {
    memset(ledger_of(be)->rows, 0, sizeof ledger_of(be)->rows);
}

const char *cost_row_name(int row) {
    return row < OP_COUNT ? op_names[row] : "host copies";
}
