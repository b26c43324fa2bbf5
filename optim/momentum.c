/* The optimizers that are a momentum alone, and the momentum that Muon's family shares with them. With g the gradient,
 * scaled:
 *
 *      sgd         M <- mu M + g,  U = M, or with Nesterov's look ahead g + mu M
 *                                                                     Sutskever et al. 2013, as torch.optim.SGD
 *      lion        U = sign(b1 M + (1-b1) g),  M <- b2 M + (1-b2) g   Chen et al. 2023, algorithm 2
 *
 * optimizer.muon.momentum_form makes sgd's momentum the sum shown or a running average; mu may follow a schedule.
 */
#include "ops/ops.h"
#include "optim/optimizer_row.h"
#include "optim/schedule.h"

/* sum: M' = mu M + g,  ema: M' = mu M + (1-mu) g;  U = M', or with Nesterov mu M' + what M' has got of g. */
MomentumStep muon_momentum(const UpdatePass *p) {
    const MuonConfig *c = &p->opt->config.muon;
    const double mu = schedule_momentum(c, p->numbers->steps, p->numbers->step);
    const double add = c->momentum_form == MUON_MOMENTUM_EMA ? 1 - mu : 1;
    return (MomentumStep){.keep = (float)mu,
                          .add = (float)add,
                          .old = (float)(c->nesterov ? mu * mu : mu),
                          .fresh = (float)(c->nesterov ? (1 + mu) * add : add),
                          .grad_scale = p->numbers->grad_scale};
}

static MomentumStep lion_momentum(const UpdatePass *p) {
    const LionConfig *c = &p->opt->config.lion;
    return (MomentumStep){.keep = (float)c->beta2,
                          .add = (float)(1 - c->beta2),
                          .old = (float)c->beta1,
                          .fresh = (float)(1 - c->beta1),
                          .grad_scale = p->numbers->grad_scale,
                          .sign = true};
}

static Tensor momentum(const UpdatePass *p, MomentumStep step) {
    op_momentum(p->opt->be, p->scratch[0], p->route->state[0], p->gradient, step);
    return p->scratch[0];
}

static Tensor update_sgd(const UpdatePass *p) {
    return momentum(p, muon_momentum(p));
}

static Tensor update_lion(const UpdatePass *p) {
    return momentum(p, lion_momentum(p));
}

const OptimizerRow optimizer_sgd = {
    .state = {{"momentum", "nm"}}, .scratch = {"nm"}, .size = UPDATE_LIKE_GRADIENT, .update = update_sgd};

const OptimizerRow optimizer_lion = {
    .state = {{"momentum", "nm"}}, .scratch = {"nm"}, .size = UPDATE_UNIT_ELEMENTS, .update = update_lion};
