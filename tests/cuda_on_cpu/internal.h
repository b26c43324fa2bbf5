/* The inside of the emulator: a CUDA device that is one thread of the host process.
 *
 *      options.cc           environment variables; the order in which things happen
 *      report.cc            messages: where in the grid, which kernel, which line
 *      fibers.cc            stacks and the switch between them
 *      blocks.cc            a launch: blocks one after the other, each a set of threads; exit, deadlock
 *      collectives.cc       barriers of a block, operations of a warp
 *      shared_memory.cc     static and dynamic shared memory, cp.async
 *      streams.cc           queues, events, launches: everything runs as late as it may
 *      launches.cc          a list of all launches, on request
 *      memory.cc            device and pinned memory, copies
 *      device.cc            properties, versions, errors
 *      racecheck.cc         (race builds only) sees every access of a kernel
 *
 * How a block runs. Every thread is a fiber. It runs until it waits for its block or its warp (collectives.cc) or ends;
 * then blocks.cc picks the next one that can go on. So between two waits a thread runs undisturbed, and the schedules
 * of options.cc are the orders in which threads, warps and blocks take turns.
 *
 * Invariants
 *   * One host thread runs the emulator; device work runs inside an API call that waits, never in the background.
 *   * With CUDA_ON_CPU_PROTECT=1 device memory is accessible only while device work runs. (Every synchronization then
 *     takes two mprotect calls for each allocation: little for a training run, much for tests of single ops.)
 *   * Emulator objects are compiled without sanitizers and serve every build.
 */
#pragma once

#include <emulator.h>

#include <cuda_runtime_api.h>

#include <vector>

#include "tests/cuda_on_cpu/control.h"

namespace emulator {

/* ---- options.cc -------------------------------------------------------------------------------------------------- */

enum Order { ORDER_FORWARD, ORDER_REVERSE, ORDER_RANDOM };

struct Options {
    Order order;          /* CUDA_ON_CPU_ORDER=forward|reverse|SEED */
    bool protect;         /* CUDA_ON_CPU_PROTECT=1: host code that touches device memory stops with a message */
    const char *launches; /* CUDA_ON_CPU_LAUNCHES=file to which launches are appended; NULL: none */
    bool launches_only;   /* CUDA_ON_CPU_LAUNCHES_ONLY=1: neither kernels nor library products are run, so that the
                             launches of a large model can be listed in no time */
};
extern const Options options;

size_t random_below(size_t limit);

/* ---- report.cc --------------------------------------------------------------------------------------------------- */

/* "function at file.cu:12" of an address in the program; slow, for messages. */
void describe_code(const void *address, char *text, size_t size);

/* ---- fibers.cc --------------------------------------------------------------------------------------------------- */

struct Fiber {
    void *stack_pointer; /* while it does not run */
    char *stack;
    void *sanitizer_stack; /* AddressSanitizer's notion of it */
};

extern Fiber main_fiber;            /* the host's own stack */
Fiber *fiber_take(void (*entry)()); /* from the pool; `entry` never returns */
void fiber_give_back(Fiber *fiber); /* its stack may be run on until the next switch */
Fiber *fiber_running();
void fiber_switch(Fiber *to);             /* returns when somebody switches back */
[[noreturn]] void fiber_leave(Fiber *to); /* the running fiber is not resumed */
void fiber_first_instruction();           /* every entry calls it first */
bool is_on_fiber_stack(const void *address);

/* ---- blocks.cc --------------------------------------------------------------------------------------------------- */

enum ThreadState {
    THREAD_NEW,
    THREAD_READY,
    THREAD_RUNNING,
    THREAD_AT_BARRIER,
    THREAD_IN_WARP_OPERATION,
    THREAD_EXITED
};

struct Thread {
    int id; /* linear in the block */
    uint3 index;
    ThreadState state;
    Fiber *fiber;
    const char *waits_for; /* operation, mask and place of its wait, for messages */
    unsigned mask;
    Site site;
    int barriers; /* passed so far */
    std::vector<AsyncCopy> copies;
    int copy_groups; /* committed so far */
};

struct WarpOperation; /* collectives.cc */

struct Warp {
    unsigned exited;                          /* lanes; those beyond the block's size from the start */
    std::vector<WarpOperation *> in_progress; /* with disjoint masks */
};

struct Block {
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    int live; /* threads that have not exited */
};
extern Block running_block;
extern Thread *running_thread; /* NULL outside kernels */

struct Grid {
    dim3 grid, block;
    size_t dynamic_shared_bytes;
    const void *kernel;
    void (*call)(const void *kernel, const void *arguments);
    const void *arguments;
};
extern const Grid *running_grid;
void run_grid(const Grid &grid);

void thread_wait(); /* of the running thread, whose state says for what; returns when somebody has made it ready */
void thread_make_ready(Thread *thread);
unsigned block_number();

/* ---- collectives.cc ---------------------------------------------------------------------------------------------- */

void collectives_start_block();
void collectives_thread_exited(Thread *thread);
void collectives_end_block();

/* ---- shared_memory.cc -------------------------------------------------------------------------------------------- */

enum { SHARED_WITHOUT_ASKING = 48 * 1024, SHARED_LIMIT = 227 * 1024 };

void shared_start_launch(size_t dynamic_bytes);
void shared_start_block();
void shared_end_block();
void shared_end_launch();
void fill_with_nan(void *memory, size_t bytes); /* all bits set: NaN in fp32 and bf16, -1 as an integer */

/* ---- streams.cc -------------------------------------------------------------------------------------------------- */

void run_all_streams();
bool stream_exists(cudaStream_t stream);

/* ---- launches.cc ------------------------------------------------------------------------------------------------- */

void record_launch(const void *kernel, dim3 block, size_t dynamic_bytes);

/* ---- memory.cc --------------------------------------------------------------------------------------------------- */

/* Device memory is accessible while one of these lives. */
struct DeviceWork {
    DeviceWork();
    ~DeviceWork();
};

/* ---- device.cc --------------------------------------------------------------------------------------------------- */

cudaError_t report_error(cudaError_t error); /* remembers it for cudaGetLastError */

/* ---- racecheck.cc, in race builds -------------------------------------------------------------------------------- */

struct RaceChecker {
    void (*add_memory)(const void *memory, size_t bytes, const char *shared_name); /* NULL: device memory */
    void (*remove_memory)(const void *memory);
    void (*start_launch)();
    void (*start_block)();
    void (*block_barrier)();
    void (*warp_barrier)(int warp, unsigned mask);
    void (*host_access)(const void *memory, size_t bytes, bool write); /* copies and memsets */
};
extern const RaceChecker *race_checker; /* NULL in other builds */

} // namespace emulator
