/* Host memory for tensors, and the partial sums of threads; see cpu.h. */
#include <omp.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cpu/cpu.h"

enum { SMALL_ALIGNMENT = 64, HUGE_PAGE = 2 << 20 };

void *cpu_alloc(int64_t bytes) {
    int64_t alignment = bytes < HUGE_PAGE ? SMALL_ALIGNMENT : HUGE_PAGE;
    int64_t blocks = bytes / alignment + 1; /* not (bytes + alignment - 1), which may overflow; never zero bytes */
    if (blocks > INT64_MAX / alignment) return NULL;
    char *memory = aligned_alloc((size_t)alignment, (size_t)(blocks * alignment));
    if (!memory) return NULL;
    if (alignment == HUGE_PAGE) madvise(memory, (size_t)(blocks * alignment), MADV_HUGEPAGE);
#pragma omp parallel for schedule(static) if (alignment == HUGE_PAGE)
    for (int64_t i = 0; i < blocks; i++) memset(memory + i * alignment, 0, (size_t)alignment);
    return memory;
}

/* ---- sums over threads ------------------------------------------------------------------------------------------ */

static int64_t partial_pitch(int64_t n) {
    enum { LINE = SMALL_ALIGNMENT / sizeof(float) };
    return (n + LINE - 1) / LINE * LINE;
}

void *cpu_partial(const Backend *be, int part, int64_t n) {
    int64_t end = (part + 1) * partial_pitch(n) * (int64_t)sizeof(float);
    CHECK(end <= be->scratch_bytes, "%lld bytes of scratch memory for thread %d, %lld are reserved", (long long)end,
          part, (long long)be->scratch_bytes);
    return (float *)be->scratch + part * partial_pitch(n);
}

int64_t cpu_partial_bytes(const Backend *be, int64_t n) {
    return be->threads * partial_pitch(n) * (int64_t)sizeof(float);
}

void cpu_add_partials(const Backend *be, float *sum, int64_t n, int64_t first, int64_t count) {
    int parts = omp_get_num_threads();
    Range mine = range_of(count, omp_get_thread_num(), parts);
    for (int part = 0; part < parts; part++) {
        const float *partial = (const float *)cpu_partial(be, part, n) + first;
#pragma omp simd
        for (int64_t i = mine.begin; i < mine.end; i++) sum[i] += partial[i];
    }
}
