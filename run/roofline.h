/* The predicted training step of --dry-run device=cuda: a table of ops, tokens per second, MFU, and what they rest on.
 *
 * The step is the real one, taken on a backend that counts (ops/cost.h): forward, loss and backward of every
 * micro-batch, gradient norm, optimizer, QK-Clip with no head to clip. Evaluation, spectra, checkpoints and the loading
 * of tokens, which the host does beside it, are not in it.
 */
#pragma once

#include "run/trainer.h"

typedef struct {
    CostRow rows[COST_ROWS];
    CostRow step;        /* their sum */
    double tokens;       /* of a step */
    double model_flops;  /* of a step: 6 N + 6 L C T a token */
    double peak_flops;   /* of the GPU, in the run's precision */
    double device_bytes; /* weights, gradients, optimizer, activations, scratch */
} Roofline;

/* t: planned by trainer_plan_for_gpu. Gives every tensor an address and takes one step. */
Status roofline_predict(Trainer *t, TrainStep *step, Roofline *r);
double roofline_mfu(const Roofline *r, double seconds);
/* The ops and the step alone; or with the memory and the assumptions. */
void roofline_print_table(const Trainer *t, const Roofline *r, FILE *out);
void roofline_print(const Trainer *t, const Roofline *r, FILE *out);
