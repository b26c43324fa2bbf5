/* Device memory, pinned host memory, copies and fills.
 *
 *      | guard page | NaN ... NaN  | guard page |        an allocation ends at its guard, as far as 256-byte alignment
 *                    ^ 256-byte aligned                   allows; under AddressSanitizer the rest is poisoned
 *
 * A fresh allocation holds NaN. With CUDA_ON_CPU_PROTECT=1 device memory is mapped for access only while device work
 * runs (DeviceWork): elsewhere host code that touches it gets a fault, as it would on a machine with a GPU.
 */
#include "tests/cuda_on_cpu/internal.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <map>

extern "C" __attribute__((weak)) void __asan_poison_memory_region(const volatile void *memory, size_t bytes);
extern "C" __attribute__((weak)) void __asan_unpoison_memory_region(const volatile void *memory, size_t bytes);

namespace emulator {

enum : size_t { PAGE = 4096, ALIGNMENT = 256 };

struct Allocation {
    size_t bytes;
    char *mapping; /* device: from the first guard page on; pinned: NULL */
    size_t mapping_bytes;
};

static std::map<const char *, Allocation> device_memory, pinned_memory;
static size_t used_bytes;
static int device_works; /* nested */

/* ---- protection -------------------------------------------------------------------------------------------------- */

static void protect(const Allocation &allocation, int protection) {
    if (mprotect(allocation.mapping + PAGE, allocation.mapping_bytes - 2 * PAGE, protection))
        fail("mprotect of %zu bytes failed", allocation.bytes);
}

static void protect_all(int protection) {
    if (!options.protect) return;
    for (const auto &entry : device_memory) protect(entry.second, protection);
}

static void explain_fault(int, siginfo_t *info, void *) {
    const char *address = static_cast<const char *>(info->si_addr);
    for (const auto &entry : device_memory) {
        const Allocation &allocation = entry.second;
        if (static_cast<size_t>(address - allocation.mapping) >= allocation.mapping_bytes) continue;
        if (!device_works)
            fail("host code touches device memory at %p, byte %td of %zu", info->si_addr, address - entry.first,
                 allocation.bytes);
        fail("access out of bounds at %p: byte %td of an allocation of %zu", info->si_addr, address - entry.first,
             allocation.bytes);
    }
    fail(is_on_fiber_stack(address) ? "stack overflow at %p" : "segmentation fault at %p", info->si_addr);
}

/* Not under AddressSanitizer, which explains faults itself. On a stack of its own: the fault may be the stack's. */
static struct sigaction install_fault_handler() {
    static char stack[64 << 10];
    stack_t alternate = {};
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, nullptr);
    struct sigaction action = {}, before = {};
    action.sa_sigaction = explain_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before);
    return before;
}

static struct sigaction handler_of_host;

__attribute__((constructor)) static void start() {
    if (!__asan_poison_memory_region) install_fault_handler();
}

/* A test framework may have put its own handler in our place; during device work a fault is ours. */
DeviceWork::DeviceWork() {
    if (device_works++) return;
    protect_all(PROT_READ | PROT_WRITE);
    if (!__asan_poison_memory_region) handler_of_host = install_fault_handler();
}

DeviceWork::~DeviceWork() {
    if (--device_works) return;
    protect_all(PROT_NONE);
    if (!__asan_poison_memory_region) sigaction(SIGSEGV, &handler_of_host, nullptr);
}

/* ---- device memory ----------------------------------------------------------------------------------------------- */

static bool is_within(const std::map<const char *, Allocation> &memory, const void *start, size_t bytes) {
    const char *first = static_cast<const char *>(start);
    auto next = memory.upper_bound(first);
    if (next == memory.begin()) return false;
    auto entry = std::prev(next);
    return first + bytes <= entry->first + entry->second.bytes;
}

static bool is_device(const void *start, size_t bytes) {
    return is_within(device_memory, start, bytes);
}

/* The bytes of the mapping around the allocation, guard pages apart. */
static void poison_margins(const char *memory, const Allocation &allocation) {
    if (!__asan_poison_memory_region) return;
    const char *first = allocation.mapping + PAGE, *last = allocation.mapping + allocation.mapping_bytes - PAGE;
    __asan_poison_memory_region(first, static_cast<size_t>(memory - first));
    __asan_poison_memory_region(memory + allocation.bytes, static_cast<size_t>(last - memory) - allocation.bytes);
}

static size_t free_bytes() {
    size_t total = static_cast<size_t>(cuda_on_cpu.memory_bytes);
    return total > used_bytes ? total - used_bytes : 0;
}

static cudaError_t allocate(void **memory, size_t bytes) {
    *memory = nullptr;
    if (bytes == 0) return cudaSuccess;
    size_t aligned = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, pages = (aligned + PAGE - 1) / PAGE * PAGE;
    if (aligned < bytes || aligned > free_bytes()) return report_error(cudaErrorMemoryAllocation);
    void *mapping = mmap(nullptr, pages + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return report_error(cudaErrorMemoryAllocation);
    Allocation allocation = {bytes, static_cast<char *>(mapping), pages + 2 * PAGE};
    char *start = allocation.mapping + PAGE + pages - aligned;
    protect(allocation, PROT_READ | PROT_WRITE);
    fill_with_nan(start, bytes);
    poison_margins(start, allocation);
    if (options.protect && !device_works) protect(allocation, PROT_NONE);
    if (race_checker) race_checker->add_memory(start, bytes, nullptr);
    device_memory[start] = allocation;
    used_bytes += aligned;
    *memory = start;
    return cudaSuccess;
}

static void release(std::map<const char *, Allocation>::iterator entry) {
    const Allocation &allocation = entry->second;
    if (race_checker) race_checker->remove_memory(entry->first);
    if (__asan_unpoison_memory_region)
        __asan_unpoison_memory_region(allocation.mapping + PAGE, allocation.mapping_bytes - 2 * PAGE);
    munmap(allocation.mapping, allocation.mapping_bytes);
    used_bytes -= (allocation.bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    device_memory.erase(entry);
}

/* ---- copies ------------------------------------------------------------------------------------------------------ */

static bool is_kind_right(const void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    bool to_device = is_device(to, bytes), from_device = is_device(from, bytes);
    switch (kind) {
    case cudaMemcpyHostToHost:
        return !to_device && !from_device;
    case cudaMemcpyHostToDevice:
        return to_device && !from_device;
    case cudaMemcpyDeviceToHost:
        return !to_device && from_device;
    case cudaMemcpyDeviceToDevice:
        return to_device && from_device;
    case cudaMemcpyDefault:
        return true;
    }
    return false;
}

static void tell_race_checker(const void *memory, size_t bytes, bool write) {
    if (race_checker && is_device(memory, bytes)) race_checker->host_access(memory, bytes, write);
}

struct Rows {
    void *to;
    const void *from; /* NULL: fill */
    size_t to_pitch, from_pitch, width, height;
    int value;
};

static void move_rows(void *argument) {
    Rows rows = *static_cast<Rows *>(argument);
    delete static_cast<Rows *>(argument);
    for (size_t y = 0; y < rows.height; y++) {
        void *to = static_cast<char *>(rows.to) + y * rows.to_pitch;
        const void *from = static_cast<const char *>(rows.from) + y * rows.from_pitch;
        if (rows.from) tell_race_checker(from, rows.width, false);
        tell_race_checker(to, rows.width, true);
        if (rows.from)
            memcpy(to, from, rows.width);
        else
            memset(to, rows.value, rows.width);
    }
}

static cudaError_t copy_rows(Rows rows, cudaMemcpyKind kind, cudaStream_t stream) {
    if (rows.width == 0 || rows.height == 0) return cudaSuccess;
    size_t to_bytes = (rows.height - 1) * rows.to_pitch + rows.width;
    size_t from_bytes = (rows.height - 1) * rows.from_pitch + rows.width;
    if (rows.width > rows.to_pitch || rows.width > rows.from_pitch) return report_error(cudaErrorInvalidPitchValue);
    if (!is_kind_right(rows.to, rows.from, to_bytes < from_bytes ? to_bytes : from_bytes, kind))
        return report_error(cudaErrorInvalidValue);
    submit(stream, move_rows, new Rows(rows));
    return cudaSuccess;
}

} // namespace emulator

using namespace emulator;

extern "C" {

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    return allocate(memory, bytes);
}

cudaError_t cudaFree(void *memory) {
    if (!memory) return cudaSuccess;
    cuda_on_cpu.waits++;
    run_all_streams();
    auto entry = device_memory.find(static_cast<char *>(memory));
    if (entry == device_memory.end()) return report_error(cudaErrorInvalidValue);
    release(entry);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **memory, size_t bytes) {
    *memory = malloc(bytes);
    if (!*memory) return report_error(cudaErrorMemoryAllocation);
    pinned_memory[static_cast<char *>(*memory)] = {bytes, nullptr, 0};
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned) {
    return cudaMallocHost(memory, bytes);
}

cudaError_t cudaFreeHost(void *memory) {
    run_all_streams();
    if (!memory) return cudaSuccess;
    if (!pinned_memory.erase(static_cast<char *>(memory))) return report_error(cudaErrorInvalidValue);
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) {
    *unused = free_bytes();
    *total = static_cast<size_t>(cuda_on_cpu.memory_bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy_rows({to, from, bytes, bytes, bytes, 1, 0}, kind, stream);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return error ? error : cudaStreamSynchronize(nullptr);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy_rows({to, from, to_pitch, from_pitch, width, height, 0}, kind, stream);
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
    if (bytes == 0) return cudaSuccess;
    if (!is_device(memory, bytes)) return report_error(cudaErrorInvalidValue);
    submit(stream, move_rows, new Rows{memory, nullptr, bytes, bytes, bytes, 1, value});
    return cudaSuccess;
}

cudaError_t cudaMemset(void *memory, int value, size_t bytes) {
    cudaError_t error = cudaMemsetAsync(memory, value, bytes, nullptr);
    return error ? error : cudaStreamSynchronize(nullptr);
}

} // extern "C"
