/* Runs the grid of one launch: its blocks one after the other, the threads of a block as fibers.
 *
 *      NEW --> RUNNING --> AT_BARRIER | IN_WARP_OPERATION --> READY --> RUNNING --> ... --> EXITED
 *
 * A thread that exits starts the next new one on its own stack, so that kernels without barriers run on a single fiber.
 *
 * Order of threads: `forward` starts threads by number before it goes on with waiting ones, first come, first served;
 * `reverse` goes on with the latest first and starts from the highest number; a seed picks any.
 */
#include "tests/cuda_on_cpu/internal.h"

#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <string>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

Block running_block;
Thread *running_thread;
const Grid *running_grid;
const RaceChecker *race_checker;

/* Threads that can go on: a queue whose first entries have been taken, and those that have not started. */
static std::vector<Thread *> ready, fresh;
static size_t ready_taken, fresh_taken;

int lane() {
    return running_thread->id % 32;
}

unsigned block_number() {
    return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
}

/* ---- picking the next thread ------------------------------------------------------------------------------------- */

static Thread *take_first(std::vector<Thread *> &queue, size_t &taken) {
    if (taken == queue.size()) return nullptr;
    Thread *thread = queue[taken++];
    if (taken == queue.size()) {
        queue.clear();
        taken = 0;
    }
    return thread;
}

static Thread *take_last(std::vector<Thread *> &queue) {
    if (queue.empty()) return nullptr;
    Thread *thread = queue.back();
    queue.pop_back();
    return thread;
}

static Thread *take_any() {
    size_t count = ready.size() + fresh.size();
    if (count == 0) return nullptr;
    size_t i = random_below(count);
    std::vector<Thread *> &queue = i < ready.size() ? ready : fresh;
    std::swap(queue[i < ready.size() ? i : i - ready.size()], queue.back());
    return take_last(queue);
}

static Thread *pick_thread() {
    Thread *thread;
    switch (options.order) {
    case ORDER_FORWARD:
        thread = take_first(fresh, fresh_taken);
        return thread ? thread : take_first(ready, ready_taken);
    case ORDER_REVERSE:
        thread = take_last(ready);
        return thread ? thread : take_last(fresh);
    case ORDER_RANDOM:
        return take_any();
    }
    return nullptr;
}

void thread_make_ready(Thread *thread) {
    thread->state = THREAD_READY;
    ready.push_back(thread);
}

static void make_running(Thread *thread) {
    thread->state = THREAD_RUNNING;
    running_thread = thread;
    threadIdx = thread->index;
}

/* ---- deadlock ---------------------------------------------------------------------------------------------------- */

static std::string describe_wait(const Thread &thread) {
    char text[300];
    if (thread.state == THREAD_EXITED) return "have exited";
    snprintf(text, sizeof text, "wait in %s at %s:%d", thread.waits_for, thread.site.file, thread.site.line);
    if (thread.state == THREAD_IN_WARP_OPERATION)
        snprintf(text + strlen(text), sizeof text - strlen(text), " for mask %08x", thread.mask);
    return text;
}

[[noreturn]] static void report_deadlock() {
    std::map<std::string, std::vector<int>> waits;
    for (const Thread &thread : running_block.threads) waits[describe_wait(thread)].push_back(thread.id);
    std::string text;
    for (const auto &wait : waits) {
        text += "\n  " + std::to_string(wait.second.size()) + " threads " + wait.first + ":";
        for (size_t i = 0; i < wait.second.size() && i < 8; i++) text += " " + std::to_string(wait.second[i]);
        if (wait.second.size() > 8) text += " ...";
    }
    running_thread = nullptr;
    fail("deadlock: no thread of the block can go on%s", text.c_str());
}

/* ---- the life of a thread ---------------------------------------------------------------------------------------- */

static void thread_main();

static Fiber *fiber_of(Thread *thread) {
    if (thread->state == THREAD_NEW) thread->fiber = fiber_take(thread_main);
    return thread->fiber;
}

void thread_wait() {
    Thread *next = pick_thread();
    if (!next) report_deadlock();
    Fiber *fiber = fiber_of(next);
    make_running(next);
    if (fiber != fiber_running()) fiber_switch(fiber);
}

static void exit_thread() {
    running_thread->state = THREAD_EXITED;
    running_block.live--;
    collectives_thread_exited(running_thread);
}

static void thread_main() {
    fiber_first_instruction();
    Fiber *fiber = fiber_running();
    for (;;) {
        running_grid->call(running_grid->kernel, running_grid->arguments);
        exit_thread();
        Thread *next = pick_thread();
        if (next && next->state == THREAD_NEW) { /* on this very stack */
            next->fiber = fiber;
            make_running(next);
            continue;
        }
        if (!next && running_block.live > 0) report_deadlock();
        if (next) make_running(next);
        fiber_give_back(fiber);
        fiber_leave(next ? next->fiber : &main_fiber);
    }
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

static void reset_thread(Thread &thread, int id) {
    unsigned x = static_cast<unsigned>(id);
    thread.id = id;
    thread.index = {x % blockDim.x, x / blockDim.x % blockDim.y, x / blockDim.x / blockDim.y};
    thread.state = THREAD_NEW;
    thread.fiber = nullptr;
    thread.barriers = 0;
    thread.copies.clear();
    thread.copy_groups = 0;
}

static void reset_block(int count) {
    running_block.threads.resize(static_cast<size_t>(count));
    running_block.warps.assign(static_cast<size_t>(count + 31) / 32, Warp());
    if (count % 32) running_block.warps.back().exited = ~0u << count % 32;
    running_block.live = count;
    ready.clear();
    fresh.clear();
    ready_taken = fresh_taken = 0;
    for (int i = 0; i < count; i++) {
        reset_thread(running_block.threads[static_cast<size_t>(i)], i);
        fresh.push_back(&running_block.threads[static_cast<size_t>(i)]);
    }
}

static void run_block(uint3 index) {
    blockIdx = index;
    reset_block(static_cast<int>(blockDim.x * blockDim.y * blockDim.z));
    shared_start_block();
    collectives_start_block();
    if (race_checker) race_checker->start_block();
    Thread *first = pick_thread();
    Fiber *fiber = fiber_of(first);
    make_running(first);
    fiber_switch(fiber);
    running_thread = nullptr;
    collectives_end_block();
    shared_end_block();
}

static std::vector<unsigned> order_of_blocks(unsigned count) {
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; i++) order[i] = options.order == ORDER_REVERSE ? count - 1 - i : i;
    if (options.order == ORDER_RANDOM)
        for (unsigned i = count; i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
    return order;
}

void run_grid(const Grid &grid) {
    if (running_grid) fail("a kernel launches a kernel");
    running_grid = &grid;
    gridDim = grid.grid;
    blockDim = grid.block;
    shared_start_launch(grid.dynamic_shared_bytes);
    if (race_checker) race_checker->start_launch();
    for (unsigned i : order_of_blocks(gridDim.x * gridDim.y * gridDim.z))
        run_block({i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y});
    shared_end_launch();
    running_grid = nullptr;
}

} // namespace emulator
