/* Backend "ref": host memory and the table. The ops are in the other files of this folder, one family each. */
#include <stdio.h>
#include <stdlib.h>

#include "ref/open.h"
#include "ref/ref.h"

enum { ALIGNMENT = 64 };

static void *ref_alloc(Backend *be, int64_t bytes) {
    size_t padded = ((size_t)bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT; /* never 0: NULL would mean out of memory */
    void *memory = aligned_alloc(ALIGNMENT, padded);
    return memory ? memset(memory, 0, padded) : NULL;
}

static void ref_free(Backend *be, void *memory, int64_t bytes) {
    free(memory);
}

static void ref_to_host(Backend *be, void *host, Tensor src) {
    memcpy(host, src.data, (size_t)tensor_bytes(src));
}

static void ref_from_host(Backend *be, Tensor dst, const void *host) {
    memcpy(dst.data, host, (size_t)tensor_bytes(dst));
}

static Status ref_sync(Backend *be) {
    return status_ok();
}

void ref_fill_ops(BackendOps *ops) {
#define X(ID, slot, need) ops->slot = ref_##slot;
    PLAIN_OP_LIST(X)
#undef X
    ops->alloc = ref_alloc;
    ops->free = ref_free;
    ops->to_host = ref_to_host;
    ops->from_host = ref_from_host;
    ops->sync = ref_sync;
}

Status ref_backend_open(Backend *be, BackendRequest request) {
    be->name = "ref";
    snprintf(be->description, sizeof be->description, "plain loops in double precision, 1 thread");
    be->compute_dtype = strcmp(request.precision, "bf16") ? DTYPE_F32 : DTYPE_BF16;
    be->threads = 1;
    be->pieces = host_pieces;
    be->peak_size = 96;
    ref_fill_ops(&be->ops);
    return status_ok();
}
