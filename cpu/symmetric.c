/* Symmetric products, a·aᵀ, at little more than half the work. The library multiplies the blocks on and below the
 * diagonal: for each row of blocks one product of its rows of a with all rows up to its own. What is above is copied
 * from below. That is (blocks + 1) / (2 blocks) of the work; 4 blocks are enough, more make products too small.
 */
#include "base/integer.h"
#include "cpu/cpu.h"
#include "cpu/simd.h"

enum { BLOCKS = 4, BLOCK_LEAST = 64, MIRROR_TILE = 32 };

static int64_t block_rows(int64_t n) {
    int64_t rows = ((n + BLOCKS - 1) / BLOCKS + MIRROR_TILE - 1) / MIRROR_TILE * MIRROR_TILE;
    return larger(rows, BLOCK_LEAST);
}

static Tensor row_range(Tensor x, int64_t first, int64_t rows) {
    return tensor_present(x) ? tensor_slice(x, x.ndim - 2, first, rows) : x;
}

static Tensor first_columns(Tensor x, int64_t columns) {
    return tensor_present(x) ? tensor_slice(x, x.ndim - 1, 0, columns) : x;
}

/* to (rows, columns) = fromᵀ, at most MIRROR_TILE each way: small enough to stay in the first-level cache. */
INLINE void transpose_tile(DType t, void *to, const void *from, int64_t rows, int64_t columns, int64_t ld) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            if (t == DTYPE_F32)
                ((float *)to)[r * ld + c] = ((const float *)from)[c * ld + r];
            else
                ((bf16 *)to)[r * ld + c] = ((const bf16 *)from)[c * ld + r];
        }
}

/* Rows [r, r + MIRROR_TILE) of one matrix: what lies right of their own block. */
static void mirror_rows(DType dtype, void *matrix, int64_t ld, int64_t n, int64_t r, int64_t block) {
    int64_t rows = smaller(MIRROR_TILE, n - r);
    for (int64_t c = (r / block + 1) * block; c < n; c += MIRROR_TILE) {
        int64_t columns = smaller(MIRROR_TILE, n - c);
        BY_DTYPE(dtype, transpose_tile, at(dtype, matrix, r * ld + c), at(dtype, matrix, c * ld + r), rows, columns,
                 ld);
    }
}

static void mirror(Backend *be, Tensor out, int64_t block) {
    Tensor batch = tensor_pad_4d(out);
    const int64_t n = batch.shape[2], tiles = (n + MIRROR_TILE - 1) / MIRROR_TILE, inner = batch.shape[1];
#pragma omp parallel for collapse(2) schedule(static, 1) num_threads(be->threads)
    for (int64_t matrix = 0; matrix < batch.shape[0] * inner; matrix++)
        for (int64_t tile = 0; tile < tiles; tile++) {
            int64_t offset = matrix / inner * batch.stride[0] + matrix % inner * batch.stride[1];
            mirror_rows(out.dtype, at(out.dtype, out.data, offset), batch.stride[2], n, tile * MIRROR_TILE, block);
        }
}

void cpu_matmul_symmetric(Backend *be, Tensor out, Tensor a, Tensor addend, MatmulScale s) {
    const int64_t n = out.shape[out.ndim - 1], block = block_rows(n);
    for (int64_t r = 0; r < n; r += block) {
        int64_t rows = smaller(block, n - r), columns = r + rows;
        Tensor left = row_range(a, r, rows), right = tensor_transpose(row_range(a, 0, columns));
        be->ops.matmul(be, first_columns(row_range(out, r, rows), columns), left, right,
                       first_columns(row_range(addend, r, rows), columns), s);
    }
    if (n > block) mirror(be, out, block);
}
