/* Symmetric products out = alpha a·aᵀ + beta addend: what Newton-Schulz spends most of its time in (X·Xᵀ and A·A).
 *
 * In bf16 an own tensor-core kernel, because a library multiplies the whole square. It computes the tiles on and below
 * the diagonal and stores each one below twice, as it is and transposed: (tiles + 1) / (2 tiles) of the work. One block
 * makes one tile, and the tiles of all matrices of the batch stand in one line, so that many small matrices fill the
 * device as well as a few large ones:
 *
 *                                       column j
 *      x  made by a block             | x . . |           block     0 1 2 3 4 5 | 6 7 8 9 10 11 | and so on
 *      .  stored by the block    row i| x x . |           matrix         0      |       1
 *         of its mirror               | x x x |           tile      0 1 2 3 4 5 | 0 1 2 3  4  5     = i (i + 1) / 2 + j
 *
 * A block is 4 warps, each with a quarter of the tile in registers (64 x 64 values of a 128 x 128 tile: 128 registers
 * a thread). The rows of `a` for i and for j come in steps of 32 terms through a ring of shared-memory stages that
 * cp.async fills three steps ahead; on the diagonal they are the same rows, loaded once. One barrier a step: it says
 * both that the step has arrived and that nobody still reads the stage which is filled next.
 *
 * What lies in shared memory is swizzled in 16-byte chunks so that no access meets a bank twice:
 *
 *      a row-major      [row][chunk of 8 terms]      4 chunks,       chunk ^= row / 2 % 4       read by ldmatrix
 *      a transposed     [term][chunk of 8 rows]      tile/8 chunks,  chunk ^= term % 8          by ldmatrix.trans
 *      result, fp32     [row][chunk of 4 columns]    tile/4 chunks,  chunk ^= result_swizzle    in the stages' memory
 *
 * The result passes through shared memory so that rows are stored in pieces of 16 bytes a thread and 64 bytes or more
 * side by side, for the tile and for its mirror.
 *
 * Edges are zero-filled. Rows that are not aligned to 16 bytes are loaded element by element into the same layout (a
 * template parameter). fp32 inputs go to the library as a whole product.
 */
#include "cuda/device.cuh"

namespace {

constexpr int THREADS = 128, STEP = 32, STAGES = 4;
constexpr int CHUNK = 8; /* bf16 values in 16 bytes */

struct Symmetric {
    const __nv_bfloat16 *a;
    void *out;
    const void *addend; /* NULL: none */
    int64_t a_ld, out_ld, addend_ld;
    int64_t a_batch[2], out_batch[2], addend_batch[2];
    int inner; /* matrices of the inner batch dimension */
    int n, k;
    int tiles;                  /* in the triangle of one matrix */
    bool wide_out, wide_addend; /* rows begin on 16 bytes and are a multiple of them */
    float alpha, beta;
};

/* ---- operands: from global memory into a stage ------------------------------------------------------------------- */

/* Where element (row, term) of a stage's operand lies; the first of a chunk when it is one. */
template <int TILE, bool TRANSPOSED> CU_DEVICE int operand_index(int row, int term) {
    if (TRANSPOSED) return term * TILE + ((row / CHUNK) ^ (term % 8)) * CHUNK + row % CHUNK;
    return row * STEP + ((term / CHUNK) ^ (row / 2 % 4)) * CHUNK + term % CHUNK;
}

/* Rows [first_row, first_row + TILE) x terms [first_term, first_term + STEP) of the matrix `a`. */
template <int TILE, bool TRANSPOSED, bool WIDE>
CU_DEVICE void load_operand(__nv_bfloat16 *stage, const Symmetric &p, const __nv_bfloat16 *a, int first_row,
                            int first_term) {
    constexpr int CHUNKS = TILE * STEP / CHUNK, CHUNKS_ACROSS = (TRANSPOSED ? TILE : STEP) / CHUNK;
#pragma unroll
    for (int chunk = (int)threadIdx.x; chunk < CHUNKS; chunk += THREADS) {
        int down = chunk / CHUNKS_ACROSS, across = chunk % CHUNKS_ACROSS * CHUNK;
        int row = TRANSPOSED ? across : down, term = TRANSPOSED ? down : across;
        __nv_bfloat16 *target = &stage[operand_index<TILE, TRANSPOSED>(row, term)];
        row += first_row, term += first_term;
        const __nv_bfloat16 *source = a + (TRANSPOSED ? term * p.a_ld + row : row * p.a_ld + term);
        if (WIDE) {
            bool inside = row < p.n && term < p.k;
            cp_async16_or_zero(target, inside ? source : a, inside);
        } else {
            int count = min(CHUNK, TRANSPOSED ? (term < p.k ? p.n - row : 0) : (row < p.n ? p.k - term : 0));
#pragma unroll
            for (int i = 0; i < CHUNK; i++) target[i] = i < count ? source[i] : __float2bfloat16(0.0f);
        }
    }
}

/* ---- the product of one step ------------------------------------------------------------------------------------- */

/* The 16 x 16 block of an operand at (row, term) as four 8 x 8 matrices in mma's order (PTX ISA, "Matrix Fragments for
 * mma.m16n8k16"): as the left operand the rows' halves change first, as the right operand the terms' halves. */
enum Side { LEFT, RIGHT };

template <int TILE, bool TRANSPOSED, Side SIDE>
CU_DEVICE void load_fragment(uint32_t fragment[4], const __nv_bfloat16 *operand, int row, int term) {
    int lane = (int)threadIdx.x % 32, first_half = lane / 8 % 2, second_half = lane / 16, line = lane % 8;
    row += 8 * (SIDE == LEFT ? first_half : second_half);
    term += 8 * (SIDE == LEFT ? second_half : first_half);
    if (TRANSPOSED)
        ldmatrix_x4_trans(fragment, &operand[operand_index<TILE, true>(row, term + line)]);
    else
        ldmatrix_x4(fragment, &operand[operand_index<TILE, false>(row + line, term)]);
}

/* Warp w has the quarter (w / 2, w % 2) of the tile, as fragments of 16 x 8 values. */
template <int TILE> struct Quarter {
    static constexpr int SIZE = TILE / 2, DOWN = SIZE / 16, ACROSS = SIZE / 8;
    float value[DOWN][ACROSS][4];
};

template <int TILE> CU_DEVICE int quarter_row() {
    return (int)threadIdx.x / 64 * (TILE / 2);
}

template <int TILE> CU_DEVICE int quarter_column() {
    return (int)threadIdx.x / 32 % 2 * (TILE / 2);
}

template <int TILE, bool TRANSPOSED>
CU_DEVICE void multiply_step(Quarter<TILE> &sum, const __nv_bfloat16 *left, const __nv_bfloat16 *right) {
    constexpr int DOWN = Quarter<TILE>::DOWN, ACROSS = Quarter<TILE>::ACROSS;
#pragma unroll
    for (int term = 0; term < STEP; term += 16) {
        uint32_t a[DOWN][4], b[ACROSS / 2][4];
#pragma unroll
        for (int i = 0; i < DOWN; i++)
            load_fragment<TILE, TRANSPOSED, LEFT>(a[i], left, quarter_row<TILE>() + 16 * i, term);
#pragma unroll
        for (int j = 0; j < ACROSS / 2; j++)
            load_fragment<TILE, TRANSPOSED, RIGHT>(b[j], right, quarter_column<TILE>() + 16 * j, term);
#pragma unroll
        for (int i = 0; i < DOWN; i++)
#pragma unroll
            for (int j = 0; j < ACROSS; j++)
                mma_m16n8k16_bf16(sum.value[i][j], a[i], &b[j / 2][j % 2 * 2], sum.value[i][j]);
    }
}

/* sum = the tile of a·aᵀ whose first row and column are given. */
template <int TILE, bool TRANSPOSED, bool WIDE>
CU_DEVICE void multiply_tile(Quarter<TILE> &sum, __nv_bfloat16 *stages, const Symmetric &p, const __nv_bfloat16 *a,
                             int row, int column) {
    constexpr int OPERAND = TILE * STEP;
    const int steps = (p.k + STEP - 1) / STEP;
    const bool diagonal = row == column;
    auto load_step = [&](int step) {
        __nv_bfloat16 *stage = stages + step % STAGES * (2 * OPERAND);
        if (step < steps) {
            load_operand<TILE, TRANSPOSED, WIDE>(stage, p, a, row, step * STEP);
            if (!diagonal) load_operand<TILE, TRANSPOSED, WIDE>(stage + OPERAND, p, a, column, step * STEP);
        }
        cp_async_commit(); /* an empty group too, so that the count of groups in flight is the count of steps ahead */
    };
    for (int step = 0; step < STAGES - 1; step++) load_step(step);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        load_step(step + STAGES - 1);
        const __nv_bfloat16 *stage = stages + step % STAGES * (2 * OPERAND);
        multiply_step<TILE, TRANSPOSED>(sum, stage, diagonal ? stage : stage + OPERAND);
    }
    cp_async_wait<0>();
    __syncthreads(); /* the stages' memory is free for the result */
}

/* ---- the result: through shared memory to the tile and its mirror ------------------------------------------------ */

/* Chosen for three accesses at once: fragments written as pairs (4 rows x 8 columns at a time), rows read in pieces of
 * 4 (2 rows x 32 columns), columns read one by one (4 rows that are 8 apart x 8 columns). */
CU_DEVICE int result_swizzle(int row) {
    return (row & 1) | (((row ^ (row >> 3)) & 3) << 1);
}

template <int TILE> CU_DEVICE int result_index(int row, int column) {
    return row * TILE + ((column / 4) ^ result_swizzle(row)) * 4 + column % 4;
}

template <int TILE> CU_DEVICE void put_result(float *result, const Quarter<TILE> &sum) {
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < Quarter<TILE>::DOWN; i++)
#pragma unroll
        for (int j = 0; j < Quarter<TILE>::ACROSS; j++) {
            const float *value = sum.value[i][j];
            int row = quarter_row<TILE>() + 16 * i + lane / 4, column = quarter_column<TILE>() + 8 * j + lane % 4 * 2;
            *(float2 *)&result[result_index<TILE>(row, column)] = make_float2(value[0], value[1]);
            *(float2 *)&result[result_index<TILE>(row + 8, column)] = make_float2(value[2], value[3]);
        }
}

/* A piece is 8 values of one row, `count` of which are inside the matrix: all, where rows are wide. */
template <typename T> CU_DEVICE void load_piece(float (&value)[8], const T *row, int count, bool wide) {
    if (wide) {
        load_floats(value, row);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) value[i] = i < count ? to_float(row[i]) : 0.0f;
}

template <typename T> CU_DEVICE void store_piece(T *row, const float (&value)[8], int count, bool wide) {
    if (wide) {
        store_floats(row, value);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < count) row[i] = from_float<T>(value[i]);
}

/* The thread's piece of the n-th group of 8 rows x 32 columns that its warp takes: 4 lanes store 32 values side by
 * side.
 */
template <int TILE> CU_DEVICE void locate_piece(int group, int &row, int &column) {
    int lane = (int)threadIdx.x % 32;
    row = group / (TILE / 32) * 8 + lane / 4;
    column = group % (TILE / 32) * 32 + lane % 4 * 8;
}

/* out = alpha result + beta addend for the tile, in fp32 back into `result` for the mirror. */
template <int TILE, typename T>
CU_DEVICE void store_tile(float *result, const Symmetric &p, T *out, const T *addend, int first_row, int first_column) {
    for (int group = (int)threadIdx.x / 32; group < TILE / 8 * (TILE / 32); group += THREADS / 32) {
        int row, column;
        locate_piece<TILE>(group, row, column);
        int global_row = first_row + row, global_column = first_column + column, count = p.n - global_column;
        if (global_row >= p.n || count <= 0) continue;
        float value[8], added[8];
#pragma unroll
        for (int i = 0; i < 8; i += 4)
            *(float4 *)&value[i] = *(const float4 *)&result[result_index<TILE>(row, column + i)];
        if (addend) load_piece(added, addend + global_row * p.addend_ld + global_column, count, p.wide_addend);
#pragma unroll
        for (int i = 0; i < 8; i++) value[i] = p.alpha * value[i] + (addend ? p.beta * added[i] : 0.0f);
        store_piece(out + global_row * p.out_ld + global_column, value, count, p.wide_out);
#pragma unroll
        for (int i = 0; i < 8; i += 4)
            *(float4 *)&result[result_index<TILE>(row, column + i)] = *(const float4 *)&value[i];
    }
}

/* The transposed tile: a piece is 8 rows of one column of `result`. */
template <int TILE, typename T>
CU_DEVICE void store_mirror(const float *result, const Symmetric &p, T *out, int first_row, int first_column) {
    for (int group = (int)threadIdx.x / 32; group < TILE / 8 * (TILE / 32); group += THREADS / 32) {
        int row, column; /* of the mirror */
        locate_piece<TILE>(group, row, column);
        int global_row = first_column + row, global_column = first_row + column, count = p.n - global_column;
        if (global_row >= p.n || count <= 0) continue;
        float value[8];
#pragma unroll
        for (int i = 0; i < 8; i++) value[i] = result[result_index<TILE>(column + i, row)];
        store_piece(out + global_row * p.out_ld + global_column, value, count, p.wide_out);
    }
}

/* ---- the kernel -------------------------------------------------------------------------------------------------- */

/* The row i of the triangle to which its tile-th tile belongs. */
CU_DEVICE int triangle_row(int tile) {
    int i = (int)((sqrtf(8.0f * (float)tile + 1.0f) - 1.0f) * 0.5f);
    while (i * (i + 1) / 2 > tile) i--;
    while ((i + 1) * (i + 2) / 2 <= tile) i++;
    return i;
}

template <int TILE> constexpr int shared_bytes() {
    constexpr int stages = STAGES * 2 * TILE * STEP * (int)sizeof(__nv_bfloat16),
                  result = TILE * TILE * (int)sizeof(float);
    return stages > result ? stages : result;
}

template <int TILE> constexpr int blocks_per_multiprocessor() {
    return TILE == 128 ? 2 : 4;
}

template <int TILE, bool TRANSPOSED, bool WIDE, typename T>
__global__ void __launch_bounds__(THREADS, blocks_per_multiprocessor<TILE>()) matmul_symmetric_kernel(Symmetric p) {
    CU_SHARED_DYN(float, shared);
    const int matrix = (int)blockIdx.x / p.tiles, tile = (int)blockIdx.x % p.tiles;
    const int outer = matrix / p.inner, inner = matrix % p.inner;
    const int i = triangle_row(tile), j = tile - i * (i + 1) / 2;
    const int row = i * TILE, column = j * TILE;

    Quarter<TILE> sum = {};
    const __nv_bfloat16 *a = p.a + outer * p.a_batch[0] + inner * p.a_batch[1];
    multiply_tile<TILE, TRANSPOSED, WIDE>(sum, (__nv_bfloat16 *)shared, p, a, row, column);

    T *out = (T *)p.out + outer * p.out_batch[0] + inner * p.out_batch[1];
    const T *addend = (const T *)p.addend;
    if (addend) addend += outer * p.addend_batch[0] + inner * p.addend_batch[1];
    put_result<TILE>(shared, sum);
    __syncthreads();
    store_tile<TILE>(shared, p, out, addend, row, column);
    if (i == j) return;
    __syncthreads();
    store_mirror<TILE>(shared, p, out, row, column);
}

/* ---- host -------------------------------------------------------------------------------------------------------- */

int64_t triangle(int64_t n, int tile) {
    int64_t side = ceil_div(n, tile);
    return side * (side + 1) / 2;
}

/* Seconds, in units of 64 x 64 tiles at a multiprocessor: a 128 x 128 tile has four times the work, and does it in
 * two and a half times the time since each value that it loads is used twice as often. Small matrices waste less of
 * the small tiles, and few matrices fill the device with them. */
double tile_cost(int64_t matrices, int64_t n, int tile, int multiprocessors) {
    int64_t blocks = matrices * triangle(n, tile);
    int64_t resident = (int64_t)multiprocessors * (tile == 128 ? 2 : 4);
    return (double)ceil_div(blocks, resident) * (tile == 128 ? 2 * 2.5 : 4 * 1.0);
}

template <int TILE, bool TRANSPOSED, bool WIDE> void launch(Backend *be, Symmetric p, int64_t matrices, DType dtype) {
    p.tiles = (int)triangle(p.n, TILE);
    auto start = [&](auto kernel) {
        cuda_launch(be, "matmul_symmetric", kernel, dim3(int_of(matrices * p.tiles)), dim3(THREADS),
                    shared_bytes<TILE>(), p);
    };
    if (dtype == DTYPE_BF16)
        start(matmul_symmetric_kernel<TILE, TRANSPOSED, WIDE, __nv_bfloat16>);
    else
        start(matmul_symmetric_kernel<TILE, TRANSPOSED, WIDE, float>);
}

template <bool TRANSPOSED> void choose_tile(Backend *be, const Symmetric &p, int64_t matrices, DType dtype, bool wide) {
    int multiprocessors = cuda_state(be)->multiprocessors;
    if (!wide)
        launch<64, TRANSPOSED, false>(be, p, matrices, dtype);
    else if (tile_cost(matrices, p.n, 64, multiprocessors) < tile_cost(matrices, p.n, 128, multiprocessors))
        launch<64, TRANSPOSED, true>(be, p, matrices, dtype);
    else
        launch<128, TRANSPOSED, true>(be, p, matrices, dtype);
}

void matmul_symmetric(Backend *be, Tensor out, Tensor a, Tensor addend, MatmulScale s) {
    if (a.dtype != DTYPE_BF16) {
        be->ops.matmul(be, out, a, tensor_transpose(a), addend, s);
        return;
    }
    if (tensor_numel(out) == 0) return;
    const bool added = tensor_present(addend) && s.beta != 0; /* beta 0: the addend is not read, NaN or not */
    Tensor a4 = tensor_pad_4d(a), out4 = tensor_pad_4d(out), addend4 = tensor_pad_4d(added ? addend : out);
    const bool transposed = a4.stride[3] != 1 && a4.shape[3] > 1;
    Symmetric p = {};
    p.a = (const __nv_bfloat16 *)a.data, p.out = out.data, p.addend = added ? addend.data : NULL;
    p.a_ld = a4.stride[transposed ? 3 : 2], p.out_ld = out4.stride[2], p.addend_ld = addend4.stride[2];
    for (int i = 0; i < 2; i++) {
        p.a_batch[i] = a4.stride[i];
        p.out_batch[i] = out4.stride[i];
        p.addend_batch[i] = addend4.stride[i];
    }
    p.inner = (int)out4.shape[1], p.n = (int)out4.shape[2], p.k = (int)a4.shape[3];
    p.wide_out = rows_are_aligned(out), p.wide_addend = rows_are_aligned(addend);
    p.alpha = s.alpha, p.beta = s.beta;
    const bool wide = rows_are_aligned(transposed ? tensor_transpose(a) : a);
    const int64_t matrices = out4.shape[0] * out4.shape[1];
    if (transposed)
        choose_tile<true>(be, p, matrices, out.dtype, wide);
    else
        choose_tile<false>(be, p, matrices, out.dtype, wide);
}

} // namespace

void cuda_fill_symmetric(BackendOps *ops) {
    ops->matmul_symmetric = matmul_symmetric;
}

int64_t cuda_symmetric_scratch_bytes(const Backend *be, const OpLimits *limits) {
    (void)be, (void)limits;
    return 0;
}
