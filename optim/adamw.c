/* AdamW (Loshchilov & Hutter 2019, algorithm 2). With g the gradient, scaled, and t the update's number:
 *
 *      m <- b1 m + (1-b1) g,   v <- b2 v + (1-b2) g²
 *      U = m̂ / (sqrt(v̂) + eps),   m̂ = m / (1 - b1^t),   v̂ = v / (1 - b2^t)
 *
 * One op does all of it and the weights in a sweep. U alone is what it adds to a weight of 0 at lr = -1.
 */
#include <math.h>

#include "ops/ops.h"
#include "optim/optimizer_row.h"

static double own_lr(const OptimizerConfig *config) {
    return config->adamw.lr;
}

/* But for lr and decay. */
static AdamwStep step_of(const UpdatePass *p) {
    const AdamwConfig *c = &p->opt->config.adamw;
    const double t = (double)p->numbers->update;
    return (AdamwStep){.beta1 = (float)c->beta1,
                       .beta2 = (float)c->beta2,
                       .eps = (float)c->eps,
                       .correction1 = (float)(1 - pow(c->beta1, t)),
                       .correction2 = (float)(1 - pow(c->beta2, t)),
                       .grad_scale = p->numbers->grad_scale,
                       .cautious = p->opt->config.cautious_decay};
}

static void sweep(const UpdatePass *p, Tensor w, Tensor copy, AdamwStep step) {
    op_adamw(p->opt->be, w, copy, p->route->state[0], p->route->state[1], p->gradient, step);
}

/* The route's scale is in the rate, but not in the decay. */
static void apply(const UpdatePass *p, Tensor w, Tensor copy) {
    AdamwStep step = step_of(p);
    step.lr = (float)(p->lr * (double)p->route->scale);
    step.decay = (float)(p->decay * (double)p->route->decay / (double)p->route->scale);
    sweep(p, w, copy, step);
}

/* Betas of 1 leave m and v as they are. Unlike the difference of the weights this loses no digits, also at lr = 0. */
static Tensor update(const UpdatePass *p) {
    Tensor U = p->scratch[0];
    AdamwStep step = step_of(p);
    step.lr = -1;
    if (p->state_is_new) step.beta1 = step.beta2 = 1;
    if (p->wanted) op_fill(p->opt->be, U, 0); /* else only the moments count */
    sweep(p, U, tensor_none(), step);
    return U;
}

const OptimizerRow optimizer_adamw = {.state = {{"m", "nm"}, {"v", "nm"}},
                                      .scratch = {"nm"},
                                      .size = UPDATE_UNIT_ELEMENTS,
                                      .own_lr = own_lr,
                                      .update = update,
                                      .apply = apply};
