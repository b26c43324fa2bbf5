/* A matrix product by a plain kernel: any shape, any strides, up to two batch dimensions. */
#include "cuda/gemm_plain.h"

#include "cuda/device.cuh"

namespace {

constexpr int SIDE = 16; /* of a block's tile: one thread an element */

struct PlainMatrices { /* of one operand: element (p, q, row, column) of the 4-d tensor */
    const void *data;
    int64_t stride[4];
};

struct PlainShape {
    int64_t inner, rows, columns, terms;
    float alpha, beta;
};

template <class T> CU_DEVICE const T *matrix_of_block(const PlainMatrices &x, int64_t inner) {
    int64_t matrix = blockIdx.z;
    return static_cast<const T *>(x.data) + (matrix / inner * x.stride[0] + matrix % inner * x.stride[1]);
}

template <class T>
CU_DEVICE float element_or_zero(const T *x, const PlainMatrices &m, int64_t row, int64_t column, bool inside) {
    return inside ? to_float(x[row * m.stride[2] + column * m.stride[3]]) : 0.0f;
}

template <class T, class Out>
__global__ void __launch_bounds__(SIDE *SIDE)
    plain_product_kernel(PlainShape s, PlainMatrices out, PlainMatrices a, PlainMatrices b, PlainMatrices addend) {
    CU_SHARED(float, a_tile, [SIDE][SIDE + 1]);
    CU_SHARED(float, b_tile, [SIDE][SIDE + 1]);
    const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
    const int64_t column = static_cast<int64_t>(blockIdx.x) * SIDE + x;
    const T *a_matrix = matrix_of_block<T>(a, s.inner), *b_matrix = matrix_of_block<T>(b, s.inner);
    for (int64_t row = static_cast<int64_t>(blockIdx.y) * SIDE; row < s.rows;
         row += static_cast<int64_t>(gridDim.y) * SIDE) {
        float sum = 0;
        for (int64_t k = 0; k < s.terms; k += SIDE) {
            a_tile[y][x] = element_or_zero(a_matrix, a, row + y, k + x, row + y < s.rows && k + x < s.terms);
            b_tile[y][x] = element_or_zero(b_matrix, b, k + y, column, k + y < s.terms && column < s.columns);
            __syncthreads();
#pragma unroll
            for (int i = 0; i < SIDE; i++) sum += a_tile[y][i] * b_tile[i][x];
            __syncthreads();
        }
        if (row + y >= s.rows || column >= s.columns) continue;
        Out *to = const_cast<Out *>(matrix_of_block<Out>(out, s.inner)) + (row + y) * out.stride[2] + column;
        float value = s.alpha * sum;
        if (addend.data)
            value += s.beta * element_or_zero(matrix_of_block<Out>(addend, s.inner), addend, row + y, column, true);
        *to = from_float<Out>(value);
    }
}

PlainMatrices plain_matrices(Tensor x) {
    PlainMatrices m = {};
    if (!tensor_present(x)) return m;
    x = tensor_pad_4d(x);
    m.data = x.data;
    for (int i = 0; i < 4; i++) m.stride[i] = x.shape[i] > 1 ? x.stride[i] : 1;
    return m;
}

} // namespace

void cuda_multiply_plainly(Backend *be, Tensor out, Tensor a, Tensor b, Tensor addend, MatmulScale scale) {
    out = tensor_pad_4d(out);
    PlainShape s = {out.shape[1], out.shape[2], out.shape[3], a.shape[a.ndim - 1], scale.alpha, scale.beta};
    int64_t high = ceil_div(s.rows, SIDE), matrices = out.shape[0] * out.shape[1];
    CHECK(matrices <= MAX_GRID_Y, "%lld matrices in a batch", static_cast<long long>(matrices));
    dim3 grid(int_of(ceil_div(s.columns, SIDE)), static_cast<unsigned>(high < MAX_GRID_Y ? high : MAX_GRID_Y),
              static_cast<unsigned>(matrices));
    by_dtype(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        auto kernel = out.dtype == DTYPE_F32 ? plain_product_kernel<T, float> : plain_product_kernel<T, T>;
        cuda_launch(be, "plain_product", kernel, grid, dim3(SIDE, SIDE), 0, s, plain_matrices(out), plain_matrices(a),
                    plain_matrices(b), plain_matrices(addend));
    });
}
