/* Shared memory of the running block, and copies into it by cp.async.
 *
 * An array exists from the first time that a thread of the launch names it, and holds NaN when a block starts. Behind
 * it lies a margin, poisoned under AddressSanitizer and otherwise compared when the block ends:
 *
 *      | array | margin |
 *
 * A copy by cp.async may land at any time from its issue to the wait that orders it. Its target holds NaN at once, and
 * the value arrives in the last moment, so that a read which does not wait long enough gets NaN.
 */
#include "tests/cuda_on_cpu/internal.h"

#include <stdlib.h>
#include <string.h>

extern "C" __attribute__((weak)) void __asan_poison_memory_region(const volatile void *memory, size_t bytes);
extern "C" __attribute__((weak)) void __asan_unpoison_memory_region(const volatile void *memory, size_t bytes);

namespace emulator {

enum : size_t { MARGIN = 512, ALIGNMENT = 128 };

struct SharedArray {
    const void *variable; /* NULL: the dynamic part */
    const char *name;
    char *memory;
    size_t bytes;
};

static std::vector<SharedArray> arrays; /* of the running launch */

void fill_with_nan(void *memory, size_t bytes) {
    memset(memory, 0xff, bytes);
}

/* ---- arrays ------------------------------------------------------------------------------------------------------ */

static void check_size(size_t static_bytes, size_t dynamic_bytes) {
    if (static_bytes > SHARED_WITHOUT_ASKING)
        fail("%zu bytes of static shared memory; the most is %d", static_bytes, SHARED_WITHOUT_ASKING);
    if (static_bytes + dynamic_bytes > SHARED_LIMIT)
        fail("%zu bytes of shared memory; a block can have %d", static_bytes + dynamic_bytes, SHARED_LIMIT);
}

static void *add_array(const void *variable, const char *name, size_t bytes) {
    void *memory;
    if (posix_memalign(&memory, ALIGNMENT, bytes + MARGIN)) fail("no memory for %zu bytes of shared memory", bytes);
    fill_with_nan(memory, bytes + MARGIN);
    if (__asan_poison_memory_region) __asan_poison_memory_region(static_cast<char *>(memory) + bytes, MARGIN);
    if (race_checker) race_checker->add_memory(memory, bytes, name);
    arrays.push_back({variable, name, static_cast<char *>(memory), bytes});
    size_t total[2] = {}; /* static, dynamic */
    for (const SharedArray &array : arrays) total[array.variable == nullptr] += array.bytes;
    check_size(total[0], total[1]);
    return memory;
}

void *shared_static(const void *variable, size_t bytes, const char *name) {
    for (const SharedArray &array : arrays)
        if (array.variable == variable) return array.memory;
    return add_array(variable, name, bytes);
}

void *shared_dynamic() {
    if (arrays.empty() || arrays.front().variable) fail("the kernel uses dynamic shared memory; its launch gives none");
    return arrays.front().memory;
}

static void check_margin(const SharedArray &array) {
    if (__asan_poison_memory_region) return;
    for (size_t i = 0; i < MARGIN; i++)
        if (array.memory[array.bytes + i] != '\xff')
            fail("shared memory overrun: byte %zu behind the %zu bytes of \"%s\" was written", i, array.bytes,
                 array.name);
}

void shared_start_launch(size_t dynamic_bytes) {
    if (dynamic_bytes) add_array(nullptr, "dynamic shared memory", dynamic_bytes);
}

void shared_start_block() {
    for (const SharedArray &array : arrays) fill_with_nan(array.memory, array.bytes);
}

void shared_end_block() {
    for (const SharedArray &array : arrays) check_margin(array);
}

void shared_end_launch() {
    for (const SharedArray &array : arrays) {
        if (race_checker) race_checker->remove_memory(array.memory);
        if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(array.memory + array.bytes, MARGIN);
        free(array.memory);
    }
    arrays.clear();
}

/* ---- cp.async ---------------------------------------------------------------------------------------------------- */

void async_copy(AsyncCopy copy) {
    copy.group = running_thread->copy_groups;
    running_thread->copies.push_back(copy);
}

void async_commit() {
    running_thread->copy_groups++;
}

/* Lands in the order of issue. */
void async_wait(int groups_still_in_flight) {
    std::vector<AsyncCopy> &copies = running_thread->copies;
    int landed_groups = running_thread->copy_groups - groups_still_in_flight;
    size_t landed = 0;
    for (; landed < copies.size() && copies[landed].group < landed_groups; landed++)
        copies[landed].land(copies[landed].shared, copies[landed].global);
    copies.erase(copies.begin(), copies.begin() + static_cast<ptrdiff_t>(landed));
}

} // namespace emulator
