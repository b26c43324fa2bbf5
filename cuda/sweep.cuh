/* Sweep: one pass over the same elements of several tensors, the kernel of all elementwise ops.
 *
 * An op is a functor on single elements, in fp32, and one line that says what becomes of each tensor:
 *
 *      struct Gelu { __device__ void operator()(float &out, float x) const { out = ...; } };
 *
 *      cuda_sweep(be, "gelu", Gelu(), writes<T>(out), reads<T>(x));
 *
 * Dimensions that lie one behind the other in every tensor are merged, so that contiguous tensors become one long row
 * and a view of a matrix keeps its rows. What stays is (a, b, c, n), with n contiguous; a, b, c together are the rows.
 * A thread takes N neighbouring elements of a row, and a block a rectangle:
 *
 *              x: N * threads elements of a row
 *           +-----------+-----------+----- - -
 *      y:   |  block    |  block    |               threads.x * threads.y = SWEEP_THREADS; short rows get few threads
 *      rows |  (0, 0)   |  (1, 0)   |               each, long ones all of them
 *           +-----------+-----------+----- - -
 *           |  block    |                           more rows than the grid is high are taken in turns
 *
 * An output may be an input: a thread reads all of its elements before it writes one.
 */
#pragma once

#include <utility>

#include "cuda/device.cuh"

constexpr int SWEEP_THREADS = 256, SWEEP_TENSORS = 6;

/* ---- host: what a sweep is over --------------------------------------------------------------------------------- */

/* REPEAT reads one element for a whole row: its last stride is 0. ABSENT is an optional tensor left out. */
enum class Access { READ, WRITE, UPDATE, REPEAT, ABSENT };

/* One tensor as the kernel sees it: row (a,b,c) begins at data + a stride[0] + b stride[1] + c stride[2]. */
template <class T, Access ACCESS> struct View {
    using Element = T;
    static constexpr Access access = ACCESS;
    T *data;
    int64_t stride[3];
};

/* A tensor, and the view that the kernel will have of it. */
template <class V> struct Operand { Tensor tensor; };

template <class T> Operand<View<T, Access::READ>> reads(Tensor t) {
    return {t};
}
template <class T> Operand<View<T, Access::WRITE>> writes(Tensor t) {
    return {t};
}
template <class T> Operand<View<T, Access::UPDATE>> updates(Tensor t) {
    return {t};
}
template <class T> Operand<View<T, Access::REPEAT>> repeats(Tensor t) {
    return {t};
}
static inline Operand<View<float, Access::ABSENT>> absent() {
    return {tensor_none()};
}

/* The tensors, padded to 4 dimensions and merged. */
struct Merged {
    int count;
    Tensor tensor[SWEEP_TENSORS];
};

/* The tensors have one shape. Last strides are 1, or 0 for what repeats. Absent ones are allowed behind the first. */
static inline Merged cuda_merge(int count, const Tensor *tensors) {
    CHECK(count >= 1 && count <= SWEEP_TENSORS, "%d tensors", count);
    Merged m = {};
    m.count = count;
    for (int i = 0; i < count; i++) m.tensor[i] = tensor_pad_4d(tensors[i]);
    tensors_merge(m.tensor, count);
    return m;
}

/* ---- what the kernel sees --------------------------------------------------------------------------------------- */

struct SweepShape {
    int64_t n;           /* elements of a row */
    uint32_t rows, b, c; /* rows = a * b * c */
};

struct SweepRow {
    uint32_t a, b, c;
};

static inline SweepShape sweep_shape(const Merged &m) {
    const int64_t *shape = m.tensor[0].shape;
    int64_t rows = shape[0] * shape[1] * shape[2];
    return {shape[3], static_cast<uint32_t>(int_of(rows)), static_cast<uint32_t>(shape[1]),
            static_cast<uint32_t>(shape[2])};
}

CU_DEVICE SweepRow sweep_row(const SweepShape &s, uint32_t row) {
    if (s.rows == 1) return {0, 0, 0}; /* the usual case; divisions are dear */
    uint32_t above = row / s.c;
    return {above / s.b, above % s.b, row % s.c};
}

template <class V> V view_of(Tensor t) {
    return {data_of<typename V::Element>(t), {t.stride[0], t.stride[1], t.stride[2]}};
}

/* N neighbouring elements of one tensor, in registers. */
template <int N, class V> struct Item {
    typename V::Element *at = nullptr;
    float value[N];

    __device__ Item(const V &view, SweepRow row, int64_t i) {
        if (V::access == Access::ABSENT) return;
        at = view.data + (row.a * view.stride[0] + row.b * view.stride[1] + row.c * view.stride[2]);
        if (V::access != Access::REPEAT) at += i;
    }

    __device__ void load() {
        if constexpr (V::access == Access::READ || V::access == Access::UPDATE) {
            load_floats(value, at);
        } else {
            float same = V::access == Access::REPEAT ? to_float(*at) : 0.0f;
            for (int k = 0; k < N; k++) value[k] = same;
        }
    }

    __device__ void store() const {
        if constexpr (V::access == Access::WRITE || V::access == Access::UPDATE) store_floats(at, value);
    }
};

template <int N, class F, class... Items> CU_DEVICE void sweep_items(const F &f, Items &&...item) {
    (item.load(), ...);
#pragma unroll
    for (int k = 0; k < N; k++) f(item.value[k]...);
    (item.store(), ...);
}

/* Elements i .. i+N-1 of every row that is this thread's. */
template <int N, class F, class... V>
CU_DEVICE void sweep_rows(const SweepShape &s, const F &f, int64_t i, const V &...view) {
    for (uint32_t r = blockIdx.y * blockDim.y + threadIdx.y; r < s.rows; r += gridDim.y * blockDim.y) {
        SweepRow row = sweep_row(s, r);
        sweep_items<N>(f, Item<N, V>(view, row, i)...);
    }
}

template <int N, class F, class... V>
__global__ void __launch_bounds__(SWEEP_THREADS) sweep_kernel(SweepShape s, F f, V... view) {
    int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (i + N <= s.n)
        sweep_rows<N>(s, f, i, view...);
    else
        for (; i < s.n; i++) sweep_rows<1>(s, f, i, view...); /* the rest of a row */
}

/* ---- launching -------------------------------------------------------------------------------------------------- */

/* True if whole packs can be read and written: where a row begins is aligned in every tensor; where it ends may not be.
 */
static inline bool sweep_is_aligned(const Merged &m) {
    for (int i = 0; i < m.count; i++) {
        Tensor t = m.tensor[i];
        if (t.stride[3] == 0) continue; /* repeats */
        t.shape[3] = 0;
        if (!rows_are_aligned(t)) return false;
    }
    return true;
}

/* As many elements as are 16 bytes of the smallest type. */
template <class... V> constexpr int SWEEP_PACK = (... || (sizeof(typename V::Element) == 2)) ? 8 : 4;

template <int N, class F, class... V, size_t... I>
void sweep_launch(Backend *be, const char *name, F f, const Merged &m, std::index_sequence<I...>, Operand<V>...) {
    SweepShape shape = sweep_shape(m);
    dim3 block = block_of_rows(SWEEP_THREADS, shape.n, N);
    int64_t high = ceil_div(shape.rows, block.y);
    dim3 grid(int_of(ceil_div(shape.n, static_cast<int64_t>(block.x) * N)),
              static_cast<unsigned>(high < MAX_GRID_Y ? high : MAX_GRID_Y));
    cuda_launch(be, name, sweep_kernel<N, F, V...>, grid, block, 0, shape, f, view_of<V>(m.tensor[I])...);
}

/* f(elements...) on the elements of all operands, in their order. */
template <class F, class... V> void cuda_sweep(Backend *be, const char *name, F f, Operand<V>... operand) {
    Tensor tensors[] = {operand.tensor...};
    Merged merged = cuda_merge(sizeof...(V), tensors);
    auto indices = std::index_sequence_for<V...>();
    if (sweep_is_aligned(merged))
        sweep_launch<SWEEP_PACK<V...>>(be, name, f, merged, indices, operand...);
    else
        sweep_launch<1>(be, name, f, merged, indices, operand...);
}

/* ---- sums over elements: loss.cu -------------------------------------------------------------------------------- */

/* How many sums one launch makes at most, and into how many parts all of them together are cut (but one each). */
constexpr int64_t SUMS = 32768, SUM_PARTS = 1024;

/* Sums of squares of m.tensor[0] in fp64. Each is over `rows` rows that follow each other, and comes in parts:
 * part[sum][0 .. returned - 1], SUMS numbers at most. */
int cuda_sum_squares(Backend *be, double *part, const Merged &m, int64_t rows);
