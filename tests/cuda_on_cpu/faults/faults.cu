/* Planted faults: small kernels, each in a sound and in a faulty form, that show what the harness catches.
 *
 *      cuda_faults NAME sound|faulty
 *
 * Exit status 0 and no output if the result is right; "wrong result" and 1 if not; the harness has statuses and
 * messages of its own. test_cuda_faults.c says which message each faulty form must end in, and that each sound form
 * passes.
 */
#include "cuda/ptx.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what the faults share --------------------------------------------------------------------------------------- */

static cudaStream_t stream;

static void require(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    printf("%s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

static void require_value(double got, double expected, int place) {
    if (got == expected) return;
    printf("wrong result: element %d is %g, expected %g\n", place, got, expected);
    exit(1);
}

static cudaLaunchConfig_t configuration(unsigned blocks, unsigned threads) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.stream = stream;
    return config;
}

/* Device memory with 0, 1, 2, ... in it. */
static float *device_numbers(int count) {
    float *device, *host = static_cast<float *>(malloc(sizeof(float) * count));
    for (int i = 0; i < count; i++) host[i] = static_cast<float>(i);
    require(cudaMalloc(reinterpret_cast<void **>(&device), sizeof(float) * count), "cudaMalloc");
    require(cudaMemcpyAsync(device, host, sizeof(float) * count, cudaMemcpyHostToDevice, stream), "copy");
    require(cudaStreamSynchronize(stream), "synchronize");
    free(host);
    return device;
}

/* Compares what the device holds with first, first + step, ... and frees it. */
static void expect_numbers(float *device, int count, float first, float step) {
    float *host = static_cast<float *>(malloc(sizeof(float) * count));
    require(cudaMemcpyAsync(host, device, sizeof(float) * count, cudaMemcpyDeviceToHost, stream), "copy");
    require(cudaStreamSynchronize(stream), "synchronize");
    for (int i = 0; i < count; i++) require_value(host[i], first + step * i, i);
    free(host);
    require(cudaFree(device), "cudaFree");
}

/* ---- barriers
 * -------------------------------------------------------------------------------------------------------- */

template <bool FAULTY> __global__ void reverse_block(float *x) {
    CU_SHARED(float, tile, [64]);
    int t = threadIdx.x;
    tile[t] = x[t];
    if (!FAULTY) __syncthreads();
    x[t] = tile[63 - t];
}

template <bool FAULTY> static void missing_barrier() {
    float *x = device_numbers(64);
    cudaLaunchConfig_t config = configuration(1, 64);
    require(cudaLaunchKernelEx(&config, reverse_block<FAULTY>, x), "launch");
    expect_numbers(x, 64, 63, -1);
}

/* The tile is filled again before everybody has read it. */
template <bool FAULTY> __global__ void rotate_tiles(float *x) {
    CU_SHARED(float, tile, [64]);
    int t = threadIdx.x;
    for (int row = 0; row < 4; row++) {
        tile[t] = x[row * 64 + t];
        __syncthreads();
        x[row * 64 + t] = tile[(t + 32) % 64];
        if (!FAULTY) __syncthreads();
    }
}

template <bool FAULTY> static void missing_barrier_before_reuse() {
    float *x = device_numbers(256);
    for (int i = 0; i < 2; i++) {
        cudaLaunchConfig_t config = configuration(1, 64);
        require(cudaLaunchKernelEx(&config, rotate_tiles<FAULTY>, x), "launch");
    }
    expect_numbers(x, 256, 0, 1);
}

template <bool FAULTY> __global__ void barrier_of_one_warp(float *x) {
    if (!FAULTY || threadIdx.x < 32) __syncthreads();
    x[threadIdx.x] += 1;
}

template <bool FAULTY> static void divergent_barrier() {
    float *x = device_numbers(64);
    cudaLaunchConfig_t config = configuration(1, 64);
    require(cudaLaunchKernelEx(&config, barrier_of_one_warp<FAULTY>, x), "launch");
    expect_numbers(x, 64, 1, 1);
}

template <bool FAULTY> __global__ void barrier_in_each_branch(float *x) {
    if (FAULTY && threadIdx.x % 2)
        __syncthreads();
    else
        __syncthreads();
    x[threadIdx.x] += 1;
}

template <bool FAULTY> static void barriers_in_two_branches() {
    float *x = device_numbers(64);
    cudaLaunchConfig_t config = configuration(1, 64);
    require(cudaLaunchKernelEx(&config, barrier_in_each_branch<FAULTY>, x), "launch");
    expect_numbers(x, 64, 1, 1);
}

/* ---- warps
 * ----------------------------------------------------------------------------------------------------------- */

/* The sum of 40 numbers by two warps, the second with 8 lanes. */
template <bool FAULTY> __global__ void sum_40(float *x) {
    CU_SHARED(float, partial, [2]);
    unsigned mask = !FAULTY && threadIdx.x >= 32 ? 0xffu : 0xffffffffu;
    int lanes = threadIdx.x < 32 || FAULTY ? 32 : 8;
    float sum = x[threadIdx.x];
    for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(mask, sum, step);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) x[0] = partial[0] + partial[1];
}

template <bool FAULTY> static void partial_warp_shuffle() {
    float *x = device_numbers(40);
    cudaLaunchConfig_t config = configuration(1, 40);
    require(cudaLaunchKernelEx(&config, sum_40<FAULTY>, x), "launch");
    expect_numbers(x, 1, 780, 0);
}

/* Lanes past `count` do not come to a shuffle that names them. */
template <bool FAULTY> __global__ void rotate_some_lanes(float *x, int count) {
    int t = threadIdx.x;
    float from = x[t];
    if (!FAULTY || t < count) from = __shfl_sync(0xffffffffu, from, (t + 1) % count);
    __syncthreads();
    if (t < count) x[t] = from;
}

template <bool FAULTY> static void absent_lanes() {
    float *x = device_numbers(32);
    cudaLaunchConfig_t config = configuration(1, 32);
    require(cudaLaunchKernelEx(&config, rotate_some_lanes<FAULTY>, x, 20), "launch");
    expect_numbers(x, 19, 1, 1);
}

template <bool FAULTY> __global__ void reverse_warp(float *x) {
    CU_SHARED(float, tile, [32]);
    int t = threadIdx.x;
    tile[t] = x[t];
    if (!FAULTY) __syncwarp();
    x[t] = tile[31 - t];
}

template <bool FAULTY> static void missing_syncwarp() {
    float *x = device_numbers(32);
    cudaLaunchConfig_t config = configuration(1, 32);
    require(cudaLaunchKernelEx(&config, reverse_warp<FAULTY>, x), "launch");
    expect_numbers(x, 32, 31, -1);
}

/* A shuffle after the write exchanges values of registers; it does not order memory. */
template <bool FAULTY> __global__ void reverse_after_shuffle(float *x) {
    CU_SHARED(float, tile, [32]);
    int t = threadIdx.x;
    tile[t] = x[t];
    float zero = __shfl_sync(0xffffffffu, x[t], 0);
    if (!FAULTY) __syncwarp();
    x[t] = tile[31 - t] + zero;
}

template <bool FAULTY> static void shuffle_as_fence() {
    float *x = device_numbers(32);
    cudaLaunchConfig_t config = configuration(1, 32);
    require(cudaLaunchKernelEx(&config, reverse_after_shuffle<FAULTY>, x), "launch");
    expect_numbers(x, 32, 31, -1);
}

/* ---- bounds, alignment
 * ------------------------------------------------------------------------------------------------ */

template <bool FAULTY> __global__ void add_next(float *x, int count) {
    int t = threadIdx.x;
    float next = t + (FAULTY ? 0 : 1) < count ? x[t + 1] : 0;
    __syncthreads();
    if (next != next) next = 0; /* so that the result is right whatever lies behind */
    x[t] += t + 1 < count ? next : static_cast<float>(t + 1);
}

template <bool FAULTY> static void out_of_bounds_read() {
    float *x = device_numbers(60);
    cudaLaunchConfig_t config = configuration(1, 60);
    require(cudaLaunchKernelEx(&config, add_next<FAULTY>, x, 60), "launch");
    expect_numbers(x, 60, 1, 2);
}

template <bool FAULTY> __global__ void write_tile(float *x) {
    CU_SHARED(float, tile, [64]);
    int t = threadIdx.x;
    tile[t + FAULTY] = x[t];
    __syncthreads();
    x[t] = tile[t + FAULTY];
}

template <bool FAULTY> static void shared_overrun() {
    float *x = device_numbers(64);
    cudaLaunchConfig_t config = configuration(1, 64);
    require(cudaLaunchKernelEx(&config, write_tile<FAULTY>, x), "launch");
    expect_numbers(x, 64, 0, 1);
}

template <bool FAULTY> __global__ void read_unwritten_tile(float *x) {
    CU_SHARED(float, tile, [65]);
    int t = threadIdx.x;
    tile[t] = x[t];
    __syncthreads();
    x[t] = tile[t + FAULTY] - FAULTY;
}

template <bool FAULTY> static void unwritten_shared_memory() {
    float *x = device_numbers(64);
    cudaLaunchConfig_t config = configuration(1, 64);
    require(cudaLaunchKernelEx(&config, read_unwritten_tile<FAULTY>, x), "launch");
    expect_numbers(x, 64, 0, 1);
}

template <bool FAULTY> __global__ void read_vector(float *y, const float *x) {
    float4 v = *reinterpret_cast<const float4 *>(x + (FAULTY ? 1 : 0));
    y[0] = v.x + v.y + v.z + v.w - (FAULTY ? 4 : 0);
}

template <bool FAULTY> static void misaligned_vector() {
    float *x = device_numbers(8), *y = device_numbers(1);
    cudaLaunchConfig_t config = configuration(1, 1);
    require(cudaLaunchKernelEx(&config, read_vector<FAULTY>, y, x), "launch");
    expect_numbers(y, 1, 6, 0);
}

template <bool FAULTY> static void freed_memory() {
    float *x = device_numbers(64);
    if (FAULTY) require(cudaFree(x), "cudaFree");
    cudaLaunchConfig_t config = configuration(1, 64);
    require(cudaLaunchKernelEx(&config, write_tile<false>, x), "launch");
    require(cudaStreamSynchronize(stream), "synchronize");
    expect_numbers(x, 64, 0, 1);
}

/* ---- races
 * ------------------------------------------------------------------------------------------------------------ */

/* All threads of the faulty form write the same value: the result is right in every order. */
template <bool FAULTY> __global__ void broadcast_count(float *x, float count) {
    CU_SHARED(float, value, [1]);
    if (FAULTY || threadIdx.x == 0) value[0] = count;
    __syncthreads();
    x[threadIdx.x] = value[0];
}

template <bool FAULTY> static void benign_race() {
    float *x = device_numbers(64);
    cudaLaunchConfig_t config = configuration(1, 64);
    require(cudaLaunchKernelEx(&config, broadcast_count<FAULTY>, x, 5.0f), "launch");
    expect_numbers(x, 64, 5, 0);
}

template <bool FAULTY> __global__ void write_from_all_blocks(float *x) {
    if (FAULTY || blockIdx.x == 0) x[threadIdx.x] = static_cast<float>(threadIdx.x);
}

template <bool FAULTY> static void race_between_blocks() {
    float *x = device_numbers(64);
    cudaLaunchConfig_t config = configuration(2, 64);
    require(cudaLaunchKernelEx(&config, write_from_all_blocks<FAULTY>, x), "launch");
    expect_numbers(x, 64, 0, 1);
}

template <bool FAULTY> __global__ void count_threads(int *count) {
    if (FAULTY)
        *count += 1;
    else
        atomicAdd(count, 1);
}

template <bool FAULTY> static void missing_atomic() {
    float *x = device_numbers(1);
    cudaLaunchConfig_t config = configuration(2, 64);
    require(cudaLaunchKernelEx(&config, count_threads<FAULTY>, reinterpret_cast<int *>(x)), "launch");
    int count;
    require(cudaMemcpyAsync(&count, x, sizeof count, cudaMemcpyDeviceToHost, stream), "copy");
    require(cudaStreamSynchronize(stream), "synchronize");
    require_value(count, 128, 0);
}

/* ---- cp.async
 * --------------------------------------------------------------------------------------------------------- */

/* Two tiles in flight; the last wait of the faulty form leaves the newest group in flight. */
template <bool FAULTY> __global__ void sum_of_two_tiles(float *y, const float *x) {
    CU_SHARED(float, tile, [2][128]);
    int t = threadIdx.x;
    for (int i = 0; i < 2; i++) {
        cp_async16(&tile[i][4 * t], x + 128 * i + 4 * t);
        cp_async_commit();
    }
    float sum = 0;
    cp_async_wait<1>();
    __syncthreads();
    sum += tile[0][127 - t];
    cp_async_wait<FAULTY ? 1 : 0>();
    __syncthreads();
    y[t] = sum + tile[1][t];
}

template <bool FAULTY> static void weak_async_wait() {
    float *x = device_numbers(256), *y = device_numbers(32);
    cudaLaunchConfig_t config = configuration(1, 32);
    require(cudaLaunchKernelEx(&config, sum_of_two_tiles<FAULTY>, y, static_cast<const float *>(x)), "launch");
    expect_numbers(y, 32, 255, 0);
}

/* The wait is for the thread's own copies; those of others need the barrier. */
template <bool FAULTY> __global__ void reverse_async(float *y, const float *x) {
    CU_SHARED(float, tile, [256]);
    int t = threadIdx.x;
    cp_async16(&tile[4 * t], x + 4 * t);
    cp_async_commit();
    cp_async_wait<0>();
    if (!FAULTY) __syncthreads();
    y[t] = tile[255 - t];
}

template <bool FAULTY> static void missing_barrier_after_async_wait() {
    float *x = device_numbers(256), *y = device_numbers(64);
    cudaLaunchConfig_t config = configuration(1, 64);
    require(cudaLaunchKernelEx(&config, reverse_async<FAULTY>, y, static_cast<const float *>(x)), "launch");
    expect_numbers(y, 64, 255, -1);
}

/* ---- the host
 * ---------------------------------------------------------------------------------------------------------- */

template <bool FAULTY> static void missing_stream_sync() {
    float *x = device_numbers(64), host[64] = {};
    require(cudaMemcpyAsync(host, x, sizeof host, cudaMemcpyDeviceToHost, stream), "copy");
    if (!FAULTY) require(cudaStreamSynchronize(stream), "synchronize");
    require_value(host[5], 5, 5);
}

template <bool FAULTY> static void host_memory_reused_too_early() {
    float *x = device_numbers(64), host[64];
    for (int i = 0; i < 64; i++) host[i] = static_cast<float>(2 * i);
    require(cudaMemcpyAsync(x, host, sizeof host, cudaMemcpyHostToDevice, stream), "copy");
    if (!FAULTY) require(cudaStreamSynchronize(stream), "synchronize");
    memset(host, 0, sizeof host);
    expect_numbers(x, 64, 0, 2);
}

/* One stream adds 1 to what the other has loaded. */
template <bool FAULTY> static void missing_event_wait() {
    float *x = device_numbers(64), host[64];
    cudaStream_t loading;
    cudaEvent_t loaded;
    for (int i = 0; i < 64; i++) host[i] = static_cast<float>(2 * i);
    require(cudaStreamCreateWithFlags(&loading, cudaStreamNonBlocking), "stream");
    require(cudaEventCreateWithFlags(&loaded, cudaEventDisableTiming), "event");
    require(cudaMemcpyAsync(x, host, sizeof host, cudaMemcpyHostToDevice, loading), "copy");
    require(cudaEventRecord(loaded, loading), "record");
    if (!FAULTY) require(cudaStreamWaitEvent(stream, loaded, 0), "wait");
    cudaLaunchConfig_t config = configuration(1, 64);
    require(cudaLaunchKernelEx(&config, barrier_of_one_warp<false>, x), "launch");
    require(cudaDeviceSynchronize(), "synchronize");
    require(cudaEventDestroy(loaded), "event");
    require(cudaStreamDestroy(loading), "stream");
    expect_numbers(x, 64, 1, 2);
}

template <bool FAULTY> static void host_touches_device_memory() {
    float *x = device_numbers(64), five = 0;
    if (FAULTY)
        five = x[5];
    else
        require(cudaMemcpy(&five, x + 5, sizeof five, cudaMemcpyDeviceToHost), "copy");
    require_value(five, 5, 5);
}

template <bool FAULTY> static void wrong_copy_kind() {
    float *x = device_numbers(64), host[64];
    require(cudaMemcpy(host, x, sizeof host, FAULTY ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost), "copy");
    require_value(host[5], 5, 5);
}

__global__ void use_dynamic_memory(float *x) {
    CU_SHARED_DYN(float, tile);
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = tile[threadIdx.x];
}

/* More than 48 KiB takes an attribute of the kernel. */
template <bool FAULTY> static void shared_memory_not_asked_for() {
    float *x = device_numbers(64);
    cudaLaunchConfig_t config = configuration(1, 64);
    config.dynamicSmemBytes = 64 * 1024;
    if (!FAULTY)
        require(cudaFuncSetAttribute(reinterpret_cast<const void *>(use_dynamic_memory),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024),
                "attribute");
    require(cudaLaunchKernelEx(&config, use_dynamic_memory, x), "launch");
    expect_numbers(x, 64, 0, 1);
}

/* ---- the list
 * ---------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*forms[2])(); /* sound, faulty */
} faults[] = {
#define FAULT(name) {#name, {name<false>, name<true>}},
#include "tests/cuda_on_cpu/faults/list.h"
#undef FAULT
};

int main(int count, char **arguments) {
    if (count != 3) return 2;
    require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    for (const auto &fault : faults) {
        if (strcmp(fault.name, arguments[1])) continue;
        fault.forms[!strcmp(arguments[2], "faulty")]();
        return 0;
    }
    printf("no fault \"%s\"\n", arguments[1]);
    return 2;
}
