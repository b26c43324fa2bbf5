/* What threads do together: barriers of a block, and the operations of a warp.
 *
 * CUDA leaves it undefined when not all of the named threads come, or come to another place. Here that is an error:
 *   * All threads of a block pass the same barriers in the same order. Threads at different barriers at once, or that
 *     have passed different numbers of them when the block ends, are reported.
 *   * All lanes of a mask that have not exited come to the same operation, at the same line, with the same mask.
 *     __syncwarp alone may stand at different lines.
 *   * Who waits for somebody who never comes ends in the deadlock report of blocks.cc.
 */
#include "tests/cuda_on_cpu/internal.h"

#include <string.h>

namespace emulator {

/* ---- barriers of the block --------------------------------------------------------------------------------------- */

static struct {
    int waiting;
    BarrierResult result;
    Site site;    /* of the first to come */
    int positive; /* predicates that were not 0 */
    int answer;   /* of the barrier released last */
} barrier;

void collectives_start_block() {
    barrier.waiting = barrier.positive = 0;
}

static bool is_same_text(const char *a, const char *b) {
    return a == b || !strcmp(a, b);
}

static bool is_same_place(Site a, Site b) {
    return a.line == b.line && is_same_text(a.file, b.file);
}

static int answer_of_barrier() {
    switch (barrier.result) {
    case BARRIER_NOTHING:
        return 0;
    case BARRIER_COUNT:
        return barrier.positive;
    case BARRIER_AND:
        return barrier.positive == barrier.waiting;
    case BARRIER_OR:
        return barrier.positive > 0;
    }
    return 0;
}

static void release_barrier() {
    barrier.answer = answer_of_barrier();
    barrier.waiting = barrier.positive = 0;
    for (Thread &thread : running_block.threads)
        if (thread.state == THREAD_AT_BARRIER) thread_make_ready(&thread);
    if (race_checker) race_checker->block_barrier();
}

int block_barrier(BarrierResult result, int predicate, Site site) {
    Thread *thread = running_thread;
    if (barrier.waiting == 0) {
        barrier.site = site;
        barrier.result = result;
    } else if (!is_same_place(barrier.site, site) || barrier.result != result) {
        fail("divergent barrier: this thread comes to %s:%d while %d others wait at %s:%d", site.file, site.line,
             barrier.waiting, barrier.site.file, barrier.site.line);
    }
    thread->waits_for = "__syncthreads";
    thread->site = site;
    thread->barriers++;
    thread->state = THREAD_AT_BARRIER;
    barrier.waiting++;
    barrier.positive += predicate != 0;
    if (barrier.waiting == running_block.live) release_barrier();
    thread_wait();
    return barrier.answer;
}

void collectives_end_block() {
    const Thread &first = running_block.threads.front();
    for (const Thread &thread : running_block.threads)
        if (thread.barriers != first.barriers)
            fail("divergent barrier: thread 0 passed %d barriers and exited, thread %d passed %d", first.barriers,
                 thread.id, thread.barriers);
}

/* ---- operations of a warp ---------------------------------------------------------------------------------------- */

struct WarpOperation {
    const char *name;
    Site site;
    unsigned mask, arrived;
    Exchange exchange; /* NULL: __syncwarp */
    const void *in[32];
    void *out[32];
};

/* Not on the heap: `exchange` is instrumented, and the race checker passes over the program's own memory alone. At most
 * every thread of a block is in an operation of its own. */
static WarpOperation operations[1024];
static std::vector<WarpOperation *> unused_operations;

static WarpOperation *new_operation() {
    if (unused_operations.empty())
        for (WarpOperation &operation : operations) unused_operations.push_back(&operation);
    WarpOperation *operation = unused_operations.back();
    unused_operations.pop_back();
    return operation;
}

/* The operation in progress that this lane belongs to. */
static WarpOperation *find_operation(const Warp &warp, const char *name, unsigned mask, Site site, bool any_line) {
    for (WarpOperation *operation : warp.in_progress) {
        if (!(operation->mask & mask)) continue;
        if (operation->mask != mask || !is_same_text(operation->name, name) ||
            !(any_line || is_same_place(operation->site, site)))
            fail("divergent warp: this lane does %s for mask %08x at %s:%d while others wait in %s for mask %08x at "
                 "%s:%d",
                 name, mask, site.file, site.line, operation->name, operation->mask, operation->site.file,
                 operation->site.line);
        return operation;
    }
    return nullptr;
}

static WarpOperation *start_operation(Warp &warp, const char *name, unsigned mask, Exchange exchange, Site site) {
    WarpOperation *operation = new_operation();
    *operation = {name, site, mask, 0, exchange, {}, {}};
    warp.in_progress.push_back(operation);
    return operation;
}

static bool is_complete(const Warp &warp, const WarpOperation *operation) {
    return operation->arrived && !(operation->mask & ~warp.exited & ~operation->arrived);
}

static void complete(int warp_number, size_t place) {
    Warp &warp = running_block.warps[static_cast<size_t>(warp_number)];
    WarpOperation *operation = warp.in_progress[place];
    warp.in_progress.erase(warp.in_progress.begin() + static_cast<ptrdiff_t>(place));
    if (operation->exchange)
        operation->exchange(operation->mask, operation->in, operation->out);
    else if (race_checker)
        race_checker->warp_barrier(warp_number, operation->arrived);
    for (int l = 0; l < 32; l++)
        if (operation->arrived >> l & 1)
            thread_make_ready(&running_block.threads[static_cast<size_t>(warp_number * 32 + l)]);
    unused_operations.push_back(operation);
}

static void complete_what_can_be(int warp_number) {
    Warp &warp = running_block.warps[static_cast<size_t>(warp_number)];
    for (size_t i = warp.in_progress.size(); i-- > 0;)
        if (is_complete(warp, warp.in_progress[i])) complete(warp_number, i);
}

static void join(const char *name, unsigned mask, const void *in, void *out, Exchange exchange, Site site) {
    Thread *thread = running_thread;
    int l = thread->id % 32, warp_number = thread->id / 32;
    Warp &warp = running_block.warps[static_cast<size_t>(warp_number)];
    if (!(mask >> l & 1)) fail("%s at %s:%d: lane %d is not in its own mask %08x", name, site.file, site.line, l, mask);
    WarpOperation *operation = find_operation(warp, name, mask, site, exchange == nullptr);
    if (!operation) operation = start_operation(warp, name, mask, exchange, site);
    operation->arrived |= 1u << l;
    operation->in[l] = in;
    operation->out[l] = out;
    thread->waits_for = name;
    thread->mask = mask;
    thread->site = site;
    thread->state = THREAD_IN_WARP_OPERATION;
    complete_what_can_be(warp_number);
    thread_wait();
}

void warp_collective(const char *operation, unsigned mask, const void *in, void *out, Exchange exchange, Site site) {
    join(operation, mask, in, out, exchange, site);
}

void warp_barrier(unsigned mask, Site site) {
    join("__syncwarp", mask, nullptr, nullptr, nullptr, site);
}

/* ---- exit -------------------------------------------------------------------------------------------------------- */

/* Others may have waited for this thread alone. */
void collectives_thread_exited(Thread *thread) {
    running_block.warps[static_cast<size_t>(thread->id / 32)].exited |= 1u << thread->id % 32;
    complete_what_can_be(thread->id / 32);
    if (barrier.waiting > 0 && barrier.waiting == running_block.live) release_barrier();
}

} // namespace emulator
