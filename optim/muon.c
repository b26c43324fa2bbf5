/* Muon and its kin: a momentum, orthogonalized. With g the gradient, scaled:
 *
 *      muon        M <- mu M + g,  U = msign(g + mu M)               Jordan et al. 2024; decay and s: Moonlight 2025
 *      normuon     O = msign(g + mu M),  v <- b v + (1-b) mean of O² over a row,
 *                  U = O' / ‖O'‖_F with O' = O / (sqrt(v) + eps)      Li et al. 2025, arXiv 2510.05491, algorithm 1
 *      adamuon     the same, with O = msign(sign(g + mu M)) and v for each element
 *                                                                     Si et al. 2025, arXiv 2507.11005, algorithm 1
 *
 * The momentum is the sum shown or a running average, with Nesterov's look ahead or without (momentum.c). v needs no
 * bias correction: U does not depend on its common factor.
 */
#include "ops/ops.h"
#include "optim/optimizer_row.h"

/* M <- its next; buffers.x = what is to be orthogonalized. */
static void momentum(const UpdatePass *p, MomentumStep step) {
    op_momentum(p->opt->be, p->buffers.x, p->route->state[0], p->gradient, step);
}

static Tensor update_muon(const UpdatePass *p) {
    momentum(p, muon_momentum(p));
    return p->wanted ? orthogonalize(&p->opt->orthogonalizer, p->buffers) : tensor_none();
}

/* O / (sqrt(v) + eps), then of norm 1: route->scale gives it the root mean square that it is to have. */
static Tensor adapt(const UpdatePass *p, const AdaptConfig *c) {
    Backend *be = p->opt->be;
    Tensor O = orthogonalize(&p->opt->orthogonalizer, p->buffers);
    op_adapt(be, O, p->route->state[1], O, (AdaptStep){.beta2 = (float)c->beta2, .eps = (float)c->eps});
    op_normalize(be, O, O, 1e-7f); /* 0 stays 0 */
    return O;
}

static Tensor update_normuon(const UpdatePass *p) {
    momentum(p, muon_momentum(p));
    return adapt(p, &p->opt->config.normuon);
}

static Tensor update_adamuon(const UpdatePass *p) {
    MomentumStep step = muon_momentum(p);
    step.sign = true;
    momentum(p, step);
    return adapt(p, &p->opt->config.adamuon);
}

const OptimizerRow optimizer_muon = {.state = {{"momentum", "nm"}},
                                     .size = UPDATE_ORTHOGONAL,
                                     .matrices_only = true,
                                     .orthogonalize = true,
                                     .update = update_muon};

const OptimizerRow optimizer_normuon = {.state = {{"momentum", "nm"}, {"second", "n1"}},
                                        .size = UPDATE_UNIT_NORM,
                                        .matrices_only = true,
                                        .orthogonalize = true,
                                        .update = update_normuon};

const OptimizerRow optimizer_adamuon = {.state = {{"momentum", "nm"}, {"second", "nm"}},
                                        .size = UPDATE_UNIT_NORM,
                                        .matrices_only = true,
                                        .orthogonalize = true,
                                        .update = update_adamuon};
