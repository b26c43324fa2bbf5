/* QK-Clip; see qk_clip.h. */
#include "optim/qk_clip.h"

#include <math.h>

#include "ops/ops.h"

static const BlockKind *find_block(const ParamTable *params, ClipPower power) {
    for (int kind = 0; kind < params->kind_count; kind++)
        if (params->kinds[kind].clip == power) return &params->kinds[kind];
    return NULL;
}

static double clip_factor(ClipPower power, double gamma, double alpha, bool shared_key) {
    switch (power) {
    case CLIP_QUERY:
        return shared_key ? gamma : pow(gamma, alpha);
    case CLIP_KEY:
        return shared_key ? 1 : pow(gamma, 1 - alpha);
    case CLIP_WHOLE:
        return gamma;
    default:
        return 1;
    }
}

/* Master and working copy of one head's part of a block. */
static void scale_head(Backend *be, const ParamTable *params, int kind, int64_t layer, int64_t head, double factor) {
    Tensor master = params_block_head(params, params->master, kind, layer, (int)head);
    op_scale(be, master, (float)factor);
    if (params->work.data != params->master.data)
        op_copy(be, params_block_head(params, params->work, kind, layer, (int)head), master);
}

static void clip_head(Backend *be, const ParamTable *params, double alpha, bool shared_key, int64_t layer, int64_t head,
                      double gamma) {
    for (int kind = 0; kind < params->kind_count; kind++) {
        const double factor = clip_factor(params->kinds[kind].clip, gamma, alpha, shared_key);
        if (factor < 1) scale_head(be, params, kind, layer, head, factor);
    }
}

int64_t qk_clip_apply(Backend *be, const ParamTable *params, const QkClipConfig *config, const float *max_logit,
                      ClipEvent *events) {
    const BlockKind *query = find_block(params, CLIP_QUERY), *key = find_block(params, CLIP_KEY);
    CHECK(query && key, "a model of %d kinds of block has no queries and keys", params->kind_count);
    const int64_t layers = query->layers, heads = query->heads;
    int64_t count = 0;
    for (int64_t layer = 0; layer < layers; layer++)
        for (int64_t head = 0; head < heads; head++) {
            float S = max_logit[layer * heads + head];
            if (!isfinite(S) || (double)S <= config->threshold) continue; /* so S > tau > 0 below */
            double gamma = config->threshold / (double)S;
            clip_head(be, params, config->alpha, key->heads < heads, layer, head, gamma);
            events[count++] = (ClipEvent){.layer = layer, .head = head, .gamma = (float)gamma, .max_logit = S};
        }
    return count;
}
