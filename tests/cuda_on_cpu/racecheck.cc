/* The race checker: sees every load and store of a kernel and reports
 *
 *   * a race: two threads touch an address, one of them writes, and nothing orders them;
 *   * a read of memory that nobody has written;
 *   * an access outside every device allocation and shared array, or not aligned to its size.
 *
 * Kernels are compiled with -fsanitize=thread, which puts a call of __tsan_read4 and the like before every access.
 * These functions are ours; the library that usually holds them knows nothing of CUDA's rules, which are:
 *
 *      two blocks of a launch            nothing orders them
 *      two threads of a block            __syncthreads
 *      two lanes of a warp               also __syncwarp of a mask that holds both; shuffles and votes order nothing
 *      atomic against atomic             never a race
 *
 * So a missing barrier is found in every schedule, even where the result came out right.
 *
 * Two bytes of memory have a cell, which knows the last write and the reads since:
 *
 *      write, read:  [ block run | barriers passed | warp | lanes | clock | flags | code address ]
 *
 * Every lane has a clock, which its __syncwarp advances; knows[a][b] is how far lane a has heard of lane b. An access
 * of lane b at its clock c comes before what lane a does now if knows[a][b] > c. Of several lanes that have read, the
 * cell keeps the set and the latest clock.
 *
 * Bytes of one cell are not told apart: kernels have no data smaller than two bytes.
 */
#include "tests/cuda_on_cpu/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <map>
#include <set>
#include <utility>

extern "C" char __executable_start[], _end[]; /* by the linker */

namespace emulator {

enum : size_t { CELL_BYTES = 2 };
enum { STATUS_OF_RACES = 66, REPORT_LIMIT = 20 };
enum AccessFlags : uint8_t { ATOMIC = 1, BY_MANY_WARPS = 2, BY_MANY_BLOCKS = 4 };

struct Access {
    uint32_t run; /* serial number of the block run, over all launches; 0: none yet */
    uint32_t barriers;
    uint32_t lanes;
    uint32_t clock;
    uint32_t code; /* offset in the program */
    uint8_t warp, flags;
};

struct Cell {
    Access write, read;
};

struct Memory {
    const char *start;
    size_t bytes;
    const char *shared_name; /* NULL: device memory */
    Cell *cells;   /* costs real memory only where kernels go: zeroed pages that nobody touches are not there */
    char *written; /* device memory, of each cell: by a kernel or by the host */
};

struct WarpClocks {
    uint32_t knows[32][32];
};

static std::map<const char *, Memory> &memories = *new std::map<const char *, Memory>;
static const Memory *last_found;
static uint32_t block_run = 1, first_run_of_launch = 1, barriers_passed;
static WarpClocks clocks[32];
static int findings;

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static void add_memory(const void *start, size_t bytes, const char *shared_name) {
    size_t count = (bytes + CELL_BYTES - 1) / CELL_BYTES;
    Cell *cells = static_cast<Cell *>(calloc(count, sizeof(Cell)));
    char *written = static_cast<char *>(calloc(count, 1));
    if (!cells || !written) fail("no memory for the race checker's cells of %zu bytes", bytes);
    memories[static_cast<const char *>(start)] = {static_cast<const char *>(start), bytes, shared_name, cells, written};
    last_found = nullptr;
}

static void remove_memory(const void *start) {
    auto entry = memories.find(static_cast<const char *>(start));
    if (entry == memories.end()) return;
    free(entry->second.cells);
    free(entry->second.written);
    memories.erase(entry);
    last_found = nullptr;
}

static bool is_inside(const Memory *memory, const char *address) {
    return static_cast<size_t>(address - memory->start) < memory->bytes;
}

static const Memory *find_memory(const char *address) {
    if (last_found && is_inside(last_found, address)) return last_found;
    auto next = memories.upper_bound(address);
    if (next == memories.begin()) return nullptr;
    const Memory *memory = &std::prev(next)->second;
    return is_inside(memory, address) ? last_found = memory : nullptr;
}

/* ---- what orders accesses ---------------------------------------------------------------------------------------- */

static void start_launch() {
    first_run_of_launch = block_run + 1;
}

static void start_block() {
    block_run++;
    barriers_passed = 0;
    for (size_t w = 0; w < running_block.warps.size(); w++) {
        memset(&clocks[w], 0, sizeof clocks[w]);
        for (int l = 0; l < 32; l++) clocks[w].knows[l][l] = 1;
    }
}

static void pass_block_barrier() {
    barriers_passed++;
}

/* The lanes of the mask learn what any of them knows, then each goes one step on. */
static void pass_warp_barrier(int warp, unsigned mask) {
    auto &knows = clocks[warp].knows;
    uint32_t together[32] = {};
    for (int l = 0; l < 32; l++)
        for (int other = 0; mask >> l & 1 && other < 32; other++)
            if (knows[l][other] > together[other]) together[other] = knows[l][other];
    for (int l = 0; l < 32; l++)
        for (int other = 0; mask >> l & 1 && other < 32; other++)
            knows[l][other] = together[other] + (mask >> other & 1);
}

static Access access_now(bool atomic, uint32_t code) {
    Access now = {};
    int id = running_thread->id;
    now.run = block_run;
    now.barriers = barriers_passed;
    now.warp = static_cast<uint8_t>(id / 32);
    now.lanes = 1u << id % 32;
    now.clock = clocks[id / 32].knows[id % 32][id % 32];
    now.flags = atomic ? ATOMIC : 0;
    now.code = code;
    return now;
}

/* Of the same block and between the same barriers: whether the running lane has heard of all lanes of `before`. */
static bool knows_of(const Access &before) {
    int lane_now = running_thread->id % 32;
    if (before.flags & BY_MANY_WARPS || before.warp != running_thread->id / 32) return false;
    for (unsigned others = before.lanes & ~(1u << lane_now); others; others &= others - 1)
        if (clocks[before.warp].knows[lane_now][__builtin_ctz(others)] <= before.clock) return false;
    return true;
}

static bool is_ordered(const Access &before, const Access &now) {
    if (before.run < first_run_of_launch) return true;
    if (before.flags & ATOMIC && now.flags & ATOMIC) return true;
    if (before.run != now.run || before.flags & BY_MANY_BLOCKS) return false;
    return before.barriers != now.barriers || knows_of(before);
}

/* The reads before and this one as one access: what a later write has to be ordered after. */
static Access join_reads(const Access &before, Access now) {
    if (before.run < first_run_of_launch) return now;
    if (before.run != now.run) {
        now.flags |= BY_MANY_BLOCKS;
        return now;
    }
    now.flags |= before.flags & BY_MANY_BLOCKS;
    if (before.barriers != now.barriers || knows_of(before)) return now;
    now.flags |= before.flags & BY_MANY_WARPS;
    now.flags &= before.flags | ~ATOMIC; /* of several reads the one that is not atomic counts */
    if (before.warp != now.warp) now.flags |= BY_MANY_WARPS;
    now.lanes |= before.lanes;
    if (before.clock > now.clock) now.clock = before.clock;
    return now;
}

/* ---- reports ----------------------------------------------------------------------------------------------------- */

static void describe_access(const Access &access, char *text, size_t size) {
    int count = __builtin_popcount(access.lanes), length;
    char code[500];
    describe_code(__executable_start + access.code, code, sizeof code);
    length = snprintf(text, size, "thread %d", access.warp * 32 + __builtin_ctz(access.lanes));
    if (count > 1 || access.flags & BY_MANY_WARPS)
        length += snprintf(text + length, size - static_cast<size_t>(length), " and others");
    if (access.run != block_run)
        length += snprintf(text + length, size - static_cast<size_t>(length), " of another block");
    snprintf(text + length, size - static_cast<size_t>(length), ", %s", code);
}

static void describe_place(const void *address, char *text, size_t size) {
    const Memory *memory = find_memory(static_cast<const char *>(address));
    if (!memory) {
        snprintf(text, size, "%p", address);
        return;
    }
    snprintf(text, size, "byte %td of %zu of %s", static_cast<const char *>(address) - memory->start, memory->bytes,
             memory->shared_name ? memory->shared_name : "a device allocation");
}

/* Each pair of code places once. */
static void report(const char *what, const void *address, bool write, const Access &now, const Access *before,
                   const char *before_did) {
    static std::set<std::pair<uint64_t, const char *>> &reported = *new std::set<std::pair<uint64_t, const char *>>;
    uint64_t places = static_cast<uint64_t>(now.code) << 32 | (before ? before->code : 0);
    if (!reported.insert({places, what}).second || findings++ >= REPORT_LIMIT) return;
    char text[700], place[200];
    describe_place(address, place, sizeof place);
    describe_access(now, text, sizeof text);
    fprintf(stderr, "cuda-on-cpu: %s\n  %s of %s, by %s\n", what, write ? "write" : "read", place, text);
    if (!before) return;
    describe_access(*before, text, sizeof text);
    fprintf(stderr, "  after a %s by %s\n", before_did, text);
}

__attribute__((destructor)) static void end() {
    if (findings == 0) return;
    fprintf(stderr, "cuda-on-cpu: the race checker has %d findings\n", findings);
    fflush(nullptr);
    _exit(STATUS_OF_RACES);
}

/* ---- one access -------------------------------------------------------------------------------------------------- */

static const char *race_in(const Memory *memory, const Access &before, const Access &now) {
    if (before.run != now.run || before.flags & BY_MANY_BLOCKS) return "race between blocks";
    return memory->shared_name ? "race in shared memory" : "race in global memory";
}

/* Shared memory starts anew with every block. */
static Cell &cell_of(const Memory *memory, size_t i) {
    Cell &cell = memory->cells[i];
    if (memory->shared_name && cell.write.run != block_run) cell.write = {};
    if (memory->shared_name && cell.read.run != block_run) cell.read = {};
    return cell;
}

static bool was_written(const Memory *memory, size_t i) {
    return memory->shared_name ? memory->cells[i].write.run : memory->written[i];
}

static void check_read(const Memory *memory, size_t i, const void *address, const Access &now) {
    Cell &cell = cell_of(memory, i);
    if (!was_written(memory, i))
        report(memory->shared_name ? "read of shared memory that was not written"
                                   : "read of device memory that was not written",
               address, false, now, nullptr, nullptr);
    else if (!is_ordered(cell.write, now))
        report(race_in(memory, cell.write, now), address, false, now, &cell.write, "write");
    cell.read = join_reads(cell.read, now);
}

static void check_write(const Memory *memory, size_t i, const void *address, const Access &now) {
    Cell &cell = cell_of(memory, i);
    if (!is_ordered(cell.write, now))
        report(race_in(memory, cell.write, now), address, true, now, &cell.write, "write");
    if (!is_ordered(cell.read, now)) report(race_in(memory, cell.read, now), address, true, now, &cell.read, "read");
    cell.write = now;
    memory->written[i] = 1;
}

static void check(const void *address, size_t bytes, bool write, bool atomic, const void *code) {
    if (!running_thread || is_on_fiber_stack(address)) return;
    const char *first = static_cast<const char *>(address);
    const Memory *memory = find_memory(first);
    Access now = access_now(atomic, static_cast<uint32_t>(static_cast<const char *>(code) - __executable_start - 1));
    if (!memory && first >= __executable_start && first < _end) return; /* constants, kernel arguments */
    if (!memory || !is_inside(memory, first + bytes - 1)) {
        report("access outside every device allocation and shared array", address, write, now, nullptr, nullptr);
        return;
    }
    size_t offset = static_cast<size_t>(first - memory->start);
    for (size_t i = offset / CELL_BYTES; i <= (offset + bytes - 1) / CELL_BYTES; i++)
        if (write)
            check_write(memory, i, address, now);
        else
            check_read(memory, i, address, now);
}

static void check_aligned(const void *address, size_t bytes, bool write, bool atomic, const void *code) {
    if (running_thread && reinterpret_cast<uintptr_t>(address) % bytes && !is_on_fiber_stack(address))
        report("misaligned access", address, write,
               access_now(atomic, static_cast<uint32_t>(static_cast<const char *>(code) - __executable_start - 1)),
               nullptr, nullptr);
    check(address, bytes, write, atomic, code);
}

/* Copies and fills by the host's API. They lie between launches, which orders them with everything. */
static void note_host_access(const void *start, size_t bytes, bool write) {
    const Memory *memory = find_memory(static_cast<const char *>(start));
    if (!memory || !write) return;
    size_t first = static_cast<size_t>(static_cast<const char *>(start) - memory->start) / CELL_BYTES;
    memset(memory->written + first, 1, (bytes + CELL_BYTES - 1) / CELL_BYTES);
}

static const RaceChecker checker = {add_memory,         remove_memory,     start_launch,    start_block,
                                    pass_block_barrier, pass_warp_barrier, note_host_access};

__attribute__((constructor(101))) static void start() {
    race_checker = &checker;
}

} // namespace emulator

/* ---- the functions that -fsanitize=thread calls ------------------------------------------------------------------ */

#define CODE __builtin_return_address(0)
#define ACCESS(bytes)                                                                                                  \
    void __tsan_read##bytes(void *a) {                                                                                 \
        emulator::check_aligned(a, bytes, false, false, CODE);                                                         \
    }                                                                                                                  \
    void __tsan_write##bytes(void *a) {                                                                                \
        emulator::check_aligned(a, bytes, true, false, CODE);                                                          \
    }                                                                                                                  \
    void __tsan_unaligned_read##bytes(void *a) {                                                                       \
        emulator::check(a, bytes, false, false, CODE);                                                                 \
    }                                                                                                                  \
    void __tsan_unaligned_write##bytes(void *a) {                                                                      \
        emulator::check(a, bytes, true, false, CODE);                                                                  \
    }

#define ATOMICS(bits, T)                                                                                               \
    T __tsan_atomic##bits##_load(const volatile T *a, int) {                                                           \
        emulator::check_aligned(const_cast<const T *>(a), sizeof(T), false, true, CODE);                               \
        return *a;                                                                                                     \
    }                                                                                                                  \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile T *a, T *expected, T value, int, int) {                 \
        emulator::check_aligned(const_cast<T *>(a), sizeof(T), true, true, CODE);                                      \
        bool equal = *a == *expected;                                                                                  \
        if (equal)                                                                                                     \
            *a = value;                                                                                                \
        else                                                                                                           \
            *expected = *a;                                                                                            \
        return equal;                                                                                                  \
    }                                                                                                                  \
    T __tsan_atomic##bits##_compare_exchange_val(volatile T *a, T expected, T value, int, int) {                       \
        emulator::check_aligned(const_cast<T *>(a), sizeof(T), true, true, CODE);                                      \
        T old = *a;                                                                                                    \
        if (old == expected) *a = value;                                                                               \
        return old;                                                                                                    \
    }                                                                                                                  \
    ATOMIC_UPDATE(bits, T, exchange, value)                                                                            \
    ATOMIC_UPDATE(bits, T, fetch_add, old + value)                                                                     \
    ATOMIC_UPDATE(bits, T, fetch_or, old | value)

#define ATOMIC_UPDATE(bits, T, name, result)                                                                           \
    T __tsan_atomic##bits##_##name(volatile T *a, T value, int) {                                                      \
        emulator::check_aligned(const_cast<T *>(a), sizeof(T), true, true, CODE);                                      \
        T old = *a;                                                                                                    \
        *a = static_cast<T>(result);                                                                                   \
        return old;                                                                                                    \
    }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void **) {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_read_range(void *a, size_t bytes) {
    emulator::check(a, bytes, false, false, CODE);
}
void __tsan_write_range(void *a, size_t bytes) {
    emulator::check(a, bytes, true, false, CODE);
}
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
}
