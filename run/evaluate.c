/* Validation loss; see trainer.h. */
#include "base/integer.h"
#include "ops/ops.h"
#include "run/trainer.h"

/* One micro-batch of validation windows from `first` on; rows beyond the last window are ignored. Returns through
 * `count` how many windows it holds. */
static Status load_windows(Trainer *t, int64_t first, int64_t *count) {
    const Gpt *g = &t->gpt;
    const int64_t windows = dataset_facts(t->val_data)->windows;
    *count = smaller(windows - first, g->B);
    for (int64_t b = 0; b < g->B; b++) {
        int32_t *targets = t->targets + b * g->T;
        Status status = dataset_window(t->val_data, b < *count ? first + b : first, t->tokens + b * g->T, targets);
        if (status.code) return status;
        for (int64_t i = 0; b >= *count && i < g->T; i++) targets[i] = -1;
    }
    gpt_set_batch(&t->gpt, t->tokens, t->targets);
    return status_ok();
}

Status trainer_evaluate(Trainer *t, int64_t batches, double *loss) {
    Gpt *g = &t->gpt;
    const int64_t windows = dataset_facts(t->val_data)->windows;
    const int64_t limit = batches > 0 ? smaller(batches * g->B, windows) : windows;
    double sum = 0;
    for (int64_t first = 0, count; first < limit; first += g->B) {
        float batch_sum = 0;
        Status status = load_windows(t, first, &count);
        if (status.code) return status;
        op_fill(&t->backend, g->loss_sum, 0);
        gpt_forward(g);
        gpt_loss(g);
        backend_to_host(&t->backend, &batch_sum, g->loss_sum);
        sum += (double)batch_sum;
    }
    *loss = sum / (double)(limit * g->T);
    return backend_sync(&t->backend);
}
