/* What code of .cu files calls when it runs on the CPU: the entry points of the emulator. Kernels reach them through
 * device.h (CUDA's names) and ptx_on_cpu.h (the names of cuda/ptx.cuh).
 *
 * The emulator itself is never instrumented by a sanitizer; kernels are. So whatever reads or writes a kernel's data is
 * an inline function of these headers, compiled with the kernel, and is handed to the emulator as a pointer.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <tuple>
#include <type_traits>
#include <utility>

#include <cuda_runtime_api.h>

/* Variables, not macros: cudaLaunchConfig_t has members of these names. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulator {

/* Where a call stands, for messages. The default argument `Site site = {}` is the place of the kernel's own call. */
struct Site {
    const char *file;
    int line;
    Site(const char *file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line) {}
};

/* Prints the message and where in the grid it happened; ends the process with status 99. */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- collectives: a thread waits here until its block or its warp has come --------------------------------------- */

enum BarrierResult { BARRIER_NOTHING, BARRIER_COUNT, BARRIER_AND, BARRIER_OR }; /* of the threads' predicates */
int block_barrier(BarrierResult result, int predicate, Site site);

/* The last lane to come runs `exchange` for all: in[l] and out[l] are what lane l passed, NULL for lanes that did not
 * take part. All lanes of `mask` that have not exited must come, with the same operation, mask and place. */
typedef void (*Exchange)(unsigned mask, const void *const in[32], void *const out[32]);
void warp_collective(const char *operation, unsigned mask, const void *in, void *out, Exchange exchange, Site site);
void warp_barrier(unsigned mask, Site site);

int lane(); /* of the running thread, 0..31 */

/* ---- shared memory: filled with NaN when a block starts ---------------------------------------------------------- */

void *shared_static(const void *variable, size_t bytes, const char *name);
void *shared_dynamic();

/* An asynchronous copy: the target is spoilt at once and the copy lands in the wait that it must have landed by. */
struct AsyncCopy {
    void *shared;
    const void *global; /* NULL: zeros */
    void (*land)(void *shared, const void *global);
    int group;
};
void async_copy(AsyncCopy copy);
void async_commit();
void async_wait(int groups_still_in_flight);

/* ---- launches ---------------------------------------------------------------------------------------------------- */

struct Launch {
    const cudaLaunchConfig_t *config;
    const void *kernel;
    void (*call)(const void *kernel, const void *arguments); /* runs one thread */
    const void *arguments;
    size_t argument_bytes;
};
cudaError_t launch(const Launch &launch);

template <class... P> void call_kernel(const void *kernel, const void *arguments) {
    std::apply(reinterpret_cast<void (*)(P...)>(const_cast<void *>(kernel)),
               *static_cast<const std::tuple<P...> *>(arguments));
}

/* Arguments are converted to the kernel's parameter types and copied now, as CUDA does. */
template <class... P, class... A>
cudaError_t launch_kernel(const cudaLaunchConfig_t *config, void (*kernel)(P...), A &&...arguments) {
    static_assert((std::is_trivially_copyable<P>::value && ...), "kernel parameters are copied bytewise");
    const std::tuple<P...> values(std::forward<A>(arguments)...);
    return launch({config, reinterpret_cast<const void *>(kernel), call_kernel<P...>, &values, sizeof values});
}

/* Host work in stream order, for the stand-ins of libraries: `run` is called with `argument` when the stream gets to
 * it, and may touch device memory. */
void submit(cudaStream_t stream, void (*run)(void *argument), void *argument);

} // namespace emulator

#define cudaLaunchKernelEx ::emulator::launch_kernel
