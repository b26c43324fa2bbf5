/* How large updates are: s of W <- (1 - lr wd) W - lr s U, and what decay makes of it.
 *
 * muP (optimizer.mup_base_width). With r = base width / width, every route's scale gets the factor that keeps what an
 * update does to activations independent of the width. The spectral condition (Yang, Simon & Bernstein 2023, "A
 * Spectral Condition for Feature Learning", condition 1) asks of a hidden (n, m) matrix that |W| and |dW|, as spectral
 * norms, are of order sqrt(n/m): of order 1 if both sides grow with the width. What one step has, and the factor:
 *
 *      update of a hidden matrix                                     spectral norm        factor
 *      adamw, lion: elements of size 1, of one rank                  width                r
 *      muon, scale rms: rms sqrt(max(n, m)) msign                    sqrt(width)          sqrt(r)
 *      muon, scale original, spectral, none                          1                    1
 *      normuon, adamuon: elements of a fixed rms, full rank          sqrt(width)          sqrt(r)
 *      schatten: k^(1/p) more in the largest singular value          width^(1/p) more     r^(1/p) more
 *      sgd: a gradient of norm 1 (|x| = sqrt(width), |dx| = 1/sqrt(width))    1           1
 *
 * The full rank of normuon and adamuon is that of gradients of more tokens than the width. Embeddings, positions, head,
 * norms and biases act on each channel by itself, and their elements have to move by the same at any width: so do those
 * of adamw, lion, normuon, adamuon, of muon under rms and none. sgd's gradients shrink with the width, and muon under
 * original and spectral spreads a norm over it: factors 1/r and 1/sqrt(r). Logits sum over the width what the weights
 * of head and activations have in common: muP multiplies them by r. Here the final norm does it. Its weight begins at r
 * instead of 1, and r is the factor of its rate (and of its bias'): the same as a multiplier r behind it.
 *
 * The decay per step, lr wd, has no factor: over how many steps weights average is a property of the run, not of the
 * width (Wang & Aitchison 2024, "How to set AdamW's weight decay as you scale model and dataset size").
 */
#include <math.h>

#include "optim/optimizer_row.h"
#include "optim/routing.h"

/* s of an orthogonal U of n rows (outputs) and m columns (inputs). rms makes the update's root mean square that of
 * AdamW's: an orthogonal U has rms 1/sqrt(max(n,m)) (Moonlight 2025, section 2.2). */
static double orthogonal_scale(const MuonConfig *config, double n, double m) {
    switch (config->scale) {
    case SCALE_RMS:
        return config->rms * sqrt(fmax(n, m));
    case SCALE_ORIGINAL:
        return sqrt(fmax(1, n / m));
    case SCALE_SPECTRAL:
        return sqrt(n / m);
    case SCALE_NONE:
        break;
    }
    return 1;
}

static double plain_scale(const MuonConfig *config, UpdateSize size, double n, double m) {
    if (size == UPDATE_ORTHOGONAL) return orthogonal_scale(config, n, m);
    return size == UPDATE_UNIT_NORM ? config->rms * sqrt(n * m) : 1;
}

/* r; 1 without muP. */
static double width_ratio(const Optimizer *opt) {
    const ParamTable *params = opt->params;
    for (int kind = 0; kind < params->kind_count; kind++)
        if (opt->config.mup_base_width > 0 && params->kinds[kind].role == ROLE_EMBED)
            return (double)opt->config.mup_base_width / (double)params->kinds[kind].columns;
    return 1;
}

static double mup_hidden_factor(const MuonConfig *muon, UpdateSize size, double r) {
    const double largest = muon->orthogonalize == ORTHOGONALIZE_SCHATTEN ? pow(r, 1 / muon->schatten_p) : 1;
    switch (size) {
    case UPDATE_ORTHOGONAL:
        return largest * (muon->scale == SCALE_RMS ? sqrt(r) : 1);
    case UPDATE_UNIT_NORM:
        return largest * sqrt(r);
    case UPDATE_UNIT_ELEMENTS:
        return r;
    case UPDATE_LIKE_GRADIENT:
        break;
    }
    return 1;
}

static double mup_channel_factor(const MuonConfig *muon, UpdateSize size, double r) {
    if (size == UPDATE_LIKE_GRADIENT) return 1 / r;
    const bool spread = muon->scale == SCALE_ORIGINAL || muon->scale == SCALE_SPECTRAL;
    return size == UPDATE_ORTHOGONAL && spread ? 1 / sqrt(r) : 1;
}

/* See the head of the file. */
static double mup_factor(const Optimizer *opt, const BlockKind *block, UpdateSize size) {
    const double r = width_ratio(opt);
    if (r == 1) return 1;
    if (params_is_hidden_matrix(block)) return mup_hidden_factor(&opt->config.muon, size, r);
    if (strcmp(block->name, "normf") == 0 || strcmp(block->name, "normf_bias") == 0) return r;
    return mup_channel_factor(&opt->config.muon, size, r);
}

double update_scale(const Optimizer *opt, const BlockKind *block, OptimizerKind optimizer, double n, double m) {
    const UpdateSize size = optimizer_row(optimizer)->size;
    return plain_scale(&opt->config.muon, size, n, m) * mup_factor(opt, block, size);
}

bool optimizer_is_orthogonal(const Optimizer *opt, OptimizerKind kind) {
    return optimizer_row(kind)->size == UPDATE_ORTHOGONAL && opt->config.muon.orthogonalize != ORTHOGONALIZE_SCHATTEN;
}

/* An update of full rank has |U|_2 as measured; elements of size 1 have it up to sqrt(n m). Cautious decay leaves out
 * elements, so that no norm need shrink. */
double optimizer_decay_bound(const Optimizer *opt, const Route *route, double step, double sigma_max, double decay) {
    const BlockKind *block = &opt->params->kinds[route->kind];
    const double elements = (double)block->rows * (double)block->columns;
    if (!(decay > 0) || opt->config.cautious_decay) return (double)NAN;
    switch (optimizer_row(route->optimizer)->size) {
    case UPDATE_ORTHOGONAL:
    case UPDATE_UNIT_NORM:
        return step * sigma_max / decay;
    case UPDATE_UNIT_ELEMENTS:
        return step * sqrt(elements) / decay;
    case UPDATE_LIKE_GRADIENT:
        break;
    }
    return (double)NAN;
}
