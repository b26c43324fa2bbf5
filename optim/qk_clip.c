/* QK-Clip; see qk_clip.h. */
#include "optim/qk_clip.h"

#include <math.h>

#include "ops/ops.h"

/* Master and working copy of one head's rows in the block called `name`; a block that the model lacks is passed over.
 */
static void scale_head(Backend *be, const ParamTable *params, const char *name, int64_t layer, int64_t head,
                       double factor) {
    int kind = params_find_kind(params, name);
    if (kind < 0) return;
    Tensor master = params_block_head(params, params->master, kind, layer, (int)head);
    op_scale(be, master, (float)factor);
    if (params->work.data != params->master.data)
        op_copy(be, params_block_head(params, params->work, kind, layer, (int)head), master);
}

static void clip_head(Backend *be, const ParamTable *params, double alpha, bool shared_key, int64_t layer, int64_t head,
                      double gamma) {
    double of_query = shared_key ? gamma : pow(gamma, alpha);
    scale_head(be, params, "q", layer, head, of_query);
    scale_head(be, params, "q_bias", layer, head, of_query);
    scale_head(be, params, "q_rope", layer, head, gamma); /* its key is every head's, and stays */
    if (shared_key) return;
    scale_head(be, params, "k", layer, head, pow(gamma, 1 - alpha));
    scale_head(be, params, "k_bias", layer, head, pow(gamma, 1 - alpha));
}

int64_t qk_clip_apply(Backend *be, const ParamTable *params, const QkClipConfig *config, int64_t kv_heads,
                      const float *max_logit, ClipEvent *events) {
    int query = params_find_kind(params, "q");
    CHECK(query >= 0, "a model of %d kinds of block has no queries", params->kind_count);
    int64_t layers = params_kind_layers(params, query), heads = params->kinds[query].heads, count = 0;
    for (int64_t layer = 0; layer < layers; layer++)
        for (int64_t head = 0; head < heads; head++) {
            float S = max_logit[layer * heads + head];
            if (!isfinite(S) || (double)S <= config->threshold) continue; /* so S > tau > 0 below */
            double gamma = config->threshold / (double)S;
            clip_head(be, params, config->alpha, kv_heads < heads, layer, head, gamma);
            events[count++] = (ClipEvent){.layer = layer, .head = head, .gamma = (float)gamma, .max_logit = S};
        }
    return count;
}
