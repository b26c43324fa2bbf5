/* Backend: where tensors live and who computes on them. A table of function pointers chosen at run time.
 *
 * Model, optimizer and probe code calls the op_*() wrappers of ops/ops.h, never the slots below. The wrapper checks
 * shapes and dtypes, times the op, and calls the slot; so an implementation may rely on the contract in ops.h.
 * Implementations do not call wrappers: the time of an op counts once, under the name that was asked for.
 *
 *      "ref"   plain loops in host memory; the specification                        ref/
 *      "cpu"   oneDNN or CBLAS, OpenMP, SIMD; starts from ref's table and overrides cpu/
 *      "cuda"  kernels and cuBLASLt                                                 cuda/
 *
 * Failures of a device are sticky: the first is kept with the op's name, later ops do nothing, backend_sync returns it.
 * Nothing is allocated by an op: what an op needs beside its arguments comes from `scratch`, reserved once at set-up.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "ops/ops.h"

/* The largest sizes that ops will be called with: what backend_reserve sizes the scratch memory by. */
typedef struct {
    int64_t width;     /* longest row of any norm, embedding or linear layer */
    int64_t vocab;     /* columns of the logits */
    int64_t batch;     /* B of attention */
    int64_t context;   /* T of attention */
    int64_t heads;     /* H of attention */
    int64_t head_size; /* D of attention */
} OpLimits;

/* ---- the table -------------------------------------------------------------------------------------------------- */

/* Slots beside the ops: name, mark as in OP_LIST, type.
 *
 *      alloc            zeroed, 64-byte aligned; NULL if there is none
 *      to_host          src contiguous; waits
 *      from_host        dst contiguous; host may be reused on return
 *      scratch_bytes    of ops within the limits; default: 0
 *      close            frees the state; or NULL, if there is nothing to free
 *
 * The others are of devices with memory and time of their own. Where ops have done their work when they return, the
 * functions further down do the like.
 *
 *      free_bytes       what alloc could still give; default: what the host has free
 *      alloc_host       host memory that the device copies to by itself; NULL if there is none
 *      free_host        of alloc_host
 *      to_host_later    src contiguous; host from alloc_host; does not wait
 *      mark             its presence says that ops return before their work is done
 */
#define SLOT_LIST(X)                                                                                                   \
    X(alloc, REQUIRED, void *, (Backend *, int64_t bytes))                                                             \
    X(free, REQUIRED, void, (Backend *, void *memory, int64_t bytes))                                                  \
    X(to_host, REQUIRED, void, (Backend *, void *host, Tensor src))                                                    \
    X(from_host, REQUIRED, void, (Backend *, Tensor dst, const void *host))                                            \
    X(sync, REQUIRED, Status, (Backend *))                                                                             \
    X(scratch_bytes, DEFAULT, int64_t, (const Backend *, const OpLimits *))                                            \
    X(close, OPTIONAL, void, (Backend *))                                                                              \
    X(free_bytes, DEFAULT, int64_t, (Backend *))                                                                       \
    X(alloc_host, DEFAULT, void *, (Backend *, int64_t bytes))                                                         \
    X(free_host, DEFAULT, void, (Backend *, void *memory))                                                             \
    X(to_host_later, DEFAULT, void, (Backend *, void *host, Tensor src))                                               \
    X(call_later, DEFAULT, void, (Backend *, void (*function)(void *), void *argument))                                \
    X(mark, DEFAULT, void, (Backend *, int mark))                                                                      \
    X(elapsed, DEFAULT, double, (Backend *, int from, int to))

typedef struct {
#define X(ID, slot, need) __typeof__(op_##slot) *slot;
    OP_LIST(X)
#undef X
#define X(slot, need, type, arguments) type(*slot) arguments;
    SLOT_LIST(X)
#undef X
} BackendOps;

typedef struct {
    int64_t calls;
    double seconds;
} OpTimer;

/* How much of a long job is done at a time, at most. */
typedef struct {
    int64_t optimizer_bytes; /* buffers of the matrices that one pass of the optimizer batches */
    int64_t logits;          /* elements: made and used up before the next ones */
} PieceSizes;

extern const PieceSizes host_pieces;   /* what caches hold, many times over */
extern const PieceSizes device_pieces; /* what keeps a hundred multiprocessors busy */

/* Moments on the device's own clock. */
enum { MARK_OPTIMIZER_BEGIN, MARK_OPTIMIZER_END, MARK_COUNT };

struct Backend {
    const char *name;
    char description[160]; /* "oneDNN 2.6 (avx512_core_bf16), 2 threads" */
    DType compute_dtype;   /* of activations and working weights: DTYPE_F32 or DTYPE_BF16 */
    int threads;           /* of the host */
    PieceSizes pieces;
    int64_t peak_size; /* n of the n x n product that measures the peak rate: large, yet well below 0.1 s */
    BackendOps ops;
    void *state; /* of the implementation */
    void *scratch;
    int64_t scratch_bytes;
    int64_t planned_bytes;    /* that the run will allocate in all, for messages; 0: not known */
    int64_t waits;            /* how often the host asked for results or for the end of the work: once a step */
    double marks[MARK_COUNT]; /* where the implementation has none of its own */

    Status failure; /* sticky */
    const char *failed_op;

    bool profile;  /* time every op, syncing after each */
    bool scan_nan; /* after every op, fail if an output holds a NaN and name the op (slow) */
    OpId fault_op; /* test aid: after `fault_countdown` more calls of this op its first output element becomes NaN; */
    int64_t fault_countdown; /* < 0: off */
    OpTimer timers[OP_COUNT];
};

/* ---- life ------------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *device;    /* "auto", "ref", "cpu", "cuda" */
    const char *precision; /* "auto", "fp32", "bf16" */
    int threads;           /* 0: all cores that this process may use */
} BackendRequest;

void backend_close(Backend *be);

/* An implementation fills be->ops and then asks for this: fails with the first REQUIRED slot that is NULL. */
Status backend_check_slots(const Backend *be);

/* Scratch for ops up to these sizes; call once, before the first op. */
int64_t backend_scratch_bytes(const Backend *be, OpLimits limits);
Status backend_reserve(Backend *be, OpLimits limits);

/* Out of memory, the message says how much was asked, free and planned, and `remedy`: what the user can do about memory
 * of that purpose ("set probe.spectrum_every=0"). Without one, NULL, it names the options that help whatever does not
 * fit. */
Status backend_alloc(Backend *be, void **memory, int64_t bytes, const char *purpose, const char *remedy);
void backend_free(Backend *be, void *memory, int64_t bytes);
void backend_to_host(Backend *be, void *host, Tensor src); /* waits */
void backend_from_host(Backend *be, Tensor dst, const void *host);
void backend_fail(Backend *be, const char *op, Status failure); /* keeps the first */
Status backend_sync(Backend *be);                               /* waits */

/* Whether ops return before their work is done. Then a run keeps the device busy by never waiting but for what it
 * cannot do without, and reads the rest with that. */
bool backend_is_asynchronous(const Backend *be);
/* Host memory for backend_to_host_later; NULL if there is none. */
void *backend_alloc_host(Backend *be, int64_t bytes);
void backend_free_host(Backend *be, void *memory);
/* As backend_to_host, but host memory holds the tensor only once the device has got there: when a function given to
 * backend_call_later after it runs, or the host has waited. The function must not use the backend; it may run on
 * another thread, and at once where nothing is asynchronous. */
void backend_to_host_later(Backend *be, void *host, Tensor src);
void backend_call_later(Backend *be, void (*function)(void *), void *argument);
/* Notes the moment when all work so far is done, and tells the seconds between two; wait before you ask. */
void backend_mark(Backend *be, int mark);
double backend_elapsed(Backend *be, int from, int to);

/* The rate of a large square matrix product in the backend's precision, in FLOP/s, measured now (about 0.1 s): the
 * ceiling that `mfu` is a fraction of. */
double backend_measure_peak(Backend *be);

/* Prints calls, seconds and share of every op that ran, slowest first. */
void backend_print_profile(const Backend *be);
