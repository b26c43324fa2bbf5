/* LayerNorm and RMSNorm, one kernel for both: RMSNorm is LayerNorm without a mean and without a bias.
 *
 * LANES threads share a row: a quarter of a warp for the short rows of qk-norm, one warp, four, or a block for the
 * longest. A row is read once. Each thread keeps its part in registers, up to PACKS packs of N elements, from the first
 * pass (statistics) to the last (output). Longer rows are cut into chunks, of which the last one stays: passes go over
 * the chunks to and fro, so that each begins with the chunk that the one before has ended with.
 *
 *      chunk 0                                                               chunk 1
 *      | pack 0: lane 0, lane 1, ... | pack 1: lane 0, ... | ... PACKS - 1 | ...
 *
 * Gradients of w and bias are sums over all rows. Each group of LANES threads adds its rows up in a row of shared
 * memory, every column of which belongs to one thread, so that no barrier is needed until the block adds its groups and
 * leaves one row of partial sums in scratch. A second kernel adds these to dw and dbias. The number of blocks depends
 * on the number of rows only, and so the result does not depend on the device:
 *
 *      scratch    [block][dw 0 .. C-1 | dbias 0 .. C-1]
 */
#include <algorithm>

#include "cuda/device.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int FORWARD_PACKS = 4, BACKWARD_PACKS = 2; /* of one tensor, and of three: all in registers */

enum class Norm { LAYER, RMS };

/* ---- rows ------------------------------------------------------------------------------------------------------- */

/* Rows of C elements: of a (N,C) tensor, or of (N,H,C) with H rows in each of N groups. */
template <class T> struct Rows {
    T *data;
    int64_t group_stride, stride;
    int per_group;

    __device__ T *operator[](int row) const {
        if (per_group == 1) return data + row * group_stride;
        return data + row / per_group * group_stride + row % per_group * stride;
    }
};

template <class T> Rows<T> rows_of(Tensor x) {
    if (x.ndim == 2) return {data_of<T>(x), x.stride[0], 0, 1};
    bool evenly_spaced = x.stride[0] == x.shape[1] * x.stride[1];
    if (evenly_spaced) return {data_of<T>(x), x.stride[1], 0, 1};
    return {data_of<T>(x), x.stride[0], x.stride[1], int_of(x.shape[1])};
}

/* What a thread holds of a row: its packs of one chunk. */
template <class T, int N, int LANES, int PACKS> struct Held {
    static constexpr int CHUNK = PACKS * LANES * N;
    T *row;
    int columns, chunk = -1;
    PackedRegisters<T, N> pack[PACKS];

    __device__ Held(T *start, int count) : row(start), columns(count) {}

    __device__ void load(int c) {
        if (c == chunk) return;
        chunk = c;
        each([&](int p, int i) { pack[p] = PackedRegisters<T, N>(row + i); });
    }

    /* f(p, i) for each pack p of the chunk that exists, with the column i where it begins. */
    template <class F> __device__ void each(F f) const {
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int i = chunk * CHUNK + (p * LANES + static_cast<int>(threadIdx.x)) * N;
            if (i < columns) f(p, i);
        }
    }

    __device__ float at(int p, int k) const {
        return pack[p][k];
    }
};

/* Over the LANES threads of a row. All threads of the block take part. */
template <int LANES> CU_DEVICE float row_sum(float value) {
    if constexpr (LANES <= WARP) {
        return warp_sum<LANES>(value);
    } else {
        constexpr int WARPS = LANES / WARP;
        CU_SHARED(float, of_warp, [THREADS / WARP]);
        int warp = thread_in_block() / WARP;
        value = warp_sum(value);
        if (threadIdx.x % WARP == 0) of_warp[warp] = value;
        __syncthreads();
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += of_warp[warp / WARPS * WARPS + w];
        __syncthreads(); /* the next sum writes to of_warp again */
        return sum;
    }
}

/* f(LANES) as std::integral_constant: enough threads to hold a row of so many packs, if a block is enough. */
template <int PACKS, class F> void by_lanes(int64_t packs, F f) {
    if (packs <= 8 * 2)
        f(std::integral_constant<int, 8>());
    else if (packs <= WARP * PACKS)
        f(std::integral_constant<int, WARP>());
    else if (packs <= 4 * WARP * PACKS)
        f(std::integral_constant<int, 4 * WARP>());
    else
        f(std::integral_constant<int, THREADS>());
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

template <class T> struct Forward {
    Rows<T> out, x;
    float *mean, *rstd;    /* mean: LayerNorm's only */
    const float *w, *bias; /* bias may be NULL */
    int rows, columns;
    float per_column; /* 1 / columns */
    float eps;
};

template <Norm NORM, class T, int N, int LANES>
__global__ void __launch_bounds__(THREADS, 4) norm_kernel(Forward<T> a) {
    int row = static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y);
    bool exists = row < a.rows; /* if not: takes part in the sums, with no columns */
    Held<T, N, LANES, FORWARD_PACKS> x(a.x[row], exists ? a.columns : 0);
    int chunks = static_cast<int>(ceil_div(x.columns, x.CHUNK));
    float mean = 0, sum = 0, squares = 0;
    if (NORM == Norm::LAYER) {
        for (int c = 0; c < chunks; c++) {
            x.load(c);
            x.each([&](int p, int) {
                for (int k = 0; k < N; k++) sum += x.at(p, k);
            });
        }
        mean = row_sum<LANES>(sum) * a.per_column;
    }
    for (int c = chunks - 1; c >= 0; c--) {
        x.load(c);
        x.each([&](int p, int) {
            for (int k = 0; k < N; k++) {
                float d = x.at(p, k) - mean; /* a pass of its own: E[x²] - mean² would cancel */
                squares += d * d;
            }
        });
    }
    float rstd = rsqrtf(row_sum<LANES>(squares) * a.per_column + a.eps);
    for (int c = 0; c < chunks; c++) {
        x.load(c);
        x.each([&](int p, int i) {
            float w[N], bias[N] = {}, y[N];
            load_floats(w, a.w + i);
            if (a.bias) load_floats(bias, a.bias + i);
            for (int k = 0; k < N; k++) y[k] = (x.at(p, k) - mean) * rstd * w[k] + bias[k];
            store_floats(a.out[row] + i, y);
        });
    }
    if (threadIdx.x != 0 || !exists) return;
    if (NORM == Norm::LAYER) a.mean[row] = mean;
    a.rstd[row] = rstd;
}

template <Norm NORM>
void launch_norm(Backend *be, const char *name, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor bias,
                 float eps) {
    int64_t columns = x.shape[x.ndim - 1], rows = tensor_numel(rstd);
    bool aligned = rows_are_aligned(out) && rows_are_aligned(x) && rows_are_aligned(w) && rows_are_aligned(bias);
    by_dtype(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        Forward<T> a = {rows_of<T>(out),
                        rows_of<T>(x),
                        data_of<float>(mean),
                        data_of<float>(rstd),
                        data_of<float>(w),
                        data_of<float>(bias),
                        int_of(rows),
                        int_of(columns),
                        1.0f / static_cast<float>(columns),
                        eps};
        by_access<T>(aligned, [&](auto n) {
            by_lanes<FORWARD_PACKS>(ceil_div(columns, n), [&](auto lanes) {
                dim3 block(lanes, THREADS / lanes), grid(int_of(ceil_div(rows, block.y)));
                cuda_launch(be, name, norm_kernel<NORM, T, decltype(n)::value, decltype(lanes)::value>, grid, block, 0,
                            a);
            });
        });
    });
}

void layernorm(Backend *be, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor bias, float eps) {
    launch_norm<Norm::LAYER>(be, "layernorm", out, mean, rstd, x, w, bias, eps);
}

void rmsnorm(Backend *be, Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) {
    launch_norm<Norm::RMS>(be, "rmsnorm", out, tensor_none(), rstd, x, w, tensor_none(), eps);
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

template <class T> struct Backward {
    Rows<T> dx, dout, x;
    const float *mean, *rstd, *w; /* mean: LayerNorm's only */
    float *partials;              /* [block][width] */
    int rows, columns;
    float per_column; /* 1 / columns */
    int width;        /* columns of dw, and behind them those of dbias, if it is wanted */
    bool in_shared;   /* what the block sums; if not, a block is one group */
};

/* With xhat = (x - mean) rstd and g = dout w:
 *
 *      dx += rstd (g - mean(g) - xhat mean(g xhat)),    RMSNorm without mean(g)
 *      dw += dout xhat,  dbias += dout                  over the rows of this block
 */
template <Norm NORM, class T, int N, int LANES>
CU_DEVICE void norm_grad_row(const Backward<T> &a, int row, float *sum_w, float *sum_bias) {
    bool exists = row < a.rows; /* if not: takes part in the sums, with no columns */
    using Row = Held<T, N, LANES, BACKWARD_PACKS>;
    Row x(a.x[row], exists ? a.columns : 0), dout(a.dout[row], x.columns), dx(a.dx[row], x.columns);
    int chunks = static_cast<int>(ceil_div(x.columns, x.CHUNK));
    float mean = NORM == Norm::LAYER && exists ? a.mean[row] : 0.0f, rstd = exists ? a.rstd[row] : 0.0f;
    float mean_g = 0, mean_gx = 0;
    for (int c = 0; c < chunks; c++) {
        x.load(c);
        dout.load(c);
        x.each([&](int p, int i) {
            float w[N], d[N], dw[N];
            load_floats(w, a.w + i);
            for (int k = 0; k < N; k++) {
                float xhat = (x.at(p, k) - mean) * rstd;
                d[k] = dout.at(p, k);
                dw[k] = d[k] * xhat;
                mean_g += d[k] * w[k];
                mean_gx += dw[k] * w[k];
            }
            add_floats(sum_w + i, dw);
            if (sum_bias) add_floats(sum_bias + i, d);
        });
    }
    dx.load(chunks - 1); /* on its way while the sums are made */
    mean_g = NORM == Norm::LAYER ? row_sum<LANES>(mean_g) * a.per_column : 0.0f;
    mean_gx = row_sum<LANES>(mean_gx) * a.per_column;
    for (int c = chunks - 1; c >= 0; c--) {
        x.load(c);
        dout.load(c);
        dx.load(c);
        x.each([&](int p, int i) {
            float w[N], sum[N];
            load_floats(w, a.w + i);
            for (int k = 0; k < N; k++) {
                float xhat = (x.at(p, k) - mean) * rstd;
                sum[k] = dx.at(p, k) + rstd * (dout.at(p, k) * w[k] - mean_g - xhat * mean_gx);
            }
            store_floats(dx.row + i, sum);
        });
    }
}

/* The block's sums, [group][width]: in shared memory, or, where a row is too long, in the block's row of partials. */
template <class T> CU_DEVICE float *sums_of_block(const Backward<T> &a, float *partial) {
    if (!a.in_shared) return partial;
    CU_SHARED_DYN(float, shared);
    return shared;
}

template <Norm NORM, class T, int N, int LANES>
__global__ void __launch_bounds__(THREADS, 2) norm_grad_kernel(Backward<T> a) {
    constexpr int GROUPS = THREADS / LANES;
    float *partial = a.partials + static_cast<int64_t>(blockIdx.x) * a.width;
    float *sums = sums_of_block(a, partial);
    for (int i = thread_in_block(); i < GROUPS * a.width; i += THREADS) sums[i] = 0;
    __syncthreads();
    float *sum_w = sums + static_cast<int>(threadIdx.y) * a.width;
    float *sum_bias = a.width > a.columns ? sum_w + a.columns : nullptr;
    int row = static_cast<int>(blockIdx.x) * GROUPS + static_cast<int>(threadIdx.y);
    int rounds = static_cast<int>(ceil_div(a.rows, GROUPS * static_cast<int>(gridDim.x)));
    for (int round = 0; round < rounds; round++, row += GROUPS * static_cast<int>(gridDim.x))
        norm_grad_row<NORM, T, N, LANES>(a, row, sum_w, sum_bias);
    if (!a.in_shared) return;
    __syncthreads();
    for (int i = thread_in_block(); i < a.width; i += THREADS) {
        float sum = 0;
        for (int group = 0; group < GROUPS; group++) sum += sums[group * a.width + i];
        partial[i] = sum;
    }
}

constexpr int ADD_COLUMNS = 32, ADD_PARTS = 16;

/* dw += and dbias += the sums over blocks. Each thread adds every ADD_PARTS-th partial sum of a column. */
__global__ void __launch_bounds__(ADD_COLUMNS *ADD_PARTS)
    add_partials_kernel(float *dw, float *dbias, const float *partials, int blocks, int columns, int width) {
    CU_SHARED(float, part, [ADD_PARTS][ADD_COLUMNS]);
    int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
    int i = static_cast<int>(blockIdx.x) * ADD_COLUMNS + x;
    float sum = 0;
    if (i < width)
        for (int block = y; block < blocks; block += ADD_PARTS)
            sum += partials[static_cast<int64_t>(block) * width + i];
    part[y][x] = sum;
    __syncthreads();
    if (y > 0 || i >= width) return;
    for (int other = 1; other < ADD_PARTS; other++) sum += part[other][x];
    float *to = i < columns ? dw + i : dbias + (i - columns);
    *to += sum;
}

/* As many blocks as a large GPU holds at a time, and less for few rows. */
constexpr int64_t GRAD_BLOCKS = 512;

template <Norm NORM>
void launch_norm_grad(Backend *be, const char *name, Tensor dx, Tensor dw, Tensor dbias, Tensor dout, Tensor x,
                      Tensor mean, Tensor rstd, Tensor w) {
    int64_t columns = x.shape[x.ndim - 1], rows = tensor_numel(rstd);
    int64_t width = tensor_present(dbias) ? 2 * columns : columns;
    bool aligned = rows_are_aligned(dx) && rows_are_aligned(dout) && rows_are_aligned(x) && rows_are_aligned(w);
    float *partials = static_cast<float *>(cuda_scratch(be, GRAD_BLOCKS * width * sizeof(float)));
    int blocks = 0;
    by_dtype(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        Backward<T> a = {rows_of<T>(dx),
                         rows_of<T>(dout),
                         rows_of<T>(x),
                         data_of<float>(mean),
                         data_of<float>(rstd),
                         data_of<float>(w),
                         partials,
                         int_of(rows),
                         int_of(columns),
                         1.0f / static_cast<float>(columns),
                         int_of(width),
                         true};
        by_access<T>(aligned, [&](auto n) {
            by_lanes<BACKWARD_PACKS>(ceil_div(columns, n), [&](auto lanes) {
                dim3 block(lanes, THREADS / lanes);
                size_t shared = block.y * static_cast<size_t>(width) * sizeof(float);
                size_t of_row_sum = THREADS / WARP * sizeof(float);
                if (shared + of_row_sum > cuda_state(be)->shared_limit) a.in_shared = false, shared = 0;
                blocks = static_cast<int>(std::min(GRAD_BLOCKS, ceil_div(rows, block.y)));
                cuda_launch(be, name, norm_grad_kernel<NORM, T, decltype(n)::value, decltype(lanes)::value>,
                            dim3(blocks), block, shared, a);
            });
        });
    });
    cuda_launch(be, "add_partials", add_partials_kernel, dim3(int_of(ceil_div(width, ADD_COLUMNS))),
                dim3(ADD_COLUMNS, ADD_PARTS), 0, data_of<float>(dw), data_of<float>(dbias), partials, blocks,
                int_of(columns), int_of(width));
}

void layernorm_grad(Backend *be, Tensor dx, Tensor dw, Tensor dbias, Tensor dout, Tensor x, Tensor mean, Tensor rstd,
                    Tensor w) {
    launch_norm_grad<Norm::LAYER>(be, "layernorm_grad", dx, dw, dbias, dout, x, mean, rstd, w);
}

void rmsnorm_grad(Backend *be, Tensor dx, Tensor dw, Tensor dout, Tensor x, Tensor rstd, Tensor w) {
    launch_norm_grad<Norm::RMS>(be, "rmsnorm_grad", dx, dw, tensor_none(), dout, x, tensor_none(), rstd, w);
}

/* ---- the largest norm ------------------------------------------------------------------------------------------- */

/* part[block] = the largest sum of squares of a row; a warp takes a row at a time. */
template <class T, int N>
__global__ void __launch_bounds__(THREADS) max_norm_kernel(float *part, Rows<const T> x, int rows, int columns) {
    int lane = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y);
    float largest = 0;
    for (; row < rows; row += static_cast<int>(gridDim.x * blockDim.y)) {
        float squares = 0, value[N];
        for (int i = lane * N; i < columns; i += WARP * N) {
            load_floats(value, x[row] + i);
            for (int k = 0; k < N; k++) squares += value[k] * value[k];
        }
        largest = max_keeping_nan(largest, warp_sum(squares));
    }
    largest = block_max(largest);
    if (thread_in_block() == 0) part[blockIdx.x] = largest;
}

/* max[0] = the larger of itself and the root of the largest part. */
__global__ void __launch_bounds__(THREADS) max_of_parts_kernel(float *max, const float *part, int parts) {
    float largest = 0;
    for (int i = static_cast<int>(threadIdx.x); i < parts; i += THREADS) largest = max_keeping_nan(largest, part[i]);
    largest = block_max(largest);
    if (threadIdx.x == 0) *max = max_keeping_nan(*max, sqrtf(largest));
}

void max_norm(Backend *be, Tensor max, Tensor x) {
    int rows = int_of(x.shape[0]), columns = int_of(x.shape[1]);
    dim3 block(WARP, THREADS / WARP);
    int blocks = static_cast<int>(std::min(GRAD_BLOCKS, ceil_div(rows, block.y)));
    float *part = static_cast<float *>(cuda_scratch(be, GRAD_BLOCKS * static_cast<int64_t>(sizeof(float))));
    by_dtype(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        by_access<T>(rows_are_aligned(x), [&](auto n) {
            cuda_launch(be, "max_norm", max_norm_kernel<T, decltype(n)::value>, dim3(blocks), block, 0, part,
                        rows_of<const T>(x), rows, columns);
        });
    });
    cuda_launch(be, "max_of_parts", max_of_parts_kernel, dim3(1), dim3(THREADS), 0, data_of<float>(max), part, blocks);
}

} // namespace

int64_t cuda_norm_scratch_bytes(const Backend *, const OpLimits *limits) {
    return GRAD_BLOCKS * 2 * limits->width * static_cast<int64_t>(sizeof(float));
}

void cuda_fill_norm(BackendOps *ops) {
    ops->layernorm = layernorm;
    ops->layernorm_grad = layernorm_grad;
    ops->rmsnorm = rmsnorm;
    ops->rmsnorm_grad = rmsnorm_grad;
    ops->max_norm = max_norm;
}
