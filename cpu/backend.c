/* Backend "cpu": faster ops, put over ref's in the table that it is given, and memory on huge pages. */
#include <omp.h>
#include <stdio.h>

#ifdef __aarch64__
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "base/integer.h"
#include "cpu/cpu.h"
#include "cpu/open.h"

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static void *alloc(Backend *be, int64_t bytes) {
    return cpu_alloc(bytes);
}

static int64_t scratch_bytes(const Backend *be, const OpLimits *limits) {
    int64_t bytes = cpu_partial_bytes(be, 1); /* sums */
    bytes = larger(bytes, cpu_gemm_scratch_bytes(be, limits));
    bytes = larger(bytes, cpu_norm_scratch_bytes(be, limits));
    bytes = larger(bytes, cpu_attention_forward_scratch_bytes(be, limits));
    bytes = larger(bytes, cpu_attention_backward_scratch_bytes(be, limits));
    return larger(bytes, cpu_census_scratch_bytes(be, limits));
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

#define X(ID, slot, need) be->ops.slot = cpu_##slot;
    PLAIN_OP_LIST(X)
#undef X
    be->ops.alloc = alloc;
    be->ops.scratch_bytes = scratch_bytes;
    be->ops.close = cpu_library_close;
    return status_ok();
}
