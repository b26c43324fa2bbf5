/* The list of launches, for scripts/cuda_gate.py: block sizes and dynamic shared memory are known to host code alone.
 * With CUDA_ON_CPU_LAUNCHES=FILE every launch that differs from those before it appends a line to FILE:
 *
 *      PROGRAM  address of the kernel in PROGRAM, hexadecimal  threads of a block  bytes of dynamic shared memory
 */
#include "tests/cuda_on_cpu/internal.h"

#include <stdio.h>
#include <unistd.h>

#include <set>
#include <tuple>

extern "C" char __executable_start[]; /* by the linker */

namespace emulator {

static void append_line(const void *kernel, unsigned threads, size_t dynamic_bytes) {
    char program[500] = "";
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) fail("/proc/self/exe cannot be read");
    FILE *list = fopen(options.launches, "a");
    if (!list) fail("%s cannot be written", options.launches);
    fprintf(list, "%s %zx %u %zu\n", program,
            static_cast<size_t>(static_cast<const char *>(kernel) - __executable_start), threads, dynamic_bytes);
    fclose(list);
}

void record_launch(const void *kernel, dim3 block, size_t dynamic_bytes) {
    static std::set<std::tuple<const void *, unsigned, size_t>> seen;
    unsigned threads = block.x * block.y * block.z;
    if (options.launches && seen.insert({kernel, threads, dynamic_bytes}).second)
        append_line(kernel, threads, dynamic_bytes);
}

} // namespace emulator
