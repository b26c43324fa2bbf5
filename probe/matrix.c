/* Copies of matrices in host memory; see matrix.h. */
#include "probe/matrix.h"

#include "core/ops.h"

void fetch_run(Backend *be, void *stage, Tensor run, HeadAxis axis, float *host) {
    int64_t heads = run.shape[1], rows = run.shape[2], columns = run.shape[3];
    int64_t elements = heads * rows * columns;
    bool in_rows = axis == HEADS_IN_ROWS;
    Tensor whole = tensor_1d(stage, DTYPE_F32, elements);
    Tensor by_head = tensor_as_3d(whole, heads, rows, columns);
    if (!in_rows) {
        by_head.stride[0] = columns;
        by_head.stride[1] = heads * columns;
    }
    for (int64_t layer = 0; layer < run.shape[0]; layer++) {
        op_copy(be, by_head, tensor_index(run, layer));
        backend_to_host_later(be, host + layer * elements, whole);
    }
}
