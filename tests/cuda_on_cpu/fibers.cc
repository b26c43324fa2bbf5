/* Fibers: stacks of their own and the switch between them.
 *
 * The switch is written by hand: it saves the six registers that the x86-64 System V ABI lets a callee use only if it
 * restores them, and costs a few nanoseconds (swapcontext, which also saves the signal mask by a system call: 200).
 *
 *      arena:   | guard | stack 0 | guard | stack 1 | guard | ...      a stack that overflows meets an unmapped page
 *
 * All stacks lie in one range, so that the race checker can pass over local variables by one comparison.
 */
#include "tests/cuda_on_cpu/internal.h"

#include <sys/mman.h>

/* Present where the program is linked with AddressSanitizer. */
extern "C" __attribute__((weak)) void __sanitizer_start_switch_fiber(void **save, const void *bottom, size_t size);
extern "C" __attribute__((weak)) void __sanitizer_finish_switch_fiber(void *saved, const void **bottom, size_t *size);

extern "C" void emulator_switch_stack(void **save, void *to);
asm(".text\n"
    ".type emulator_switch_stack, @function\n"
    "emulator_switch_stack:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size emulator_switch_stack, . - emulator_switch_stack\n");

namespace emulator {

enum : size_t { STACK_BYTES = 256 << 10, GUARD_BYTES = 4096, MAX_FIBERS = 1024 + 1 };

Fiber main_fiber;
static Fiber fibers[MAX_FIBERS];
static int fiber_count;
static std::vector<Fiber *> pool;
static Fiber *running = &main_fiber;
static char *arena;

static const void *main_stack_bottom; /* as AddressSanitizer knows it */
static size_t main_stack_size;

bool is_on_fiber_stack(const void *address) {
    return static_cast<size_t>(static_cast<const char *>(address) - arena) < MAX_FIBERS * (STACK_BYTES + GUARD_BYTES);
}

static Fiber *new_fiber() {
    size_t each = STACK_BYTES + GUARD_BYTES;
    if (!arena) {
        void *memory = mmap(nullptr, MAX_FIBERS * each, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) fail("no memory for %zu stacks", static_cast<size_t>(MAX_FIBERS));
        arena = static_cast<char *>(memory);
    }
    Fiber *fiber = &fibers[fiber_count];
    fiber->stack = arena + static_cast<size_t>(fiber_count++) * each + GUARD_BYTES;
    if (mprotect(fiber->stack, STACK_BYTES, PROT_READ | PROT_WRITE)) fail("no memory for stack %d", fiber_count);
    return fiber;
}

Fiber *fiber_take(void (*entry)()) {
    Fiber *fiber;
    if (pool.empty()) {
        fiber = new_fiber();
    } else {
        fiber = pool.back();
        pool.pop_back();
    }
    /* What the switch pops: six registers, then the address to return to, with the stack aligned as after a call. */
    void **top = reinterpret_cast<void **>(fiber->stack + STACK_BYTES - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber->stack_pointer = top;
    fiber->sanitizer_stack = nullptr;
    return fiber;
}

void fiber_give_back(Fiber *fiber) {
    pool.push_back(fiber);
}

Fiber *fiber_running() {
    return running;
}

void fiber_first_instruction() {
    if (!__sanitizer_finish_switch_fiber) return;
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (main_stack_bottom) return; /* the first switch of all came from the main stack */
    main_stack_bottom = bottom;
    main_stack_size = size;
}

static void switch_to(Fiber *to, void **sanitizer_save) {
    Fiber *from = running;
    running = to;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(sanitizer_save, to == &main_fiber ? main_stack_bottom : to->stack,
                                       to == &main_fiber ? main_stack_size : STACK_BYTES);
    emulator_switch_stack(&from->stack_pointer, to->stack_pointer);
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from->sanitizer_stack, nullptr, nullptr);
}

void fiber_switch(Fiber *to) {
    switch_to(to, &running->sanitizer_stack);
}

void fiber_leave(Fiber *to) {
    switch_to(to, nullptr);
    __builtin_unreachable();
}

} // namespace emulator
