/* What depends on more than one option; see config_rules.h. */
#include "base/config_rules.h"

#include <stdarg.h>
#include <string.h>

#include "base/integer.h"

static int origin_of(const ConfigDraft *d, const char *path) {
    const Option *option = option_find(path);
    CHECK(option, "no option %s", path);
    return d->origins[option - config_options];
}

static bool is_set(const ConfigDraft *d, const char *path) {
    return origin_of(d, path) != FROM_DEFAULT;
}

/* ---- values worked out of others --------------------------------------------------------------------------------- */

static void default_to(int64_t *value, int64_t computed) {
    if (*value == 0) *value = computed;
}

/* DeepSeek-V3's proportions, but for kv_rank where heads are few: a latent vector as wide as the stream saves nothing.
 */
static void resolve_mla(const ConfigDraft *d, ModelConfig *m) {
    int64_t head = larger(m->width / m->heads, 1), half = larger(m->width / 2, 1);
    default_to(&m->head_nope, head);
    default_to(&m->head_rope, (m->head_nope + 3) / 4 * 2);
    default_to(&m->head_value, m->head_nope);
    default_to(&m->kv_rank, smaller(4 * m->head_nope, half));
    if (!is_set(d, "model.q_rank")) m->q_rank = half;
}

void config_resolve(ConfigDraft *d) {
    Config *c = &d->config;
    ModelConfig *m = &c->model;
    if (!is_set(d, "model.kv_heads")) m->kv_heads = m->heads;
    if (m->attention == ATTENTION_MLA) resolve_mla(d, m);
    if (!is_set(d, "model.mlp_width"))
        m->mlp_width = m->preset == PRESET_GPT2 ? 4 * m->width : (8 * m->width + 3 * 64 - 1) / (3 * 64) * 64;
    if (c->train.micro_batch == 0) c->train.micro_batch = c->train.batch;
    int64_t *warmup = &c->optimizer.schedule.warmup;
    if (!is_set(d, "optimizer.schedule.warmup")) *warmup = smaller(*warmup, c->train.steps);
    if (!is_set(d, "qk_clip.enabled") && m->qk_norm) c->qk_clip.enabled = false;
    if (!is_set(d, "probe.bound_every") && m->qk_norm) c->probe.bound_every = 0;
}

/* ---- what cannot be combined ------------------------------------------------------------------------------------- */

const char *config_format_place(const ConfigDraft *d, int origin, char *buffer) {
    if (origin > 0) {
        snprintf(buffer, PLACE_SIZE, "%s:%d", d->file, origin);
    } else {
        snprintf(buffer, PLACE_SIZE, "command line");
    }
    return buffer;
}

/* An error about two options, at the place that was read last. */
static Status refuse(const ConfigDraft *d, const char *path, const char *other, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static Status refuse(const ConfigDraft *d, const char *path, const char *other, const char *format, ...) {
    char place[PLACE_SIZE], reason[LINE_SIZE];
    int a = origin_of(d, path), b = origin_of(d, other);
    bool typed = a == FROM_COMMAND_LINE || b == FROM_COMMAND_LINE;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    config_format_place(d, typed ? FROM_COMMAND_LINE : (int)larger(a, b), place);
    return BAD_INPUT("%s: %s", place, reason);
}

static Status check_name(const ConfigDraft *d) {
    const char *name = d->config.name;
    if (!strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0) return status_ok();
    return refuse(d, "name", "name", "name: \"%s\" is not a folder name; the run's folder is runs_dir/name", name);
}

/* What latent attention rules out. */
static Status check_mla(const ConfigDraft *d) {
    const ModelConfig *m = &d->config.model;
    static const char mla[] = "model.attention";
    if (m->position != POSITION_ROPE)
        return refuse(d, mla, "model.position",
                      "model.attention \"mla\" takes its positions from rope; set model.position to \"rope\"");
    if (m->kv_heads != m->heads)
        return refuse(d, mla, "model.kv_heads",
                      "model.attention \"mla\" gives every head its own keys and values; leave out "
                      "model.kv_heads (%lld, with model.heads %lld)",
                      (long long)m->kv_heads, (long long)m->heads);
    if (m->qk_norm)
        return refuse(d, mla, "model.qk_norm",
                      "model.attention \"mla\" normalises its latent vectors and has no model.qk_norm; turn it off");
    if (m->bias) return refuse(d, mla, "model.bias", "model.attention \"mla\" has no biases; set model.bias to false");
    if (m->head_rope % 2)
        return refuse(d, mla, "model.head_rope", "rope turns pairs of channels, and model.head_rope (%lld) is odd",
                      (long long)m->head_rope);
    return status_ok();
}

/* Keys that mean nothing without latent attention. */
static Status check_mla_is_off(const ConfigDraft *d) {
    const MuonConfig *muon = &d->config.optimizer.muon;
    static const char *const keys[] = {"model.q_rank", "model.kv_rank", "model.head_nope", "model.head_rope",
                                       "model.head_value"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const void *value = (const char *)&d->config + option_find(keys[i])->offset;
        if (*(const int64_t *)value == 0) continue;
        return refuse(d, keys[i], "model.attention", "%s needs model.attention \"mla\"; set that, or leave it out",
                      keys[i]);
    }
    for (int i = 0; i < muon->per_head_count; i++) {
        if (strcmp(muon->per_head[i], "q_rope") != 0) continue;
        return refuse(d, "optimizer.muon.per_head", "model.attention",
                      "optimizer.muon.per_head: \"q_rope\" exists only under model.attention \"mla\"");
    }
    return status_ok();
}

/* `path` is to be a multiple of `divisor`. */
static Status check_divides(const ConfigDraft *d, const char *divisor, int64_t small, const char *path, int64_t large) {
    if (large % small == 0) return status_ok();
    return refuse(d, path, divisor, "%s (%lld) is not divisible by %s (%lld)", path, (long long)large, divisor,
                  (long long)small);
}

static Status check_model(const ConfigDraft *d) {
    const ModelConfig *m = &d->config.model;
    const bool mla = m->attention == ATTENTION_MLA;
    Status status;
    if (FAILED(status, mla ? check_mla(d) : check_mla_is_off(d))) return status;
    if (!mla && FAILED(status, check_divides(d, "model.heads", m->heads, "model.width", m->width))) return status;
    if (FAILED(status, check_divides(d, "model.kv_heads", m->kv_heads, "model.heads", m->heads))) return status;
    if (!mla && m->position == POSITION_ROPE && m->width / m->heads % 2)
        return refuse(d, "model.width", "model.heads",
                      "rope turns pairs of channels, and a head of model.width / model.heads = %lld channels is "
                      "odd; change them, or set model.position to \"learned\"",
                      (long long)(m->width / m->heads));
    if (m->qk_norm && d->config.qk_clip.enabled)
        return refuse(d, "model.qk_norm", "qk_clip.enabled",
                      "qk_clip.enabled cannot work with model.qk_norm: the norm undoes the scaling; turn one off");
    if (m->qk_norm && d->config.probe.bound_every > 0)
        return refuse(d, "model.qk_norm", "probe.bound_every",
                      "probe.bound_every cannot work with model.qk_norm: the norms of W_q and W_k then bound no logit; "
                      "set it to 0");
    return status_ok();
}

static Status check_warmup(const ConfigDraft *d, const char *path, int64_t warmup) {
    const int64_t steps = d->config.train.steps;
    if (warmup <= steps) return status_ok();
    return refuse(d, path, "train.steps", "%s (%lld) is longer than train.steps (%lld)", path, (long long)warmup,
                  (long long)steps);
}

static Status check_optimizer(const ConfigDraft *d) {
    const OptimizerConfig *o = &d->config.optimizer;
    const int64_t warmup = o->muon.momentum_warmup, cooldown = o->muon.momentum_cooldown;
    Status status;
    if (FAILED(status, check_warmup(d, "optimizer.schedule.warmup", o->schedule.warmup))) return status;
    if (FAILED(status, check_warmup(d, "optimizer.decay_schedule.warmup", o->decay_schedule.warmup))) return status;
    if (warmup + cooldown > d->config.train.steps)
        return refuse(d, "optimizer.muon.momentum_warmup", "optimizer.muon.momentum_cooldown",
                      "optimizer.muon.momentum_warmup (%lld) and momentum_cooldown (%lld) together are longer than "
                      "train.steps (%lld)",
                      (long long)warmup, (long long)cooldown, (long long)d->config.train.steps);
    if (o->mup_base_width > 0 && o->muon.per_head_count > 0)
        return refuse(d, "optimizer.mup_base_width", "optimizer.muon.per_head",
                      "optimizer.mup_base_width cannot be combined with optimizer.muon.per_head: its rules are for "
                      "matrices that grow on both sides, and heads do not; turn one off");
    return status;
}

Status config_check(const ConfigDraft *d) {
    const TrainConfig *t = &d->config.train;
    Status status;
    if (FAILED(status, check_name(d))) return status;
    if (FAILED(status, check_model(d))) return status;
    if (FAILED(status, check_divides(d, "train.micro_batch", t->micro_batch, "train.batch", t->batch))) return status;
    return check_optimizer(d);
}
