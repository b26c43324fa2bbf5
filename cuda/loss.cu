/* Cross entropy, one block a row, and sums of elements in fp64.
 *
 * A row of logits is read twice and written once: the first read keeps a running maximum and a running sum of
 * exponentials, which shrinks whenever the maximum grows ("online softmax", Milakov & Gimelshein 2018); the second,
 * mostly from the L2 cache, makes the gradient in place. Rows of an odd vocabulary begin anywhere:
 *
 *      | head: fewer than a pack | packs on 16-byte boundaries ...                        | tail: fewer than a pack |
 *
 * Sums add up a fixed number of parts, one block each, and then the parts. The number depends on sizes only.
 */
#include <algorithm>
#include <cfloat>

#include "cuda/sweep.cuh"

namespace {

/* ---- cross entropy ---------------------------------------------------------------------------------------------- */

constexpr int ROW_THREADS = 512;

/* f(n, i) for all elements of the row, shared out among the block's threads: for i .. i+n-1 in one call, n being that
 * of a pack in the row's middle and 1 at its ends, as std::integral_constant. */
template <class T, class F> CU_DEVICE void each_in_row(const T *row, int columns, F f) {
    constexpr int N = PACK_SIZE<T>;
    int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    int misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    int head = min((N - misaligned) % N, columns), tail = head + (columns - head) / N * N;
    if (thread < head) f(std::integral_constant<int, 1>(), thread);
    for (int i = head + thread * N; i < tail; i += threads * N) f(std::integral_constant<int, N>(), i);
    if (tail + thread < columns) f(std::integral_constant<int, 1>(), tail + thread);
}

struct Softmax {
    float max;
    float sum; /* of exp(x - max) */
};

/* A NaN may escape the maximum, but not the sum. The maximum begins at the lowest finite number: -inf - -inf is NaN. */
template <class T> CU_DEVICE Softmax softmax_of_row(const T *row, int columns) {
    float max = -FLT_MAX, sum = 0;
    each_in_row(row, columns, [&](auto n, int i) {
        constexpr int N = decltype(n)::value;
        float x[N], before = max;
        load_floats(x, row + i);
        for (int k = 0; k < N; k++) max = fmaxf(max, x[k]);
        sum *= fast_exp(before - max);
        for (int k = 0; k < N; k++) sum += fast_exp(x[k] - max);
    });
    float of_row = block_max(max);
    return {of_row, block_sum(sum * fast_exp(max - of_row))};
}

template <class T> CU_DEVICE float loss_of_row(Softmax s, const T *row, int target) {
    return logf(s.sum) + (s.max - to_float(row[target]));
}

template <class T>
__global__ void __launch_bounds__(ROW_THREADS)
    cross_entropy_kernel(float *loss, const T *logits, const int32_t *targets, int columns) {
    const T *row = logits + static_cast<int64_t>(blockIdx.x) * columns;
    int target = targets[blockIdx.x];
    Softmax s = {0, 1};
    if (target >= 0) s = softmax_of_row(row, columns);
    if (threadIdx.x == 0) loss[blockIdx.x] = target >= 0 ? loss_of_row(s, row, target) : 0.0f;
}

/* logits = factor exp(logits - max), and less by `scale` at the target: from the fp32 probability, since subtracting 1
 * from the stored one would round twice. */
template <class T> CU_DEVICE void gradient_of_row(T *row, int columns, Softmax s, int target, float scale) {
    float factor = scale / s.sum;
    each_in_row(row, columns, [&](auto n, int i) {
        constexpr int N = decltype(n)::value;
        float x[N];
        load_floats(x, row + i);
        for (int k = 0; k < N; k++) x[k] = factor * fast_exp(x[k] - s.max);
        if (i <= target && target < i + N)
            for (int k = 0; k < N; k++) x[k] -= i + k == target ? scale : 0.0f;
        store_floats(row + i, x);
    });
}

template <class T> CU_DEVICE void clear_row(T *row, int columns) {
    each_in_row(row, columns, [&](auto n, int i) {
        float zero[decltype(n)::value] = {};
        store_floats(row + i, zero);
    });
}

template <class T>
__global__ void __launch_bounds__(ROW_THREADS)
    cross_entropy_grad_kernel(float *loss, T *logits, const int32_t *targets, float scale, int columns) {
    T *row = logits + static_cast<int64_t>(blockIdx.x) * columns;
    int target = targets[blockIdx.x];
    if (target < 0) {
        if (threadIdx.x == 0) loss[blockIdx.x] = 0;
        return clear_row(row, columns);
    }
    Softmax s = softmax_of_row(row, columns);
    if (threadIdx.x == 0) loss[blockIdx.x] = loss_of_row(s, row, target);
    __syncthreads(); /* the target's logit is read before it is overwritten */
    gradient_of_row(row, columns, s, target, scale);
}

/* As many threads as a row has packs. */
dim3 row_threads(int64_t columns, int pack) {
    return dim3(static_cast<unsigned>(std::min<int64_t>(ROW_THREADS, WARP * ceil_div(columns, WARP * pack))));
}

void cross_entropy(Backend *be, Tensor loss, Tensor logits, Tensor targets) {
    int rows = int_of(logits.shape[0]), columns = int_of(logits.shape[1]);
    by_dtype(logits.dtype, [&](auto zero) {
        using T = decltype(zero);
        cuda_launch(be, "cross_entropy", cross_entropy_kernel<T>, dim3(rows), row_threads(columns, PACK_SIZE<T>), 0,
                    data_of<float>(loss), data_of<T>(logits), data_of<int32_t>(targets), columns);
    });
}

void cross_entropy_grad(Backend *be, Tensor loss, Tensor logits, Tensor targets, float scale) {
    int rows = int_of(logits.shape[0]), columns = int_of(logits.shape[1]);
    by_dtype(logits.dtype, [&](auto zero) {
        using T = decltype(zero);
        cuda_launch(be, "cross_entropy_grad", cross_entropy_grad_kernel<T>, dim3(rows),
                    row_threads(columns, PACK_SIZE<T>), 0, data_of<float>(loss), data_of<T>(logits),
                    data_of<int32_t>(targets), scale, columns);
    });
}

/* ---- sums ------------------------------------------------------------------------------------------------------- */

struct Plain {
    __device__ double operator()(double x) const { return x; }
};

struct Square {
    __device__ double operator()(double x) const { return x * x; }
};

template <int N, class F, class V> CU_DEVICE double sum_of_items(F f, Item<N, V> item) {
    double sum = 0;
    item.load();
#pragma unroll
    for (int k = 0; k < N; k++) sum += f(item.value[k]);
    return sum;
}

/* part[sum][part] of the sums over `rows` rows each. A part takes every gridDim.x-th rectangle of its sum's rows. */
template <int N, class V, class F>
__global__ void __launch_bounds__(SWEEP_THREADS) sum_kernel(double *part, SweepShape s, V view, uint32_t rows, F f) {
    uint32_t first = blockIdx.y * rows;
    int64_t wide = ceil_div(s.n, blockDim.x * N), rectangles = wide * ceil_div(rows, blockDim.y);
    double sum = 0;
    for (int64_t rectangle = blockIdx.x; rectangle < rectangles; rectangle += gridDim.x) {
        int64_t down = rows == 1 ? 0 : rectangle / wide, along = rectangle - down * wide;
        uint32_t row = static_cast<uint32_t>(down) * blockDim.y + threadIdx.y;
        int64_t i = (along * blockDim.x + threadIdx.x) * N;
        if (row >= rows) continue;
        if (i + N <= s.n)
            sum += sum_of_items<N>(f, Item<N, V>(view, sweep_row(s, first + row), i));
        else /* what is left of the row */
            for (int64_t k = i; k < s.n; k++) sum += sum_of_items<1>(f, Item<1, V>(view, sweep_row(s, first + row), k));
    }
    sum = block_sum(sum);
    if (thread_in_block() == 0) part[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

/* total[0] += the sum of the parts. */
__global__ void __launch_bounds__(SWEEP_THREADS) add_parts_kernel(float *total, const double *part, int parts) {
    double sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < parts; i += SWEEP_THREADS) sum += part[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) total[0] = static_cast<float>(static_cast<double>(total[0]) + sum);
}

/* Sums over rows of the first tensor; returns the parts of each sum. */
template <class F> int sum_rows(Backend *be, const char *name, double *part, const Merged &m, int64_t rows, F f) {
    SweepShape shape = sweep_shape(m);
    int64_t sums = rows ? shape.rows / rows : 0, parts = 0;
    CHECK(sums <= SUMS, "%lld sums at a time", static_cast<long long>(sums));
    by_dtype(m.tensor[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        by_access<T>(sweep_is_aligned(m), [&](auto n) {
            dim3 block = block_of_rows(SWEEP_THREADS, shape.n, n);
            int64_t rectangles = ceil_div(shape.n, int64_t(block.x) * n) * ceil_div(rows, block.y);
            parts = std::min(rectangles, std::max<int64_t>(1, SUM_PARTS / std::max<int64_t>(1, sums)));
            using V = View<T, Access::READ>;
            cuda_launch(be, name, sum_kernel<decltype(n)::value, V, F>,
                        dim3(static_cast<unsigned>(parts), static_cast<unsigned>(sums)), block, 0, part, shape,
                        view_of<V>(m.tensor[0]), static_cast<uint32_t>(rows), f);
        });
    });
    return static_cast<int>(parts);
}

template <class F> void sum_all(Backend *be, const char *name, Tensor total, Tensor x, F f) {
    double *part = static_cast<double *>(cuda_scratch(be, SUM_PARTS * sizeof(double)));
    Merged m = cuda_merge(1, &x);
    int parts = sum_rows(be, name, part, m, sweep_shape(m).rows, f);
    cuda_launch(be, "add_parts", add_parts_kernel, dim3(1), dim3(SWEEP_THREADS), 0, data_of<float>(total), part, parts);
}

void sum(Backend *be, Tensor total, Tensor x) {
    sum_all(be, "sum", total, x, Plain());
}

void sum_squares(Backend *be, Tensor total, Tensor x) {
    sum_all(be, "sum_squares", total, x, Square());
}

} // namespace

int cuda_sum_squares(Backend *be, double *part, const Merged &m, int64_t rows) {
    return sum_rows(be, "sum_squares", part, m, rows, Square());
}

int64_t cuda_loss_scratch_bytes(const Backend *, const OpLimits *) {
    return SUM_PARTS * static_cast<int64_t>(sizeof(double));
}

void cuda_fill_loss(BackendOps *ops) {
    ops->cross_entropy = cross_entropy;
    ops->cross_entropy_grad = cross_entropy_grad;
    ops->sum = sum;
    ops->sum_squares = sum_squares;
}
