/* What the environment chooses: the order in which threads and streams take turns, and what the device is like at start
 * (control.h).
 *
 *      CUDA_ON_CPU_ORDER=forward|reverse|SEED      a program that is right gives the same result in every order
 *      CUDA_ON_CPU_DEVICE=none                     as on a machine without a driver
 *      CUDA_ON_CPU_MEMORY=BYTES                    that cudaMalloc has to give
 *      CUDA_ON_CPU_PROTECT=1                       host code that touches device memory stops with a message
 *      CUDA_ON_CPU_LAUNCHES=FILE                   launches.cc
 *      CUDA_ON_CPU_LAUNCHES_ONLY=1                 records launches and runs no kernel
 */
#include "tests/cuda_on_cpu/internal.h"

#include <stdlib.h>
#include <string.h>

namespace emulator {

static uint64_t random_state;

static Order read_order() {
    const char *order = getenv("CUDA_ON_CPU_ORDER");
    if (!order || !strcmp(order, "forward")) return ORDER_FORWARD;
    if (!strcmp(order, "reverse")) return ORDER_REVERSE;
    char *end;
    random_state = strtoull(order, &end, 10);
    if (end == order || *end) fail("CUDA_ON_CPU_ORDER is \"%s\"; use forward, reverse or a seed", order);
    return ORDER_RANDOM;
}

static bool is_set(const char *name) {
    const char *value = getenv(name);
    return value && strcmp(value, "0") != 0;
}

const Options options = {read_order(), is_set("CUDA_ON_CPU_PROTECT"), getenv("CUDA_ON_CPU_LAUNCHES"),
                         is_set("CUDA_ON_CPU_LAUNCHES_ONLY")};

static CudaOnCpu read_device() {
    CudaOnCpu device = {0, 13000, 90, static_cast<int64_t>(8) << 30, 0, 0};
    const char *bytes = getenv("CUDA_ON_CPU_MEMORY"), *which = getenv("CUDA_ON_CPU_DEVICE");
    if (bytes) device.memory_bytes = strtoll(bytes, nullptr, 10);
    if (which && !strcmp(which, "none")) {
        device.device_count_error = cudaErrorInsufficientDriver;
        device.driver_version = 0;
    }
    return device;
}

/* splitmix64 (Steele, Lea & Flood 2014). */
size_t random_below(size_t limit) {
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (z ^ z >> 31) % limit;
}

} // namespace emulator

CudaOnCpu cuda_on_cpu = emulator::read_device();
