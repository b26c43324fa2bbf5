/* Backend "cpu": faster ops, put over ref's in the table that it is given, and memory on huge pages. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifdef __aarch64__
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "cpu/cpu.h"

/* ---- memory ----------------------------------------------------------------------------------------------------- */

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

void cpu_free(void *memory) {
    free(memory);
}

static void *alloc(Backend *be, int64_t bytes) {
    (void)be;
    return cpu_alloc(bytes);
}

static void release(Backend *be, void *memory, int64_t bytes) {
    (void)be, (void)bytes;
    cpu_free(memory);
}

static int64_t largest(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int64_t scratch_bytes(const Backend *be, const OpLimits *limits) {
    int64_t bytes = cpu_partial_bytes(be, 1); /* sums */
    bytes = largest(bytes, cpu_gemm_scratch_bytes(be, limits));
    bytes = largest(bytes, cpu_norm_scratch_bytes(be, limits));
    return largest(bytes, cpu_attention_scratch_bytes(be, limits));
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

/* ---- life ------------------------------------------------------------------------------------------------------- */

static bool processor_multiplies_bf16(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512bf16"); /* processors with AMX have it too */
#elif defined(__aarch64__) && defined(HWCAP2_BF16)
    return (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
#else
    return false;
#endif
}

/* OpenBLAS brings threads of its own. Beside oneDNN it only factorizes small matrices, for which one is enough; the
 * function is absent where another library stands in for OpenBLAS. */
extern void openblas_set_num_threads(int threads) __attribute__((weak));

static DType choose_dtype(const Backend *be, const char *precision) {
    if (strcmp(precision, "auto") != 0) return strcmp(precision, "bf16") == 0 ? DTYPE_BF16 : DTYPE_F32;
    return processor_multiplies_bf16() && cpu_library_multiplies(be, DTYPE_BF16) ? DTYPE_BF16 : DTYPE_F32;
}

static void close_backend(Backend *be) {
    cpu_library_close(be);
}

Status cpu_backend_open(Backend *be, BackendRequest request) {
    be->threads = request.threads;
    be->pieces = host_pieces;
    be->peak_size = 1024;
    omp_set_num_threads(be->threads);
    if (openblas_set_num_threads) openblas_set_num_threads(HAVE_ONEDNN ? 1 : be->threads);
    Status status = cpu_library_open(be);
    if (status.code) return status;

    be->name = "cpu";
    be->compute_dtype = choose_dtype(be, request.precision);
    char library[sizeof be->description - 32];
    cpu_library_describe(be, library, sizeof library);
    snprintf(be->description, sizeof be->description, "%s, %d thread%s", library, be->threads,
             be->threads == 1 ? "" : "s");

    cpu_fill_gemm_ops(&be->ops);
    cpu_fill_norm_ops(&be->ops);
    cpu_fill_elementwise_ops(&be->ops);
    cpu_fill_embedding_ops(&be->ops);
    cpu_fill_loss_ops(&be->ops);
    cpu_fill_optimizer_ops(&be->ops);
    cpu_fill_symmetric_ops(&be->ops);
    be->ops.attention = cpu_attention;
    be->ops.attention_grad = cpu_attention_grad;
    be->ops.logit_census = cpu_logit_census;
    be->ops.alloc = alloc;
    be->ops.free = release;
    be->ops.scratch_bytes = scratch_bytes;
    be->ops.close = close_backend;
    return status_ok();
}
