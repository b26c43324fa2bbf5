/* The tiny models of tests/golden/make_model.py, with the weights and batches of its formulas, for tests of model/ and
 * optim/ against what PyTorch made of them.
 */
#pragma once

#include "tests/tensors.h"

#include "model/gpt.h"

enum { GOLDEN_BATCH = 2 };

typedef struct {
    int param, layer; /* the weight's stream (model/weights.h) */
    double norm;      /* of the gradient */
    double probe;     /* sum over elements i of gradient * cos(0.3 i) */
} GoldenGradient;

typedef struct {
    double loss;
    double max_logit[8], max_abs[8]; /* layer after layer */
    GoldenGradient gradients[32];
    int gradient_count;
    double curve[10];
} GoldenModel;

typedef struct {
    const GoldenModel *golden;
    ModelConfig model;
    OptimizerKind matrices;
} GoldenCase;

GoldenCase golden_gpt2_case(void);
GoldenCase golden_llama_case(void);
GoldenCase golden_mixed_case(void);
GoldenCase golden_mla_case(void);
GoldenCase golden_direct_mla_case(void);

/* Plans and allocates a model of `rows` sequences. */
void golden_open(Gpt *g, Backend *be, const ModelConfig *config, int64_t rows);
void golden_set_weights(Gpt *g);
void golden_set_batch(Gpt *g, int64_t step, int64_t first_row);
/* Loss of one batch, its gradients in g->params.grad. */
double golden_forward_backward(Gpt *g, int64_t step);

/* fp32 sums of a few hundred terms against fp64: a few units of 1e-7 each, some of them cancelling. */
static const Tolerance golden_single_pass = {.absolute = 2e-6, .relative = 2e-5};

void golden_assert_near(const char *what, double got, double expected, Tolerance tolerance);
