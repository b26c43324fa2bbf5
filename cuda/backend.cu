/* Backend "cuda": finding the device, its memory, copies, marks in time, and the table.
 *
 * The program starts without a driver: cudart is linked statically and loads libcuda itself, and cublasLt is opened by
 * gemm.cu once a device is there. Any error on the way to the device means "no GPU", and the Status says why.
 *
 * Copies and kernels share one stream, so they happen in the order of their calls:
 *
 *      from_host      caller's memory --memcpy--> pinned slot --stream--> device      waits only for a free slot
 *      to_host        device --stream--> pinned slot, wait, memcpy--> caller's memory
 *      to_host_later  device --stream--> the caller's pinned memory                   does not wait
 */
#include "cuda/cuda.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" {
#include "cuda/open.h"
}

/* Absent where another BLAS stands in for OpenBLAS. */
extern "C" void openblas_set_num_threads(int threads) __attribute__((weak));

const bool cuda_is_built = true;

#ifdef CUDA_ON_CPU
constexpr int64_t PEAK_SIZE = 64;
#else
constexpr int64_t PEAK_SIZE = 8192; /* 1.1 TFLOP: a millisecond or more, beside which waiting for the end is nothing */
#endif

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static void *alloc_zeroed(Backend *be, int64_t bytes) {
    const size_t size = bytes > 0 ? static_cast<size_t>(bytes) : 1; /* nullptr would mean out of memory */
    void *memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, size);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* the caller reports it: no failure of the device */
        return nullptr;
    }
    if (!cuda_check(be, "cudaMalloc", error)) return nullptr;
    if (cuda_check(be, "clearing memory", cudaMemsetAsync(memory, 0, size, cuda_state(be)->stream))) return memory;
    cudaFree(memory);
    return nullptr;
}

static void release(Backend *be, void *memory, int64_t) {
    cuda_check(be, "cudaFree", cudaFree(memory));
}

static int64_t free_bytes(Backend *) {
    size_t free_now = 0, total = 0;
    return cudaMemGetInfo(&free_now, &total) == cudaSuccess ? static_cast<int64_t>(free_now) : -1;
}

static void *alloc_host(Backend *, int64_t bytes) {
    void *memory = nullptr;
    if (cudaMallocHost(&memory, static_cast<size_t>(bytes)) == cudaSuccess) return memory;
    cudaGetLastError();
    return nullptr;
}

static void free_host(Backend *be, void *memory) {
    cuda_check(be, "cudaFreeHost", cudaFreeHost(memory));
}

/* ---- copies ------------------------------------------------------------------------------------------------------ */

constexpr int SLOTS = 16; /* two a micro-batch: the host may be eight of them ahead of the device */
constexpr int64_t SLOT_BYTES = 1 << 20;

/* The slots are taken in turns; `copied` is the end of the last copy from or to a slot. */
struct CudaStaging {
    char *memory;
    cudaEvent_t copied[SLOTS];
    int next;
};

static Status staging_open(CudaState *state) {
    CudaStaging *staging = static_cast<CudaStaging *>(calloc(1, sizeof *staging));
    if (!staging) return status_error(STATUS_OUT_OF_MEMORY, "no memory for the staging buffers of the cuda backend");
    state->staging = staging;
    void *memory = nullptr;
    cudaError_t error = cudaMallocHost(&memory, SLOTS * SLOT_BYTES);
    staging->memory = static_cast<char *>(memory);
    for (int slot = 0; slot < SLOTS && error == cudaSuccess; slot++)
        error = cudaEventCreateWithFlags(&staging->copied[slot], cudaEventDisableTiming);
    return cuda_status(error);
}

static void staging_close(CudaStaging *staging) {
    if (!staging) return;
    for (cudaEvent_t event : staging->copied)
        if (event) cudaEventDestroy(event);
    if (staging->memory) cudaFreeHost(staging->memory);
    free(staging);
}

static int take_slot(Backend *be) {
    CudaStaging *staging = cuda_state(be)->staging;
    const int slot = staging->next;
    staging->next = (slot + 1) % SLOTS;
    cuda_check(be, "waiting for a staging buffer", cudaEventSynchronize(staging->copied[slot]));
    return slot;
}

static void wait_for_all(Backend *be, const char *what) {
    cuda_check(be, what, cudaStreamSynchronize(cuda_state(be)->stream));
}

static void from_host(Backend *be, Tensor dst, const void *host) {
    CudaState *state = cuda_state(be);
    const int64_t bytes = tensor_bytes(dst);
    for (int64_t at = 0; at < bytes && !be->failure.code; at += SLOT_BYTES) {
        const size_t count = static_cast<size_t>(bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES);
        const int slot = take_slot(be);
        char *staged = state->staging->memory + slot * SLOT_BYTES;
        memcpy(staged, static_cast<const char *>(host) + at, count);
        cuda_check(
            be, "copy from host",
            cudaMemcpyAsync(static_cast<char *>(dst.data) + at, staged, count, cudaMemcpyHostToDevice, state->stream));
        cuda_check(be, "copy from host", cudaEventRecord(state->staging->copied[slot], state->stream));
    }
}

/* What is small, a step's statistics, arrives in pinned memory; the rest in whole, through the driver's own staging. */
static void to_host(Backend *be, void *host, Tensor src) {
    CudaState *state = cuda_state(be);
    const size_t bytes = static_cast<size_t>(tensor_bytes(src));
    const bool small = bytes <= static_cast<size_t>(SLOT_BYTES);
    void *target = small ? state->staging->memory + take_slot(be) * SLOT_BYTES : host;
    cuda_check(be, "copy to host", cudaMemcpyAsync(target, src.data, bytes, cudaMemcpyDeviceToHost, state->stream));
    wait_for_all(be, "an op before this copy to host");
    if (small) memcpy(host, target, bytes);
}

static void to_host_later(Backend *be, void *host, Tensor src) {
    cuda_check(be, "copy to host",
               cudaMemcpyAsync(host, src.data, static_cast<size_t>(tensor_bytes(src)), cudaMemcpyDeviceToHost,
                               cuda_state(be)->stream));
}

static void call_later(Backend *be, void (*function)(void *), void *argument) {
    if (!cuda_check(be, "calling the host", cudaLaunchHostFunc(cuda_state(be)->stream, function, argument)))
        function(argument);
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

static void mark(Backend *be, int which) {
    CudaState *state = cuda_state(be);
    cuda_check(be, "cudaEventRecord", cudaEventRecord(state->marks[which], state->stream));
}

static double elapsed(Backend *be, int from, int to) {
    const CudaState *state = cuda_state(be);
    float milliseconds = 0;
    const cudaError_t error = cudaEventElapsedTime(&milliseconds, state->marks[from], state->marks[to]);
    return cuda_check(be, "cudaEventElapsedTime", error) ? 1e-3 * static_cast<double>(milliseconds)
                                                         : static_cast<double>(NAN);
}

static Status wait_for_stream(Backend *be) {
    return cuda_status(cudaStreamSynchronize(cuda_state(be)->stream));
}

/* ---- scratch ----------------------------------------------------------------------------------------------------- */

int64_t cuda_scratch_bytes(const Backend *be, const OpLimits *limits) {
    static int64_t (*const families[])(const Backend *, const OpLimits *) = {
#define X(family) cuda_##family##_scratch_bytes,
        CUDA_FAMILIES(X)
#undef X
    };
    int64_t largest = 0;
    for (auto family : families) {
        const int64_t bytes = family(be, limits);
        if (bytes > largest) largest = bytes;
    }
    return largest;
}

/* ---- finding the device ------------------------------------------------------------------------------------------ */

constexpr int OLDEST_CAPABILITY = 80; /* Ampere: bf16 tensor cores and cp.async */

static Status no_gpu(cudaError_t error) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver); /* 0 without a driver */
    cudaRuntimeGetVersion(&runtime);
    switch (error) {
    case cudaErrorNoDevice:
        return status_error(STATUS_DEVICE, "there is no NVIDIA GPU that this process may use (is CUDA_VISIBLE_DEVICES "
                                           "set?)");
    case cudaErrorInsufficientDriver:
        if (driver == 0) return status_error(STATUS_DEVICE, "no NVIDIA driver is installed");
        return status_error(STATUS_DEVICE,
                            "the NVIDIA driver knows CUDA up to %d.%d, and this build needs %d.%d: update the driver",
                            driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    default:
        return status_error(STATUS_DEVICE, "the CUDA runtime finds no GPU: %s (%s)", cudaGetErrorString(error),
                            cudaGetErrorName(error));
    }
}

/* The first device that the process sees: CUDA_VISIBLE_DEVICES chooses. */
static Status find_device(cudaDeviceProp *properties) {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count == 0) error = cudaErrorNoDevice;
    if (error == cudaSuccess) error = cudaGetDeviceProperties(properties, 0);
    if (error == cudaSuccess) error = cudaSetDevice(0);
    if (error != cudaSuccess) {
        cudaGetLastError();
        return no_gpu(error);
    }
    if (10 * properties->major + properties->minor >= OLDEST_CAPABILITY) return status_ok();
    return status_error(STATUS_DEVICE, "%s has compute capability %d.%d; this backend needs %d.%d (Ampere) or newer",
                        properties->name, properties->major, properties->minor, OLDEST_CAPABILITY / 10,
                        OLDEST_CAPABILITY % 10);
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static void close_backend(Backend *be) {
    CudaState *state = cuda_state(be);
    if (!state) return;
    if (state->stream) cudaStreamSynchronize(state->stream);
    cuda_gemm_close(be);
    staging_close(state->staging);
    for (cudaEvent_t event : state->marks)
        if (event) cudaEventDestroy(event);
    if (state->stream) cudaStreamDestroy(state->stream);
    free(state);
    be->state = nullptr;
}

static Status open_stream(CudaState *state) {
    cudaError_t error = cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking);
    for (int i = 0; i < MARK_COUNT && error == cudaSuccess; i++) error = cudaEventCreate(&state->marks[i]);
    return error == cudaSuccess ? staging_open(state) : cuda_status(error);
}

static void fill_ops(BackendOps *ops) {
    *ops = {};
#define X(family) cuda_fill_##family(ops);
    CUDA_FAMILIES(X)
#undef X
    ops->alloc = alloc_zeroed;
    ops->free = release;
    ops->to_host = to_host;
    ops->from_host = from_host;
    ops->sync = wait_for_stream;
    ops->scratch_bytes = cuda_scratch_bytes;
    ops->close = close_backend;
    ops->free_bytes = free_bytes;
    ops->alloc_host = alloc_host;
    ops->free_host = free_host;
    ops->to_host_later = to_host_later;
    ops->call_later = call_later;
    ops->mark = mark;
    ops->elapsed = elapsed;
}

static void describe(Backend *be, const cudaDeviceProp *properties) {
    int runtime = 0;
    char library[48];
    cudaRuntimeGetVersion(&runtime);
    cuda_gemm_describe(be, library, sizeof library);
    snprintf(be->description, sizeof be->description, "%.64s, sm_%d%d, CUDA %d.%d, %s", properties->name,
             properties->major, properties->minor, runtime / 1000, runtime % 1000 / 10, library);
}

static Status open_on(Backend *be, const cudaDeviceProp *properties) {
    CudaState *state = cuda_state(be);
    Status status;
    state->device = 0;
    state->multiprocessors = properties->multiProcessorCount;
    state->compute_capability = 10 * properties->major + properties->minor;
    state->shared_limit = properties->sharedMemPerBlockOptin;
    if (FAILED(status, open_stream(state))) return status;
    if (FAILED(status, cuda_gemm_open(be))) return status;
    describe(be, properties);
    return status;
}

Status cuda_backend_open(Backend *be, BackendRequest request) {
    cudaDeviceProp properties = {};
    Status status = find_device(&properties);
    if (status.code) return status;
    be->state = calloc(1, sizeof(CudaState));
    if (!be->state) return status_error(STATUS_OUT_OF_MEMORY, "no memory for the state of the cuda backend");

    /* BLAS works for the probes, one matrix a thread; threads of its own would be in their way. */
    if (openblas_set_num_threads) openblas_set_num_threads(1);
    be->name = "cuda";
    be->compute_dtype = strcmp(request.precision, "fp32") == 0 ? DTYPE_F32 : DTYPE_BF16;
    be->threads = request.threads;
    be->peak_size = PEAK_SIZE;
    be->pieces = device_pieces;
    fill_ops(&be->ops);
    if (FAILED(status, open_on(be, &properties))) close_backend(be);
    return status;
}
