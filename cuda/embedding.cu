/* Rows picked by token, and their gradient without atomics on floats.
 *
 * The gradient of a token's row is the sum of dout over the places where the token stands. Tokens are sorted first, so
 * that these places follow each other, and then summed in tiles of equal length, however often a token occurs:
 *
 *      place n         0  1  2  3  4  5  6  7  8 ...         token      7  3  7  7  3  9 ...
 *      order           1  4 | 0  2 | 3  5  ...               sorted     3  3 | 7  7 | 7  9 ...      by (token, n)
 *      tile            0      1      2                                tile 0   tile 1   tile 2
 *
 * A run of one token belongs to the tile where it starts: this tile alone adds to the token's row of dwte. What later
 * tiles find of a run that started before them, they leave in scratch as `carry`, which a second kernel adds in the
 * order of the tiles. So every element has one fixed order of summation: by n within a tile, then by tile.
 *
 * The sort is a stable radix sort, 8 bits a pass, of the places n by their tokens: count digits per block, sum the
 * counts up to first positions, move.
 *
 *      scratch    | carry: tiles * C float | order: N int | order of the pass before: N int |
 *                 | counts: DIGITS * blocks int | first token: tiles int |
 */
#include <utility>

#include "cuda/device.cuh"

namespace {

constexpr int THREADS = 256;

/* ---- forward ---------------------------------------------------------------------------------------------------- */

template <int N, class T>
__global__ void __launch_bounds__(THREADS)
    embed_kernel(T *out, const int32_t *tokens, const T *wte, const T *wpe, int places, int context, int columns) {
    int n = static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y);
    if (n >= places) return;
    const T *by_token = wte + static_cast<int64_t>(tokens[n]) * columns;
    const T *by_position = wpe ? wpe + static_cast<int64_t>(n % context) * columns : nullptr;
    for (int i = static_cast<int>(threadIdx.x) * N; i < columns; i += static_cast<int>(blockDim.x) * N) {
        float sum[N], position[N] = {};
        load_floats(sum, by_token + i);
        if (by_position) load_floats(position, by_position + i);
        for (int k = 0; k < N; k++) sum[k] += position[k];
        store_floats(out + static_cast<int64_t>(n) * columns + i, sum);
    }
}

void embed(Backend *be, Tensor out, Tensor tokens, Tensor wte, Tensor wpe) {
    int places = int_of(out.shape[0]), context = int_of(tokens.shape[1]), columns = int_of(out.shape[1]);
    bool aligned = rows_are_aligned(out) && rows_are_aligned(wte) && rows_are_aligned(wpe);
    by_dtype(out.dtype, [&](auto zero) {
        using T = decltype(zero);
        by_access<T>(aligned, [&](auto n) {
            dim3 block = block_of_rows(THREADS, columns, n), grid(int_of(ceil_div(places, block.y)));
            cuda_launch(be, "embed", embed_kernel<decltype(n)::value, T>, grid, block, 0, data_of<T>(out),
                        data_of<int32_t>(tokens), data_of<T>(wte), data_of<T>(wpe), places, context, columns);
        });
    });
}

/* ---- sorting places by token ------------------------------------------------------------------------------------ */

constexpr int DIGIT_BITS = 8, DIGITS = 1 << DIGIT_BITS, SORT_THREADS = 1024;
static_assert(DIGITS % WARP == 0 && DIGITS <= SORT_THREADS, "a thread for each digit");

/* Place i of the order so far: NULL stands for 0, 1, 2, ... */
CU_DEVICE int place_at(const int *order, int i) {
    return order ? order[i] : i;
}

CU_DEVICE int digit_of(int32_t token, int shift) {
    return token >> shift & (DIGITS - 1);
}

/* counts[digit][block] = how many of the block's places have the digit. */
__global__ void __launch_bounds__(SORT_THREADS)
    count_digits_kernel(int *counts, const int *order, const int32_t *tokens, int places, int shift) {
    CU_SHARED(int, count, [DIGITS]);
    int thread = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * SORT_THREADS + thread;
    if (thread < DIGITS) count[thread] = 0;
    __syncthreads();
    if (i < places) atomicAdd(&count[digit_of(tokens[place_at(order, i)], shift)], 1); /* integers: any order will do */
    __syncthreads();
    if (thread < DIGITS) counts[thread * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x)] = count[thread];
}

/* Each count becomes the sum of those before it. One block: each thread sums a stretch, then the threads' sums are
 * summed up, then each thread goes over its stretch again. */
__global__ void __launch_bounds__(SORT_THREADS) sum_counts_kernel(int *counts, int n) {
    CU_SHARED(int, total, [SORT_THREADS]);
    int thread = static_cast<int>(threadIdx.x), stretch = static_cast<int>(ceil_div(n, SORT_THREADS));
    int begin = min(thread * stretch, n), end = min(begin + stretch, n), sum = 0;
    for (int i = begin; i < end; i++) sum += counts[i];
    total[thread] = sum;
    __syncthreads();
    for (int distance = 1; distance < SORT_THREADS; distance *= 2) {
        int before = thread >= distance ? total[thread - distance] : 0;
        __syncthreads();
        total[thread] += before;
        __syncthreads();
    }
    int position = total[thread] - sum;
    for (int i = begin; i < end; i++) {
        int count = counts[i];
        counts[i] = position;
        position += count;
    }
}

/* The lanes of this warp with the same digit, as a mask. */
CU_DEVICE unsigned lanes_with_digit(int digit) {
    unsigned same = FULL_WARP;
#pragma unroll
    for (int bit = 0; bit <= DIGIT_BITS; bit++) { /* one more than a digit has: that of places which do not exist */
        unsigned set = __ballot_sync(FULL_WARP, digit >> bit & 1);
        same &= digit >> bit & 1 ? set : ~set;
    }
    return same;
}

/* Moves each place to the next free position of its digit, in the order in which they stand: by warp, then by lane. */
__global__ void __launch_bounds__(SORT_THREADS) move_places_kernel(int *sorted, const int *positions, const int *order,
                                                                   const int32_t *tokens, int places, int shift) {
    CU_SHARED(int, next, [SORT_THREADS / WARP][DIGITS]); /* first counts, then positions */
    int thread = static_cast<int>(threadIdx.x), warp = thread / WARP, lane = thread % WARP;
    int i = static_cast<int>(blockIdx.x) * SORT_THREADS + thread;
    int place = i < places ? place_at(order, i) : 0;
    int digit = i < places ? digit_of(tokens[place], shift) : DIGITS;
    unsigned same = lanes_with_digit(digit);
    int before = __popc(same & ((1u << lane) - 1));
    for (int d = lane; d < DIGITS; d += WARP) next[warp][d] = 0;
    __syncwarp();
    if (before == 0 && digit < DIGITS) next[warp][digit] = __popc(same);
    __syncthreads();
    if (thread < DIGITS) {
        int position = positions[thread * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x)];
        for (int w = 0; w < SORT_THREADS / WARP; w++) {
            int count = next[w][thread];
            next[w][thread] = position;
            position += count;
        }
    }
    __syncthreads();
    if (i < places) sorted[next[warp][digit] + before] = place;
}

struct SortSpace {
    int *order, *other, *counts;
};

int64_t sort_blocks(int64_t places) {
    return ceil_div(places, SORT_THREADS);
}

/* The places 0 .. N-1 by (token, place), in one of the two spaces for orders. */
const int *sort_places(Backend *be, SortSpace space, const int32_t *tokens, int places, int64_t vocabulary) {
    dim3 grid(static_cast<unsigned>(sort_blocks(places))), block(SORT_THREADS);
    const int *order = nullptr;
    for (int shift = 0; shift == 0 || (vocabulary - 1) >> shift > 0; shift += DIGIT_BITS) {
        cuda_launch(be, "count_digits", count_digits_kernel, grid, block, 0, space.counts, order, tokens, places,
                    shift);
        cuda_launch(be, "sum_counts", sum_counts_kernel, dim3(1), block, 0, space.counts,
                    DIGITS * static_cast<int>(grid.x));
        cuda_launch(be, "move_places", move_places_kernel, grid, block, 0, space.order, space.counts, order, tokens,
                    places, shift);
        order = space.order;
        std::swap(space.order, space.other);
    }
    return order;
}

/* ---- gradient by token ------------------------------------------------------------------------------------------ */

constexpr int TILE = 64, AHEAD = 8; /* places of a tile; rows of dout that a thread loads before it adds them */

template <class T> struct Runs {
    float *dwte;
    const T *dout;
    const int32_t *tokens;
    const int *order; /* places by token */
    float *carry;     /* [tile][column] */
    int *first_token; /* [tile] */
    int places, columns;

    __device__ int32_t token(int i) const { return tokens[order[i]]; }
};

int64_t tile_count(int64_t places) {
    return ceil_div(places, TILE);
}

/* The column where this thread's pack begins. */
template <int N> CU_DEVICE int own_column() {
    return static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * N;
}

/* One warp sums one tile, in 32 N columns. */
template <int N, class T> __global__ void __launch_bounds__(WARP) sum_runs_kernel(Runs<T> a) {
    CU_SHARED(int, place, [TILE]);
    CU_SHARED(int, token, [TILE + 1]); /* behind the last a token that is none: there every run ends */
    int tile = static_cast<int>(blockIdx.x), begin = tile * TILE, count = min(TILE, a.places - begin);
    for (int j = static_cast<int>(threadIdx.x); j <= TILE; j += WARP) {
        if (j < count) place[j] = a.order[begin + j];
        token[j] = j < count ? a.tokens[place[j]] : -1;
    }
    __syncthreads();
    if (blockIdx.y == 0 && threadIdx.x == 0) a.first_token[tile] = token[0];
    int column = own_column<N>();
    if (column >= a.columns) return;
    bool carried = tile > 0 && a.token(begin - 1) == token[0];
    float sum[N] = {};
    for (int first = 0; first < count; first += AHEAD) {
        PackedRegisters<T, N> d[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (first + j < count)
                d[j] = PackedRegisters<T, N>(a.dout + static_cast<int64_t>(place[first + j]) * a.columns + column);
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (first + j >= count) break;
            for (int k = 0; k < N; k++) sum[k] += d[j][k];
            if (token[first + j + 1] == token[first + j]) continue;
            if (carried)
                store_floats(a.carry + static_cast<int64_t>(tile) * a.columns + column, sum);
            else
                add_floats(a.dwte + static_cast<int64_t>(token[first + j]) * a.columns + column, sum);
            carried = false;
            for (int k = 0; k < N; k++) sum[k] = 0;
        }
    }
}

/* The first tile behind `tile` that does not begin with `token`: tiles are in the order of their first tokens. */
CU_DEVICE int end_of_run(const int *first_token, int tile, int tiles, int token) {
    int low = tile + 1, high = tiles;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (first_token[middle] == token)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Where a run starts in this block's tile and goes on in the next: adds what the next tiles carry of it. */
template <int N, class T> __global__ void __launch_bounds__(WARP) add_carries_kernel(Runs<T> a, int tiles) {
    int tile = static_cast<int>(blockIdx.x), begin = tile * TILE;
    int token = a.first_token[tile + 1];
    bool crosses = a.token(begin + TILE - 1) == token;
    bool starts_here = tile == 0 || a.token(begin - 1) != token;
    int column = own_column<N>();
    if (!crosses || !starts_here || column >= a.columns) return;
    float sum[N] = {};
    int end = end_of_run(a.first_token, tile, tiles, token);
#pragma unroll 4
    for (int t = tile + 1; t < end; t++) {
        float carry[N];
        load_floats(carry, a.carry + static_cast<int64_t>(t) * a.columns + column);
        for (int k = 0; k < N; k++) sum[k] += carry[k];
    }
    add_floats(a.dwte + static_cast<int64_t>(token) * a.columns + column, sum);
}

int64_t scratch_bytes(int64_t places, int64_t columns) {
    int64_t tiles = tile_count(places);
    int64_t numbers = tiles * columns + 2 * places + DIGITS * sort_blocks(places) + tiles;
    return numbers * static_cast<int64_t>(sizeof(float));
}

template <class T> Runs<T> runs_of(Backend *be, Tensor dwte, Tensor dout, Tensor tokens) {
    int64_t places = dout.shape[0], columns = dout.shape[1], tiles = tile_count(places);
    float *carry = static_cast<float *>(cuda_scratch(be, scratch_bytes(places, columns)));
    int *order = reinterpret_cast<int *>(carry + tiles * columns), *other = order + places, *counts = other + places;
    int *first_token = counts + DIGITS * sort_blocks(places);
    const int32_t *token = data_of<int32_t>(tokens);
    const int *sorted = sort_places(be, {order, other, counts}, token, int_of(places), dwte.shape[0]);
    return {data_of<float>(dwte), data_of<T>(dout), token, sorted, carry, first_token, int_of(places), int_of(columns)};
}

/* ---- gradient by position --------------------------------------------------------------------------------------- */

/* dwpe[t] += the sum over b of dout[b][t]. */
template <int N, class T>
__global__ void __launch_bounds__(WARP) sum_positions_kernel(float *dwpe, const T *dout, int sequences, int columns) {
    int64_t t = blockIdx.x, context = gridDim.x;
    int column = own_column<N>();
    if (column >= columns) return;
    float sum[N] = {};
#pragma unroll 8
    for (int b = 0; b < sequences; b++) {
        float d[N];
        load_floats(d, dout + (b * context + t) * columns + column);
        for (int k = 0; k < N; k++) sum[k] += d[k];
    }
    add_floats(dwpe + t * columns + column, sum);
}

void embed_grad(Backend *be, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens) {
    int64_t columns = dout.shape[1], tiles = tile_count(dout.shape[0]);
    bool aligned = rows_are_aligned(dout) && rows_are_aligned(dwte) && rows_are_aligned(dwpe);
    if (dout.shape[0] == 0) return;
    by_dtype(dout.dtype, [&](auto zero) {
        using T = decltype(zero);
        Runs<T> runs = runs_of<T>(be, dwte, dout, tokens);
        by_access<T>(aligned, [&](auto n) {
            constexpr int N = decltype(n)::value;
            auto high = static_cast<unsigned>(ceil_div(columns, WARP * N));
            auto grid = [&](int64_t wide) { return dim3(static_cast<unsigned>(wide), high); };
            cuda_launch(be, "sum_runs", sum_runs_kernel<N, T>, grid(tiles), dim3(WARP), 0, runs);
            cuda_launch(be, "add_carries", add_carries_kernel<N, T>, grid(tiles - 1), dim3(WARP), 0, runs,
                        static_cast<int>(tiles));
            if (tensor_present(dwpe))
                cuda_launch(be, "sum_positions", sum_positions_kernel<N, T>, grid(tokens.shape[1]), dim3(WARP), 0,
                            data_of<float>(dwpe), runs.dout, int_of(tokens.shape[0]), runs.columns);
        });
    });
}

} // namespace

int64_t cuda_embedding_scratch_bytes(const Backend *, const OpLimits *limits) {
    return scratch_bytes(limits->batch * limits->context, limits->width);
}

void cuda_fill_embedding(BackendOps *ops) {
    ops->embed = embed;
    ops->embed_grad = embed_grad;
}
