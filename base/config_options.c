/* The rows of the option table; see config_options.h.
 *
 * A row names the member of Config once: the JSON key, the offset and the size follow from it. The order of choices is
 * the order of the enum in config.h.
 */
#include "base/config_options.h"

#include <stdio.h>
#include <string.h>

#include "base/integer.h"
#include "base/roles.h"

#define PLACE(member)        .path = #member, .offset = offsetof(Config, member), .size = sizeof(((Config *)0)->member)
#define WHOLE(member)        .type = OPTION_WHOLE, PLACE(member)
#define REAL(member)         .type = OPTION_REAL, PLACE(member)
#define FLAG(member)         .type = OPTION_FLAG, PLACE(member)
#define STRING(member)       .type = OPTION_STRING, PLACE(member)
#define CHOICE(member)       .type = OPTION_CHOICE, PLACE(member)
#define RANGE(low, high)     .minimum = low, .maximum = high
#define COUNT(member)        .count_offset = offsetof(Config, member)
#define LIST(member)         .type = OPTION_LIST, PLACE(member), COUNT(member##_count)
#define OVERRIDES(member, n) .type = OPTION_OVERRIDES, PLACE(member), COUNT(n)
#define COEFFICIENTS(member) .type = OPTION_COEFFICIENTS, PLACE(member)
#define COMPUTED(words)      .presets = {words, words}, .computed = true

typedef const char *const Choices[];

#define OPTIMIZER_NAME(ID, name)    #name,
#define COEFFICIENTS_NAME(ID, name) name,

static Choices devices = {"auto", "ref", "cpu", "cuda", NULL};
static Choices precisions = {"auto", "fp32", "bf16", NULL};
static Choices presets = {"gpt2", "llama", NULL};
static Choices attentions = {"mha", "mla", NULL};
static Choices norms = {"layernorm", "rmsnorm", NULL};
static Choices positions = {"learned", "rope", NULL};
static Choices mlps = {"gelu", "swiglu", NULL};
static Choices on_nonfinites = {"skip", "stop", NULL};
static Choices optimizers = {OPTIMIZER_LIST(OPTIMIZER_NAME) NULL};
static Choices schedules = {"constant", "linear", "cosine", "wsd", NULL};
static Choices momentum_forms = {"sum", "ema", NULL};
static Choices orthogonalizers = {"newton-schulz", "svd", "schatten", NULL};
static Choices coefficient_sets = {COEFFICIENT_LIST(COEFFICIENTS_NAME) NULL};
static Choices newton_schulz_forms = {"auto", "plain", "symmetric", "gram", NULL};
static Choices update_scales = {"rms", "original", "spectral", "none", NULL};
static Choices head_blocks = {HEAD_ROLES(ROLE_NAME) NULL};
static Choices hidden_blocks = {HIDDEN_ROLES(ROLE_NAME) NULL};
#define X(name) #name,
static Choices planned_gpus = {GPU_LIST(X) NULL};
#undef X

const Section config_sections[] = {
    {"", "The run as a whole."},
    {"model", "The network. model.preset gives the defaults of the keys that are not set."},
    {"data", "Training and validation text."},
    {"train", "The step loop."},
    {"optimizer", "Hidden matrices go to optimizer.matrices; embeddings, head, norms and biases to AdamW."},
    {"optimizer.schedule", "The learning rate over the steps, as a factor of lr."},
    {"optimizer.decay_schedule", "The weight decay over the steps, as a factor of weight_decay."},
    {"optimizer.muon", "Muon: orthogonalized momentum. normuon, adamuon and sgd share its momentum; normuon and "
                       "adamuon also its orthogonalization, per_head and rms."},
    {"optimizer.adamw", "AdamW, decoupled decay."},
    {"optimizer.normuon", "NorMuon: Muon with a second moment of each row of the update, scaled to muon.rms."},
    {"optimizer.adamuon", "AdaMuon: the orthogonalized sign of the momentum, with a second moment of each element, "
                          "scaled to muon.rms."},
    {"optimizer.lion", "Lion: the sign of a momentum. Its learning rate should be 3 to 10 times below AdamW's."},
    {"qk_clip", "QK-Clip scales W_q and W_k of heads whose largest attention logit exceeds a threshold."},
    {"probe", "Read-only measurements in metrics.jsonl."},
    {"checkpoint", "What a run can resume from."},
    {"debug", "For finding NaNs, and for testing how they are handled."},
    {"dry_run", "What --dry-run device=cuda predicts; no GPU is needed."},
};
const int config_section_count = sizeof config_sections / sizeof *config_sections;

const Option config_options[] = {
    {STRING(name), .initial = "default", .help = "The run's folder is runs_dir/name."},
    {WHOLE(seed), .initial = "1337", RANGE(0, 0x1p53), .help = "Seed of initialisation and data order."},
    {STRING(device), .initial = "auto", .choices = devices, .help = "Backend; auto takes the fastest that works here."},
    {STRING(precision), .initial = "auto", .choices = precisions,
     .help = "Storage of activations and of the weights that forward reads; auto takes what suits the device."},
    {WHOLE(threads), .initial = "0", RANGE(0, 1024), .help = "CPU threads; 0: all."},
    {FLAG(profile), .initial = "false", .help = "Print the time of each op at the end."},
    {STRING(runs_dir), .initial = "runs", .help = "Folder of all runs."},

    {CHOICE(model.preset), .initial = "llama", .choices = presets, .help = "Family whose parts are the defaults."},
    {WHOLE(model.layers), .initial = "6", RANGE(1, 1024), .help = "Transformer blocks."},
    {WHOLE(model.heads), .initial = "6", RANGE(1, 1024), .help = "Query heads; they divide width."},
    {WHOLE(model.kv_heads), COMPUTED("heads"), RANGE(1, 1024),
     .help = "Key and value heads; they divide heads. Fewer than heads: grouped-query attention."},
    {WHOLE(model.width), .initial = "384", RANGE(1, 65536), .help = "Channels of the residual stream."},
    {WHOLE(model.context), .initial = "256", RANGE(1, 1 << 20), .unit = "tokens",
     .help = "Tokens that attention sees."},
    {WHOLE(model.vocab), .initial = "256", RANGE(2, 1 << 20), .unit = "tokens", .help = "Number of distinct tokens."},
    {CHOICE(model.attention), .initial = "mha", .choices = attentions,
     .help = "mha: multi-head, grouped-query if kv_heads < heads; mla: multi-head latent (DeepSeek-V2)."},
    {WHOLE(model.q_rank), COMPUTED("mla: width / 2"), RANGE(0, 65536),
     .help = "mla: rank of the queries' latent vector; 0: queries come from the residual stream."},
    {WHOLE(model.kv_rank), COMPUTED("mla: 4 * head_nope, width / 2 at most"), RANGE(0, 65536),
     .help = "mla: rank of the latent vector that keys and values come from; 0: the default."},
    {WHOLE(model.head_nope), COMPUTED("mla: width / heads"), RANGE(0, 4096),
     .help = "mla: channels of a head's queries and keys without position; 0: the default."},
    {WHOLE(model.head_rope), COMPUTED("mla: head_nope / 2, rounded up to even"), RANGE(0, 4096),
     .help = "mla: further channels, rotated by rope; their key is shared by all heads; 0: the default."},
    {WHOLE(model.head_value), COMPUTED("mla: head_nope"), RANGE(0, 4096),
     .help = "mla: channels of a head's values; 0: the default."},
    {CHOICE(model.norm), .presets = {"layernorm", "rmsnorm"}, .choices = norms, .help = "Normalisation."},
    {CHOICE(model.position), .presets = {"learned", "rope"}, .choices = positions, .help = "Position encoding."},
    {CHOICE(model.mlp), .presets = {"gelu", "swiglu"}, .choices = mlps, .help = "Feed-forward part."},
    {WHOLE(model.mlp_width), .presets = {"4 * width", "8/3 * width, rounded up to a multiple of 64"}, .computed = true,
     RANGE(1, 1 << 20), .help = "Hidden channels of the feed-forward part."},
    {FLAG(model.bias), .presets = {"true", "false"}, .help = "Biases in linear layers and norms."},
    {FLAG(model.tie_embeddings), .presets = {"true", "true"}, .help = "The output head is the token embedding."},
    {FLAG(model.qk_norm), .initial = "false", .help = "Normalise the queries and keys of each head."},
    {REAL(model.attention_softcap), .initial = "0", RANGE(0, 1e6),
     .help = "Attention logits become cap * tanh(logit / cap); 0: off."},
    {REAL(model.rope_theta), .initial = "10000", RANGE(1, 1e9), .help = "Base of rotary positions."},
    {REAL(model.norm_eps), .initial = "1e-5", RANGE(1e-12, 1), .help = "Epsilon of the norms."},
    {REAL(model.init_std), .initial = "0.02", RANGE(0, 10), .help = "Standard deviation of initial weights."},

    {STRING(data.train), .initial = "synthetic", .help = "Glob of token shards, or the built-in language: synthetic."},
    {STRING(data.val), .initial = "synthetic", .help = "The same, for validation."},
    {WHOLE(data.synthetic_states), .initial = "64", RANGE(1, 65536),
     .help = "Contexts of the built-in language's grammar."},
    {REAL(data.synthetic_zipf), .initial = "1.2", RANGE(0, 10), .help = "Exponent of its word frequencies."},

    {WHOLE(train.steps), .initial = "1000", RANGE(1, 1e9), .unit = "steps", .help = "Optimizer steps."},
    {WHOLE(train.batch), .initial = "16", RANGE(1, 1 << 20), .unit = "sequences", .help = "Sequences per step."},
    {WHOLE(train.micro_batch), .initial = "0", RANGE(0, 1 << 20), .unit = "sequences",
     .help = "Sequences per forward and backward pass; divides batch. 0: batch."},
    {REAL(train.grad_clip), .initial = "1.0", RANGE(0, 1e9), .help = "Largest norm of the gradient; 0: off."},
    {WHOLE(train.eval_every), .initial = "100", RANGE(0, 1e9), .unit = "steps",
     .help = "Steps between validations; 0: only at the end."},
    {WHOLE(train.eval_batches), .initial = "8", RANGE(0, 1e9), .unit = "micro-batches",
     .help = "Micro-batches per validation; 0: the whole validation set."},
    {CHOICE(train.on_nonfinite), .initial = "skip", .choices = on_nonfinites,
     .help = "What a loss or gradient that is not finite does: skip the step, or stop the run."},
    {STRING(train.init_from), .initial = "seed",
     .help =
         "Run or checkpoint whose weights a new run starts with, whatever its optimizer and data; seed: random ones."},

    {CHOICE(optimizer.matrices), .initial = "muon", .choices = optimizers, .help = "Optimizer of hidden matrices."},
    {REAL(optimizer.lr), .initial = "0.002", RANGE(0, 100), .help = "Peak learning rate."},
    {REAL(optimizer.weight_decay), .initial = "0.1", RANGE(0, 100),
     .help = "Decoupled decay of matrices and embeddings: W loses lr * weight_decay of itself per step."},
    {FLAG(optimizer.cautious_decay), .initial = "false",
     .help = "Decay only weights that have the sign of their update, which moves them towards 0."},
    {WHOLE(optimizer.mup_base_width), .initial = "0", RANGE(0, 65536), .unit = "channels",
     .help = "muP: scale rates and initial weights so that what was tuned at this width holds at model.width; 0: off."},
    {OVERRIDES(optimizer.overrides, optimizer.override_count), .initial = "{}", .choices = optimizers,
     .help = "Optimizer by shell pattern on block names, such as {\"layers.0.*\": \"adamw\"}; the last match wins."},

    {CHOICE(optimizer.schedule.kind), .initial = "wsd", .choices = schedules,
     .help = "Shape after the warmup; wsd: constant, then a linear cooldown."},
    {WHOLE(optimizer.schedule.warmup), .initial = "50", RANGE(0, 1e9), .unit = "steps",
     .help = "Steps of linear rise from 0; unless set, at most train.steps."},
    {REAL(optimizer.schedule.cooldown), .initial = "0.2", RANGE(0, 1), .unit = "fraction of steps",
     .help = "wsd: the part at the end that decays."},
    {REAL(optimizer.schedule.final), .initial = "0.0", RANGE(0, 1), .unit = "fraction of lr",
     .help = "Learning rate at the end."},

    {CHOICE(optimizer.decay_schedule.kind), .initial = "constant", .choices = schedules,
     .help = "Shape after the warmup; wsd: constant, then a linear cooldown."},
    {WHOLE(optimizer.decay_schedule.warmup), .initial = "0", RANGE(0, 1e9), .unit = "steps",
     .help = "Steps of linear rise from 0."},
    {REAL(optimizer.decay_schedule.cooldown), .initial = "0.2", RANGE(0, 1), .unit = "fraction of steps",
     .help = "wsd: the part at the end that decays."},
    {REAL(optimizer.decay_schedule.final), .initial = "0.0", RANGE(0, 1), .unit = "fraction of weight_decay",
     .help = "Weight decay at the end; constant ignores it."},

    {REAL(optimizer.muon.momentum), .initial = "0.95", RANGE(0, 0.999999), .help = "mu, the decay of the momentum M."},
    {REAL(optimizer.muon.momentum_start), .initial = "0.85", RANGE(0, 0.999999),
     .help = "Where mu begins with momentum_warmup, and ends with momentum_cooldown."},
    {WHOLE(optimizer.muon.momentum_warmup), .initial = "0", RANGE(0, 1e9), .unit = "steps",
     .help = "Steps over which mu rises linearly from momentum_start; 0: none."},
    {WHOLE(optimizer.muon.momentum_cooldown), .initial = "0", RANGE(0, 1e9), .unit = "steps",
     .help = "Steps at the end over which mu returns to momentum_start; 0: none."},
    {CHOICE(optimizer.muon.momentum_form), .initial = "sum", .choices = momentum_forms,
     .help = "sum: M = mu M + G; ema: M = mu M + (1 - mu) G."},
    {FLAG(optimizer.muon.nesterov), .initial = "true", .help = "The update looks one gradient ahead."},
    {CHOICE(optimizer.muon.orthogonalize), .initial = "newton-schulz", .choices = orthogonalizers,
     .help = "How msign(U) is computed. svd is exact and slow; schatten is steepest descent in another norm, by SVD."},
    {CHOICE(optimizer.muon.form), .initial = "auto", .choices = newton_schulz_forms,
     .help = "Newton-Schulz by full products, by half of symmetric ones, or on Gram matrices, which needs fp32; auto: "
             "the fastest for each shape. The results are the same up to rounding."},
    {REAL(optimizer.muon.schatten_p), .initial = "4", RANGE(2, 1e6),
     .help = "schatten: the p of the norm. 2 is the normalised gradient; the larger, the nearer to msign(U)."},
    {COEFFICIENTS(optimizer.muon.coefficients), .initial = "muon", .choices = coefficient_sets, RANGE(-1e6, 1e6),
     .help = "Newton-Schulz polynomial: a named set, or [[a, b, c], ...], one triple per iteration."},
    {WHOLE(optimizer.muon.iterations), .initial = "5", RANGE(1, 100),
     .help = "For a set with one triple; the other sets have their own number."},
    {CHOICE(optimizer.muon.scale), .initial = "rms", .choices = update_scales,
     .help = "Scale of muon's (n, m) update. rms: rms * sqrt(max(n, m)); original: sqrt(max(1, n/m)); spectral: "
             "sqrt(n/m)."},
    {REAL(optimizer.muon.rms), .initial = "0.2", RANGE(0, 100),
     .help = "Root mean square of an update's elements, in units of lr: for scale rms, and for normuon and adamuon."},
    {LIST(optimizer.muon.per_head), .initial = "[]", .choices = head_blocks,
     .help = "Blocks that are orthogonalized head by head. With mla, q, q_rope, k and v make the Muon Split of GLM-5."},

    {REAL(optimizer.adamw.lr), .initial = "0", RANGE(0, 100), .help = "Peak learning rate; 0: optimizer.lr."},
    {REAL(optimizer.adamw.beta1), .initial = "0.9", RANGE(0, 0.999999), .help = "Decay of the first moment."},
    {REAL(optimizer.adamw.beta2), .initial = "0.95", RANGE(0, 0.999999), .help = "Decay of the second moment."},
    {REAL(optimizer.adamw.eps), .initial = "1e-8", RANGE(1e-30, 1), .help = "Added to the root."},

    {REAL(optimizer.normuon.beta2), .initial = "0.95", RANGE(0, 0.999999), .help = "Decay of the second moment."},
    {REAL(optimizer.normuon.eps), .initial = "1e-10", RANGE(1e-30, 1), .help = "Added to the root."},

    {REAL(optimizer.adamuon.beta2), .initial = "0.95", RANGE(0, 0.999999), .help = "Decay of the second moment."},
    {REAL(optimizer.adamuon.eps), .initial = "1e-8", RANGE(1e-30, 1), .help = "Added to the root."},

    {REAL(optimizer.lion.beta1), .initial = "0.9", RANGE(0, 0.999999),
     .help = "Weight of the old momentum in the update, the sign of beta1 M + (1 - beta1) G."},
    {REAL(optimizer.lion.beta2), .initial = "0.99", RANGE(0, 0.999999), .help = "Decay of the momentum M."},

    {FLAG(qk_clip.enabled), .initial = "true", .help = "Clip after each step; unless set, off with model.qk_norm."},
    {REAL(qk_clip.threshold), .initial = "100.0", RANGE(1e-3, 1e9), .help = "tau, the largest logit."},
    {REAL(qk_clip.alpha), .initial = "0.5", RANGE(0, 1), .help = "W_q *= gamma^alpha, W_k *= gamma^(1 - alpha)."},

#define X(ID, name, every, text)                                                                                       \
    {WHOLE(probe.name##_every), .initial = every, RANGE(0, 1e9), .unit = "steps", .help = text},
    PROBE_LIST(X)
#undef X
        {FLAG(probe.orthogonality), .initial = "true",
         .help = "spectrum also tells how far from orthogonal the orthogonalized updates are."},
    {FLAG(probe.rms), .initial = "true",
     .help = "spectrum also tells the size of updates, and how large the decay lets weights grow."},
    {LIST(probe.blocks), .initial = "[\"q\",\"k\"]", .choices = hidden_blocks,
     .help = "Blocks that collision, momentum and shadow watch; those the model lacks are skipped."},
    {WHOLE(probe.collision_top), .initial = "8", RANGE(1, 64), .unit = "triples",
     .help = "k: how many of the largest singular triples count."},

    {WHOLE(checkpoint.every), .initial = "500", RANGE(0, 1e9), .unit = "steps",
     .help = "Steps between checkpoints; 0: only at the end."},
    {WHOLE(checkpoint.keep), .initial = "3", RANGE(0, 1e9),
     .help = "How many of the newest checkpoints to keep; 0: all."},

    {FLAG(debug.scan_nan), .initial = "false", .help = "Stop at the first op that makes a NaN, and name it; slow."},
    {STRING(debug.fault), .initial = "off",
     .help = "op:calls turns an output of that op into NaN after so many calls, such as linear:37."},

    {CHOICE(dry_run.gpu), .initial = "H100", .choices = planned_gpus,
     .help = "The GPU whose training step is predicted."},
};
const int config_option_count = sizeof config_options / sizeof *config_options;

const RetiredKey config_retired[] = {
    {"probe.clips_every", "the clips of every head are summed up by inspect and the comparison page"},
};
const int config_retired_count = sizeof config_retired / sizeof *config_retired;

_Static_assert(sizeof config_options / sizeof *config_options <= OPTION_MAX, "OPTION_MAX is too small");
_Static_assert(sizeof config_retired / sizeof *config_retired <= RETIRED_MAX, "RETIRED_MAX is too small");
_Static_assert(sizeof(Preset) == sizeof(int), "choices are written through int");

const Option *option_find(const char *path) {
    for (int i = 0; i < config_option_count; i++)
        if (strcmp(config_options[i].path, path) == 0) return &config_options[i];
    return NULL;
}

const Section *section_find(const char *path) {
    for (int i = 0; i < config_section_count; i++)
        if (strcmp(config_sections[i].path, path) == 0) return &config_sections[i];
    return NULL;
}

const RetiredKey *option_find_retired(const char *path) {
    for (int i = 0; i < config_retired_count; i++)
        if (strcmp(config_retired[i].path, path) == 0) return &config_retired[i];
    return NULL;
}

const char *option_key(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

int option_section_length(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot ? (int)(dot - path) : 0;
}

char *option_join_choices(const Option *option, char *buffer) {
    int used = 0;
    buffer[0] = '\0';
    for (const char *const *choice = option->choices; *choice; choice++) {
        used += snprintf(buffer + used, (size_t)(LINE_SIZE - used), "%s%s", used ? ", " : "", *choice);
        CHECK(used < LINE_SIZE, "choices of %s are too long", option->path);
    }
    return buffer;
}

/* ---- slips ------------------------------------------------------------------------------------------------------ */

/* Levenshtein's distance: insertions, deletions and replacements that turn a into b. */
static int edit_distance(const char *a, const char *b) {
    int row[NAME_SIZE + 1];
    int columns = (int)strnlen(b, NAME_SIZE);
    for (int j = 0; j <= columns; j++) row[j] = j;
    for (int i = 0; a[i]; i++) {
        int diagonal = row[0];
        row[0] = i + 1;
        for (int j = 0; j < columns; j++) {
            int64_t replaced = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = (int)smaller(replaced, 1 + smaller(row[j], row[j + 1]));
        }
    }
    return row[columns];
}

/* Words up to this far are taken for what was meant: two edits for "wdith", none for a single letter. */
static int slip_limit(const char *typed) {
    int64_t length = (int64_t)strlen(typed);
    return length < 2 ? 0 : (int)smaller((length + 2) / 3, length - 1);
}

/* Whether it is less than *distance from what was typed, which then becomes the distance. */
static bool is_nearer(const char *typed, const char *word, int *distance) {
    int found = edit_distance(typed, word);
    bool nearer = found < *distance;
    if (nearer) *distance = found;
    return nearer;
}

static bool same_section(const char *a, const char *b) {
    int length = option_section_length(a);
    return length == option_section_length(b) && strncmp(a, b, (size_t)length) == 0;
}

static const char *known_path(int i) {
    return i < config_option_count ? config_options[i].path : config_sections[i - config_option_count].path;
}

const char *option_nearest_path(const char *typed) {
    const char *key = option_key(typed);
    for (int anywhere = 0; anywhere <= 1; anywhere++) {
        const char *best = NULL;
        int distance = slip_limit(key) + 1;
        for (int i = 0; i < config_option_count + config_section_count; i++) {
            const char *path = known_path(i);
            if (!*path || (!anywhere && !same_section(path, typed))) continue;
            if (is_nearer(key, option_key(path), &distance)) best = path;
        }
        if (best) return anywhere ? best : option_key(best);
    }
    return NULL;
}

const char *option_nearest_choice(const Option *option, const char *typed) {
    const char *best = NULL;
    int distance = slip_limit(typed) + 1;
    if (strlen(typed) >= NAME_SIZE) return NULL;
    for (const char *const *choice = option->choices; *choice; choice++)
        if (is_nearer(typed, *choice, &distance)) best = *choice;
    return best;
}
