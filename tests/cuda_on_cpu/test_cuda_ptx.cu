/* cuda/ptx.cuh against the PTX ISA: fragments are filled and read by the formulas of its sections, in their own terms
 * (groupID, threadID_in_group, element i), and compared with plain loops. All values are small integers: results are
 * exact. */
#include "cuda/ptx.cuh"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

extern "C" {
#include <cmocka.h>
}

static void require(cudaError_t error) {
    if (error != cudaSuccess) fail_msg("%s", cudaGetErrorString(error));
}

/* Runs one warp on `in` and returns what it wrote. */
template <class In, class Out> static Out run_warp(void (*kernel)(Out *, const In *), const In &in) {
    In *device_in;
    Out *device_out, out;
    require(cudaMalloc(reinterpret_cast<void **>(&device_in), sizeof in));
    require(cudaMalloc(reinterpret_cast<void **>(&device_out), sizeof out));
    require(cudaMemcpy(device_in, &in, sizeof in, cudaMemcpyHostToDevice));
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(1);
    config.blockDim = dim3(32);
    require(cudaLaunchKernelEx(&config, kernel, device_out, static_cast<const In *>(device_in)));
    require(cudaMemcpy(&out, device_out, sizeof out, cudaMemcpyDeviceToHost));
    require(cudaFree(device_in));
    require(cudaFree(device_out));
    return out;
}

/* ---- mma --------------------------------------------------------------------------------------------------------- */

struct Operands {
    __nv_bfloat16 a[16][16], b[16][8]; /* row, column */
    float c[16][8];
};

struct Product {
    float d[16][8];
};

/* Section 9.7.14.5.8: where element i of the vectors a, b and c (or d) of a thread lies. */
CU_DEVICE int row_of_a(int i, int group) {
    return (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
}
CU_DEVICE int column_of_a(int i, int thread) {
    return i < 4 ? thread * 2 + (i & 1) : thread * 2 + (i & 1) + 8;
}
CU_DEVICE int row_of_b(int i, int thread) {
    return i < 2 ? thread * 2 + (i & 1) : thread * 2 + (i & 1) + 8;
}
CU_DEVICE int row_of_c(int i, int group) {
    return i < 2 ? group : group + 8;
}
CU_DEVICE int column_of_c(int i, int thread) {
    return thread * 2 + (i & 1);
}

__global__ void multiply(Product *out, const Operands *in) {
    int group = threadIdx.x >> 2, thread = threadIdx.x % 4;
    __nv_bfloat16 a[8], b[4];
    float c[4];
    uint32_t a_registers[4], b_registers[2];
    for (int i = 0; i < 8; i++) a[i] = in->a[row_of_a(i, group)][column_of_a(i, thread)];
    for (int i = 0; i < 4; i++) b[i] = in->b[row_of_b(i, thread)][group];
    for (int i = 0; i < 4; i++) c[i] = in->c[row_of_c(i, group)][column_of_c(i, thread)];
    memcpy(a_registers, a, sizeof a);
    memcpy(b_registers, b, sizeof b);
    mma_m16n8k16_bf16(c, a_registers, b_registers, c);
    for (int i = 0; i < 4; i++) out->d[row_of_c(i, group)][column_of_c(i, thread)] = c[i];
}

static void mma_multiplies_fragments_of_the_isa(void **) {
    Operands in;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) in.a[i][j] = __float2bfloat16(static_cast<float>((i * 7 + j * 3) % 11 - 5));
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            in.b[i][j] = __float2bfloat16(static_cast<float>((i * 5 + j * 2) % 13 - 6));
            in.c[i][j] = static_cast<float>(100 * i + j);
        }
    Product out = run_warp(multiply, in);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float expected = in.c[i][j];
            for (int k = 0; k < 16; k++) expected += __bfloat162float(in.a[i][k]) * __bfloat162float(in.b[k][j]);
            if (out.d[i][j] != expected) fail_msg("d[%d][%d] is %g, expected %g", i, j, out.d[i][j], expected);
        }
}

/* ---- ldmatrix ---------------------------------------------------------------------------------------------------- */

struct Matrices {
    uint16_t element[4][8][8];
};

struct Registers {
    uint16_t of_lane[32][4][2];
};

/* The rows of the matrices lie in shared memory in another order, 80 bytes apart. */
template <bool TRANSPOSED> __global__ void load_matrices(Registers *out, const Matrices *in) {
    CU_SHARED(uint4, rows, [32][5]);
    int lane = threadIdx.x, place = lane * 5 % 32;
    uint32_t r[4];
    memcpy(&rows[place][1], in->element[lane / 8][lane % 8], 16);
    __syncwarp();
    if (TRANSPOSED)
        ldmatrix_x4_trans(r, &rows[place][1]);
    else
        ldmatrix_x4(r, &rows[place][1]);
    memcpy(out->of_lane[lane], r, sizeof r);
}

template <bool TRANSPOSED> static void check_ldmatrix() {
    Matrices in;
    for (int i = 0; i < 256; i++) in.element[i / 64][i / 8 % 8][i % 8] = static_cast<uint16_t>(i);
    Registers out = run_warp(load_matrices<TRANSPOSED>, in);
    for (int lane = 0; lane < 32; lane++)
        for (int matrix = 0; matrix < 4; matrix++)
            for (int half = 0; half < 2; half++) {
                int row = lane / 4, column = lane % 4 * 2 + half;
                uint16_t expected = TRANSPOSED ? in.element[matrix][column][row] : in.element[matrix][row][column];
                if (out.of_lane[lane][matrix][half] != expected)
                    fail_msg("lane %d, matrix %d, half %d is %d, expected %d", lane, matrix, half,
                             out.of_lane[lane][matrix][half], expected);
            }
}

static void ldmatrix_gives_each_lane_a_pair_of_its_row(void **) {
    check_ldmatrix<false>();
}

static void ldmatrix_trans_gives_each_lane_a_pair_of_its_column(void **) {
    check_ldmatrix<true>();
}

/* ---- cp.async ---------------------------------------------------------------------------------------------------- */

struct Pieces {
    uint32_t word[2][32][4];
};

/* The second half is copied by odd lanes only; even lanes get zeros. */
__global__ void copy_pieces(Pieces *out, const Pieces *in) {
    CU_SHARED(uint4, pieces, [2][32]);
    int lane = threadIdx.x;
    cp_async16(&pieces[0][lane], in->word[0][lane]);
    cp_async_commit();
    cp_async16_or_zero(&pieces[1][lane], in->word[1][lane], lane % 2);
    cp_async_commit();
    cp_async_wait<1>();
    memcpy(out->word[0][lane], &pieces[0][lane], 16);
    cp_async_wait<0>();
    memcpy(out->word[1][lane], &pieces[1][lane], 16);
}

static void cp_async_copies_or_fills_with_zeros(void **) {
    Pieces in;
    for (int i = 0; i < 256; i++) in.word[i / 128][i / 4 % 32][i % 4] = static_cast<uint32_t>(i + 1);
    Pieces out = run_warp(copy_pieces, in);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, lane = i / 4 % 32;
        uint32_t expected = half == 0 || lane % 2 ? static_cast<uint32_t>(i + 1) : 0;
        if (out.word[half][lane][i % 4] != expected)
            fail_msg("word %d is %u, expected %u", i, out.word[half][lane][i % 4], expected);
    }
}

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(mma_multiplies_fragments_of_the_isa),
        cmocka_unit_test(ldmatrix_gives_each_lane_a_pair_of_its_row),
        cmocka_unit_test(ldmatrix_trans_gives_each_lane_a_pair_of_its_column),
        cmocka_unit_test(cp_async_copies_or_fills_with_zeros),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
