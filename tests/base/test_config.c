/* Configuration: what is accepted, what it resolves to, and the exact sentence for everything that is refused.
 *
 * `test_config --markdown` prints what belongs between the markers of docs/configuration.md.
 */
#include "tests/support.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "base/config_options.h"

enum { OVERRIDES_MAX = 4, FILE_LIMIT = 1 << 20 };

static char folder[PATH_SIZE];

static int open_folder(void **state) {
    (void)state;
    test_folder(folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    assert_ok(folder_remove(folder));
    return 0;
}

/* Loads the text as folder/x.json (NULL: no file) with up to OVERRIDES_MAX overrides, NULL-terminated if fewer. */
static Status load(Config *config, const char *text, const char *const *overrides) {
    char path[PATH_SIZE];
    char *arguments[OVERRIDES_MAX] = {0};
    int count = 0;
    if (text) test_write_file(path, folder, "x.json", text, (int64_t)strlen(text));
    for (; overrides && count < OVERRIDES_MAX && overrides[count]; count++) arguments[count] = (char *)overrides[count];
    return config_load(config, text ? path : NULL, count, arguments);
}

static Config load_ok(const char *text, const char *const *overrides) {
    static Config config;
    assert_ok(load(&config, text, overrides));
    return config;
}

/* Everything that a FILE * printer prints; the caller frees it. */
static char *printed(void (*print)(FILE *)) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(out);
    print(out);
    fclose(out);
    return text;
}

/* ---- refusals --------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *file; /* NULL: none */
    const char *overrides[OVERRIDES_MAX];
    const char *message;
} Refusal;

static const Refusal refusals[] = {
    /* unknown keys */
    {"{\n \"optimizer\": {\"muon\": {\n  \"momentm\": 1}}}",
     {0},
     "x.json:3: optimizer.muon.momentm: unknown key; did you mean \"momentum\"?"},
    {"{\"model\": {\"wdith\": 1}}", {0}, "x.json:1: model.wdith: unknown key; did you mean \"width\"?"},
    {"{\"optimiser\": {}}", {0}, "x.json:1: optimiser: unknown key; did you mean \"optimizer\"?"},
    {"{\"lr\": 1}", {0}, "x.json:1: lr: unknown key; did you mean \"optimizer.lr\"?"},
    {"{\"optimizer\": {\"momentum\": 1}}",
     {0},
     "x.json:1: optimizer.momentum: unknown key; did you mean \"optimizer.muon.momentum\"?"},
    {"{\"zzzzzz\": 1}", {0}, "x.json:1: zzzzzz: unknown key; train_gpt --help lists all keys"},
    {"{\"model.width\": 1}", {0}, "x.json:1: model.width: keys in a file contain no dots; nest objects"},
    {"{\"\": {\"seed\": 1}}", {0}, "x.json:1: : unknown key; train_gpt --help lists all keys"},
    {NULL, {"model.withd=5"}, "command line: model.withd: unknown key; did you mean \"width\"?"},
    {NULL, {"resume"}, "command line: expected key=value, found \"resume\""},
    {NULL, {"=5"}, "command line: expected key=value, found \"=5\""},
    /* keys given twice */
    {"{\"seed\": 1,\n\"seed\": 1}", {0}, "x.json:2: seed: the key is given twice"},
    {"{\"model\": {},\n\"seed\": 1,\n\"model\": {}}", {0}, "x.json:3: model: the key is given twice"},
    {"{\"optimizer\": {\"overrides\": {\"embed\": \"muon\",\n \"embed\": \"adamw\"}}}",
     {0},
     "x.json:2: optimizer.overrides.embed: the key is given twice"},
    /* types */
    {"[]", {0}, "x.json:1: the configuration: expected an object { ... }, found a list"},
    {"{\"model\": 3}", {0}, "x.json:1: model: expected an object { ... }, found 3"},
    {"{\"train\": {\"steps\": \"abc\"}}",
     {0},
     "x.json:1: train.steps: expected a whole number, found the string \"abc\""},
    {"{\"train\": {\"steps\": 1.5}}", {0}, "x.json:1: train.steps: expected a whole number, found 1.5"},
    {"{\"train\": {\"steps\": null}}", {0}, "x.json:1: train.steps: expected a whole number, found null"},
    {"{\"train\": {\"grad_clip\": true}}", {0}, "x.json:1: train.grad_clip: expected a number, found true"},
    {"{\"profile\": 1}", {0}, "x.json:1: profile: expected true or false, found 1"},
    {"{\"name\": 12}", {0}, "x.json:1: name: expected a string, found 12"},
    {"{\"model\": {\"norm\": {}}}", {0}, "x.json:1: model.norm: expected one of layernorm, rmsnorm, found an object"},
    {"{\"optimizer\": {\"muon\": {\"per_head\": \"q\"}}}",
     {0},
     "x.json:1: optimizer.muon.per_head: expected a list such as [\"q\", \"k\"], found the string \"q\""},
    {"{\"optimizer\": {\"overrides\": [1]}}",
     {0},
     "x.json:1: optimizer.overrides: expected an object of block patterns and optimizers, found a list"},
    {"{\"optimizer\": {\"muon\": {\"coefficients\": 5}}}",
     {0},
     "x.json:1: optimizer.muon.coefficients: expected the name of a set, or a list of triples [a, b, c], found 5"},
    {"{\"optimizer\": {\"muon\": {\"coefficients\": [\n[1, 2]]}}}",
     {0},
     "x.json:2: optimizer.muon.coefficients: expected triples [a, b, c], found a list of 2"},
    {"{\"optimizer\": {\"muon\": {\"coefficients\": []}}}",
     {0},
     "x.json:1: optimizer.muon.coefficients: expected 1 to 16 triples, found 0"},
    {NULL, {"optimizer.lr=nan"}, "command line: optimizer.lr: expected a number, found the string \"nan\""},
    {NULL, {"model=llama"}, "command line: model: expected an object { ... }, found the string \"llama\""},
    {NULL, {"optimizer.muon.per_head=[q]"}, "command line: optimizer.muon.per_head:1:2: expected a value, found q"},
    /* ranges */
    {"{\"train\": {\"steps\": 0}}", {0}, "x.json:1: train.steps: 0 is out of range; it must be from 1 to 1000000000"},
    {"{\"seed\": -1}", {0}, "x.json:1: seed: -1 is out of range; it must be from 0 to 9007199254740992"},
    {"{\"seed\": 9007199254740993}",
     {0},
     "x.json:1: seed: 9007199254740993 is out of range; it must be from 0 to 9007199254740992"},
    {"{\"seed\": 99999999999999999999}",
     {0},
     "x.json:1: seed: 99999999999999999999 is out of range; it must be from 0 to 9007199254740992"},
    {"{\"seed\": 1e300}", {0}, "x.json:1: seed: 1e300 is out of range; it must be from 0 to 9007199254740992"},
    {"{\"optimizer\": {\"lr\": 1e999}}",
     {0},
     "x.json:1: optimizer.lr: 1e999 is out of range; it must be from 0 to 100"},
    {"{\"optimizer\": {\"lr\": -0.1}}", {0}, "x.json:1: optimizer.lr: -0.1 is out of range; it must be from 0 to 100"},
    {"{\"optimizer\": {\"muon\": {\"coefficients\": [[1, 2, 1e7]]}}}",
     {0},
     "x.json:1: optimizer.muon.coefficients: 1e7 is out of range; it must be from -1e+06 to 1e+06"},
    {"{\"name\": \"\"}", {0}, "x.json:1: name: must not be empty"},
    {"{\"name\": \"0123456789012345678901234567890123456789012345678901234567890123\"}",
     {0},
     "x.json:1: name: the string has 64 bytes; at most 63 are allowed"},
    {"{\n\"name\": \"a/b\"}", {0}, "x.json:2: name: \"a/b\" is not a folder name; the run's folder is runs_dir/name"},
    {NULL, {"name=.."}, "command line: name: \"..\" is not a folder name; the run's folder is runs_dir/name"},
    /* choices */
    {"{\"model\": {\"norm\": \"rmsnrm\"}}",
     {0},
     "x.json:1: model.norm: \"rmsnrm\" is not one of layernorm, rmsnorm; did you mean \"rmsnorm\"?"},
    {"{\"device\": \"tpu-v5\"}", {0}, "x.json:1: device: \"tpu-v5\" is not one of auto, ref, cpu, cuda"},
    {"{\"optimizer\": {\"muon\": {\"per_head\": [\"q\", \"up\"]}}}",
     {0},
     "x.json:1: optimizer.muon.per_head: \"up\" is not one of q, q_rope, k, v, o"},
    {"{\"probe\": {\"blocks\": [\"q\", \"embed\"]}}",
     {0},
     "x.json:1: probe.blocks: \"embed\" is not one of q, q_rope, k, v, o, q_down, kv_down, k_rope, gate, up, down"},
    {"{\"probe\": {\"collision_top\": 65}}",
     {0},
     "x.json:1: probe.collision_top: 65 is out of range; it must be from 1 to 64"},
    {"{\"optimizer\": {\"muon\": {\"per_head\": [\"q\", \"q\"]}}}",
     {0},
     "x.json:1: optimizer.muon.per_head: \"q\" is listed twice"},
    {"{\"optimizer\": {\"overrides\": {\"embed\": \"shampoo\"}}}",
     {0},
     "x.json:1: optimizer.overrides.embed: \"shampoo\" is not one of muon, adamw, ..."},
    {"{\"optimizer\": {\"overrides\": {\"\": \"muon\"}}}",
     {0},
     "x.json:1: optimizer.overrides: expected a pattern of 1 to 63 bytes, found 0"},
    {NULL,
     {"optimizer.muon.coefficients=polarexpress"},
     "command line: optimizer.muon.coefficients: \"polarexpress\" is not one of muon, su, ...; "
     "did you mean \"polar-express\"?"},
    /* syntax: line and column */
    {"", {0}, "x.json:1:1: expected a value, found the end of the text"},
    {"{\n  \"seed\": 1,\n}", {0}, "x.json:3:1: a comma before } is not allowed"},
    {"{\"a\": [1,]}", {0}, "x.json:1:10: a comma before ] is not allowed"},
    {"{\"seed\": 1\n \"name\": 2}", {0}, "x.json:2:2: expected a comma or }, found \"name\""},
    {"{\"seed\" 1}", {0}, "x.json:1:9: expected a colon, found 1"},
    {"{seed: 1}", {0}, "x.json:1:2: expected a key in double quotes, found seed"},
    {"{'seed': 1}", {0}, "x.json:1:2: expected a key in double quotes, found '; strings need double quotes"},
    {"// a run\n{}", {0}, "x.json:1:1: expected a value, found '/'; JSON has no comments"},
    {"{} {}", {0}, "x.json:1:4: expected the end of the text, found {"},
    {"{\"seed\": tru}", {0}, "x.json:1:10: expected a value, found tru"},
    {"{\"seed\": NaN}", {0}, "x.json:1:10: NaN is not a JSON number; numbers are finite"},
    {"{\"seed\": -Infinity}", {0}, "x.json:1:10: -Infinity is not a JSON number; numbers are finite"},
    {"{\"seed\": 01}", {0}, "x.json:1:11: a number cannot start with 0 and another digit"},
    {"{\"seed\": 1.}", {0}, "x.json:1:12: expected a digit, found }"},
    {"{\"seed\": 1e}", {0}, "x.json:1:12: expected a digit, found }"},
    {"{\"seed\": 0.0000000000000000000000000000000000000000000000000000000000001}",
     {0},
     "x.json:1:10: a number of 63 characters; at most 60 are allowed"},
    {"{\"name\": \"a\n\"}", {0}, "x.json:1:12: a string has no closing quote"},
    {"{\"name\": \"a\tb\"}", {0}, "x.json:1:12: the byte 0x09 must be written as an escape in a string"},
    {"{\"name\": \"\\q\"}", {0}, "x.json:1:12: unknown escape in a string"},
    {"{\"name\": \"\\u12g4\"}", {0}, "x.json:1:13: \\u needs four hex digits"},
    {"{\"name\": \"\\u0000\"}", {0}, "x.json:1:17: \\u0000 is not allowed in a string"},
    {"{\"name\": \"\\ud800\"}", {0}, "x.json:1:17: half a surrogate pair is not a character"},
    {"\xef\xbb\xbf{}", {0}, "x.json:1:1: starts with a byte order mark; save it as UTF-8 without one"},
    {"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", {0}, "x.json:1:33: nested deeper than 32 levels"},
    /* combinations, at the place that was read last */
    {"{\"model\": {\n\"width\": 100}}", {0}, "x.json:2: model.width (100) is not divisible by model.heads (6)"},
    {"{\"model\": {\n\"width\": 384}}",
     {"model.heads=5"},
     "command line: model.width (384) is not divisible by model.heads (5)"},
    {"{\"model\": {\"heads\": 6,\n\"kv_heads\": 4}}",
     {0},
     "x.json:2: model.heads (6) is not divisible by model.kv_heads (4)"},
    {"{\"model\": {\"width\": 42}}",
     {0},
     "x.json:1: rope turns pairs of channels, and a head of model.width / model.heads = 7 channels is odd; change "
     "them, "
     "or set model.position to \"learned\""},
    {"{\"model\": {\n\"attention\": \"mla\", \"position\": \"learned\"}}",
     {0},
     "x.json:2: model.attention \"mla\" takes its positions from rope; set model.position to \"rope\""},
    {"{\"model\": {\"attention\": \"mla\",\n\"kv_heads\": 2}}",
     {0},
     "x.json:2: model.attention \"mla\" gives every head its own keys and values; leave out model.kv_heads (2, with "
     "model.heads 6)"},
    {"{\"model\": {\"attention\": \"mla\",\n\"qk_norm\": true}}",
     {0},
     "x.json:2: model.attention \"mla\" normalises its latent vectors and has no model.qk_norm; turn it off"},
    {"{\"model\": {\"bias\": true,\n\"attention\": \"mla\"}}",
     {0},
     "x.json:2: model.attention \"mla\" has no biases; set model.bias to false"},
    {"{\"model\": {\"attention\": \"mla\",\n\"head_rope\": 5}}",
     {0},
     "x.json:2: rope turns pairs of channels, and model.head_rope (5) is odd"},
    {"{\"model\": {\n\"kv_rank\": 64}}",
     {0},
     "x.json:2: model.kv_rank needs model.attention \"mla\"; set that, or leave it out"},
    {NULL, {"model.q_rank=1"}, "command line: model.q_rank needs model.attention \"mla\"; set that, or leave it out"},
    {NULL,
     {"model.head_nope=8"},
     "command line: model.head_nope needs model.attention \"mla\"; set that, or leave it out"},
    {NULL,
     {"model.head_rope=8"},
     "command line: model.head_rope needs model.attention \"mla\"; set that, or leave it out"},
    {NULL,
     {"model.head_value=8"},
     "command line: model.head_value needs model.attention \"mla\"; set that, or leave it out"},
    {"{\"optimizer\": {\"muon\": {\n\"per_head\": [\"q\", \"q_rope\"]}}}",
     {0},
     "x.json:2: optimizer.muon.per_head: \"q_rope\" exists only under model.attention \"mla\""},
    {"{\"train\": {\"batch\": 16,\n\"micro_batch\": 3}}",
     {0},
     "x.json:2: train.batch (16) is not divisible by train.micro_batch (3)"},
    {"{\"train\": {\"steps\": 9},\n\"optimizer\": {\"schedule\": {\"warmup\": 10}}}",
     {0},
     "x.json:2: optimizer.schedule.warmup (10) is longer than train.steps (9)"},
    {"{\"model\": {\"qk_norm\": true},\n\"qk_clip\": {\"enabled\": true}}",
     {0},
     "x.json:2: qk_clip.enabled cannot work with model.qk_norm: the norm undoes the scaling; turn one off"},
    {"{\"train\": {\"steps\": 9},\n\"optimizer\": {\"schedule\": {\"warmup\": 1}, \"decay_schedule\": {\"warmup\": "
     "10}}}",
     {0},
     "x.json:2: optimizer.decay_schedule.warmup (10) is longer than train.steps (9)"},
    {"{\"optimizer\": {\n\"muon\": {\"momentum_warmup\": 600,\n\"momentum_cooldown\": 401}}}",
     {0},
     "x.json:3: optimizer.muon.momentum_warmup (600) and momentum_cooldown (401) together are longer than train.steps "
     "(1000)"},
    {"{\"optimizer\": {\"mup_base_width\": 64,\n\"muon\": {\"per_head\": [\"q\"]}}}",
     {0},
     "x.json:2: optimizer.mup_base_width cannot be combined with optimizer.muon.per_head: its rules are for matrices "
     "that "
     "grow "
     "on both sides, and heads do not; turn one off"},
    {NULL,
     {"optimizer.muon.schatten_p=1.5"},
     "command line: optimizer.muon.schatten_p: 1.5 is out of range; it must be from 2 to 1e+06"},
    {"{\"model\": {\"qk_norm\": true},\n\"probe\": {\"bound_every\": 5}}",
     {0},
     "x.json:2: probe.bound_every cannot work with model.qk_norm: the norms of W_q and W_k then bound no logit; set it "
     "to "
     "0"},
    {"{\"probe\": {\"logits_every\": -1}}",
     {0},
     "x.json:1: probe.logits_every: -1 is out of range; it must be from 0 to 1000000000"},
};

/* "..." in a row stands for names that a list in base/config.h may add. */
static bool reads(const char *message, const char *expected) {
    const char *gap = strstr(expected, "...");
    if (!gap) return strcmp(message, expected) == 0;
    const size_t head = (size_t)(gap - expected), tail = strlen(gap + 3), size = strlen(message);
    return size >= head + tail && strncmp(message, expected, head) == 0 && strcmp(message + size - tail, gap + 3) == 0;
}

static void every_refusal_says_where_and_what_in_one_exact_sentence(void **state) {
    (void)state;
    int wrong = 0;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        Config config = {.seed = -7};
        Status status = load(&config, refusals[i].file, refusals[i].overrides);
        const char *message = status.message;
        if (strncmp(message, folder, strlen(folder)) == 0) message += strlen(folder) + 1;
        bool right = status.code == STATUS_BAD_INPUT && reads(message, refusals[i].message);
        if (!right) print_error("case %zu\n  expected %s\n  found    %s\n", i, refusals[i].message, message);
        wrong += !right;
        assert_int_equal(config.seed, -7); /* a refused configuration reaches nobody */
    }
    assert_int_equal(wrong, 0);
}

static void a_missing_file_is_named(void **state) {
    (void)state;
    Config config;
    assert_fails(config_load(&config, "no/such/file.json", 0, NULL), STATUS_IO,
                 "no/such/file.json: cannot open: No such file or directory");
}

static void a_file_beyond_one_mebibyte_is_refused(void **state) {
    (void)state;
    Config config;
    char path[PATH_SIZE];
    char *text = malloc(FILE_LIMIT + 1);
    assert_non_null(text);
    memset(text, ' ', FILE_LIMIT + 1);
    memcpy(text, "{}", 2);
    test_write_file(path, folder, "big.json", text, FILE_LIMIT + 1);
    assert_fails(config_load(&config, path, 0, NULL), STATUS_BAD_INPUT, "1048577 bytes; at most 1048576");
    test_write_file(path, folder, "big.json", text, FILE_LIMIT);
    assert_ok(config_load(&config, path, 0, NULL));
    free(text);
}

static void a_nul_byte_does_not_end_the_file(void **state) {
    (void)state;
    static const char text[] = "{}\0{\"seed\": 1}";
    Config config;
    char path[PATH_SIZE];
    test_write_file(path, folder, "nul.json", text, sizeof text - 1);
    assert_fails(config_load(&config, path, 0, NULL), STATUS_BAD_INPUT,
                 "nul.json:1:3: expected the end of the text, found the byte 0x00");
}

static void more_patterns_than_there_is_room_for_are_refused(void **state) {
    (void)state;
    char text[2048] = "{\"optimizer\": {\"overrides\": {\"p\": \"muon\"";
    for (int i = 0; i < LIST_MAX; i++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, ", \"p%d\": \"adamw\"", i);
    }
    strcat(text, "}}}");
    Config config;
    assert_fails(load(&config, text, NULL), STATUS_BAD_INPUT, "optimizer.overrides: more than 16 patterns");
}

/* ---- what a configuration resolves to --------------------------------------------------------------------------- */

static void defaults_are_those_of_the_design(void **state) {
    (void)state;
    Config c = load_ok(NULL, NULL);
    assert_string_equal(c.name, "default");
    assert_int_equal(c.seed, 1337);
    assert_string_equal(c.device, "auto");
    assert_int_equal(c.model.preset, PRESET_LLAMA);
    assert_int_equal(c.model.kv_heads, 6);
    assert_int_equal(c.model.mlp_width, 1024);
    assert_true(c.model.tie_embeddings && !c.model.bias && !c.model.qk_norm);
    assert_true(c.model.norm_eps == 1e-5 && c.model.rope_theta == 10000.0 && c.model.init_std == 0.02);
    assert_string_equal(c.data.val, "synthetic");
    assert_int_equal(c.train.micro_batch, 16);
    assert_int_equal(c.train.on_nonfinite, ON_NONFINITE_SKIP);
    assert_true(c.optimizer.lr == 0.002 && c.optimizer.weight_decay == 0.1 && c.optimizer.adamw.lr == 0.0);
    assert_int_equal(c.optimizer.schedule.kind, SCHEDULE_WSD);
    assert_int_equal(c.optimizer.schedule.warmup, 50);
    assert_int_equal(c.optimizer.muon.momentum_form, MUON_MOMENTUM_SUM);
    assert_int_equal(c.optimizer.muon.orthogonalize, ORTHOGONALIZE_NEWTON_SCHULZ);
    assert_string_equal(c.optimizer.muon.coefficients.set, "muon");
    assert_int_equal(c.optimizer.muon.scale, SCALE_RMS);
    assert_int_equal(c.optimizer.muon.per_head_count, 0);
    assert_int_equal(c.optimizer.decay_schedule.kind, SCHEDULE_CONSTANT);
    assert_int_equal(c.optimizer.decay_schedule.warmup + c.optimizer.muon.momentum_warmup, 0);
    assert_int_equal(c.optimizer.muon.momentum_cooldown + c.optimizer.mup_base_width, 0);
    assert_false(c.optimizer.cautious_decay);
    assert_true(c.qk_clip.enabled && c.qk_clip.threshold == 100.0 && c.qk_clip.alpha == 0.5);
    assert_int_equal(c.probe.spectrum_every, 100);
    assert_true(c.probe.orthogonality && c.probe.rms);
    assert_int_equal(c.probe.blocks_count, 2);
    assert_string_equal(c.probe.blocks[0], "q");
    assert_string_equal(c.probe.blocks[1], "k");
    assert_int_equal(c.checkpoint.keep, 3);
}

static void choices_map_to_the_enum_of_the_same_name(void **state) {
    (void)state;
    static const struct {
        const char *key;
        OptimizerKind kind;
    } optimizers[] = {
        {"optimizer.matrices=muon", OPTIMIZER_MUON},       {"optimizer.matrices=adamw", OPTIMIZER_ADAMW},
        {"optimizer.matrices=normuon", OPTIMIZER_NORMUON}, {"optimizer.matrices=adamuon", OPTIMIZER_ADAMUON},
        {"optimizer.matrices=sgd", OPTIMIZER_SGD},         {"optimizer.matrices=lion", OPTIMIZER_LION}};
    for (size_t i = 0; i < sizeof optimizers / sizeof optimizers[0]; i++)
        assert_int_equal(load_ok(NULL, (const char *const[]){optimizers[i].key, NULL}).optimizer.matrices,
                         optimizers[i].kind);
    assert_int_equal(load_ok(NULL, (const char *const[]){"optimizer.muon.orthogonalize=schatten", NULL})
                         .optimizer.muon.orthogonalize,
                     ORTHOGONALIZE_SCHATTEN);
    static const char *const svd[] = {"optimizer.muon.orthogonalize=svd", "optimizer.schedule.kind=cosine",
                                      "optimizer.muon.scale=none", "optimizer.muon.momentum_form=ema"};
    Config c = load_ok(NULL, svd);
    assert_int_equal(c.optimizer.muon.orthogonalize, ORTHOGONALIZE_SVD);
    assert_int_equal(c.optimizer.schedule.kind, SCHEDULE_COSINE);
    assert_int_equal(c.optimizer.muon.scale, SCALE_NONE);
    assert_int_equal(c.optimizer.muon.momentum_form, MUON_MOMENTUM_EMA);
}

static void a_preset_gives_the_defaults_of_keys_that_are_not_set(void **state) {
    (void)state;
    /* the preset comes after a key that it would set, and after the command line's width */
    Config c = load_ok("{\"model\": {\"norm\": \"rmsnorm\", \"heads\": 4, \"preset\": \"gpt2\"}}",
                       (const char *const[]){"model.width=128", NULL});
    assert_int_equal(c.model.norm, NORM_RMSNORM);
    assert_int_equal(c.model.position, POSITION_LEARNED);
    assert_int_equal(c.model.mlp, MLP_GELU);
    assert_true(c.model.bias && c.model.tie_embeddings);
    assert_int_equal(c.model.mlp_width, 512);
    assert_int_equal(c.model.kv_heads, 4);
}

static void the_llama_mlp_is_eight_thirds_wide_rounded_up_to_64(void **state) {
    (void)state;
    static const int widths[][2] = {{384, 1024}, {128, 384}, {96, 256}, {98, 320}, {24, 64}, {26, 128}};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        char width[32];
        snprintf(width, sizeof width, "model.width=%d", widths[i][0]);
        Config c = load_ok(NULL, (const char *const[]){width, "model.heads=1", NULL});
        assert_int_equal(c.model.mlp_width, widths[i][1]);
    }
}

static void the_command_line_wins_over_the_file_and_a_later_argument_over_an_earlier(void **state) {
    (void)state;
    Config c = load_ok("{\"train\": {\"steps\": 10, \"batch\": 4}, \"seed\": 5}",
                       (const char *const[]){"train.steps=20", "train.steps=30", "model={\"layers\": 2}", "name=7"});
    assert_int_equal(c.train.steps, 30);
    assert_int_equal(c.train.batch, 4);
    assert_int_equal(c.train.micro_batch, 4);
    assert_int_equal(c.seed, 5);
    assert_int_equal(c.model.layers, 2);
    assert_string_equal(c.name, "7");
}

static void a_pattern_that_is_given_again_moves_to_the_end(void **state) {
    (void)state;
    Config c = load_ok("{\"optimizer\": {\"overrides\": {\"layers.0.*\": \"adamw\", \"embed\": \"muon\"}}}",
                       (const char *const[]){"optimizer.overrides.layers.0.*=muon", NULL});
    assert_int_equal(c.optimizer.override_count, 2);
    assert_string_equal(c.optimizer.overrides[0].pattern, "embed");
    assert_int_equal(c.optimizer.overrides[0].optimizer, OPTIMIZER_MUON);
    assert_string_equal(c.optimizer.overrides[1].pattern, "layers.0.*");
    assert_int_equal(c.optimizer.overrides[1].optimizer, OPTIMIZER_MUON);
}

static void assert_mla(const char *const *options, int64_t q_rank, int64_t kv_rank, int64_t nope, int64_t rope,
                       int64_t value) {
    const ModelConfig m = load_ok("{\"model\": {\"attention\": \"mla\"}}", options).model;
    assert_int_equal(m.attention, ATTENTION_MLA);
    assert_int_equal(m.q_rank, q_rank);
    assert_int_equal(m.kv_rank, kv_rank);
    assert_int_equal(m.head_nope, nope);
    assert_int_equal(m.head_rope, rope);
    assert_int_equal(m.head_value, value);
}

static void sizes_of_latent_attention_follow_the_width_where_they_are_not_set(void **state) {
    (void)state;
    assert_mla(NULL, 192, 192, 64, 32, 64); /* width 384, 6 heads: 4 * 64 would be more than half of the width */
    assert_mla((const char *const[]){"model.width=1024", "model.heads=16", NULL}, 512, 256, 64, 32, 64);
    assert_mla((const char *const[]){"model.q_rank=0", "model.head_nope=10", NULL}, 0, 40, 10, 6, 10);
    assert_mla((const char *const[]){"model.q_rank=7", "model.kv_rank=5", "model.head_rope=2", "model.head_value=9"}, 7,
               5, 64, 2, 9);
    assert_mla((const char *const[]){"model.width=1", "model.heads=3", NULL}, 1, 1, 1, 2,
               1); /* heads need not divide */
    Config mha = load_ok(NULL, NULL);
    assert_true(!mha.model.q_rank && !mha.model.kv_rank && !mha.model.head_nope && !mha.model.head_value);
}

static void defaults_bend_where_they_were_not_set(void **state) {
    (void)state;
    Config c = load_ok(NULL, (const char *const[]){"train.steps=3", "model.qk_norm=true", NULL});
    assert_int_equal(c.optimizer.schedule.warmup, 3);
    assert_false(c.qk_clip.enabled);
    assert_int_equal(c.probe.bound_every, 0);
    c = load_ok(NULL, (const char *const[]){"model.width=42", "model.position=learned", NULL});
    assert_int_equal(c.model.width / c.model.heads, 7);
}

static void whole_numbers_are_read_to_the_last_digit(void **state) {
    (void)state;
    assert_int_equal(load_ok("{\"seed\": 9007199254740992}", NULL).seed, INT64_C(9007199254740992));
    assert_int_equal(load_ok("{\"seed\": 9007199254740991}", NULL).seed, INT64_C(9007199254740991));
    assert_int_equal(load_ok("{\"seed\": 1.2e3}", NULL).seed, 1200);
}

static void a_schema_key_for_editors_is_ignored(void **state) {
    (void)state;
    assert_int_equal(load_ok("{\"$schema\": \"schema.json\", \"seed\": 3}", NULL).seed, 3);
}

static int count_of(const char *text, const char *word) {
    int count = 0;
    while ((text = strstr(text, word))) count++, text++;
    return count;
}

/* {"probe": {"x": 3}} for probe.x. */
static const char *as_file(const char *path, char buffer[256]) {
    int section = option_section_length(path);
    if (section) {
        snprintf(buffer, 256, "{\"%.*s\": {\"%s\": 3}}", section, path, option_key(path));
    } else {
        snprintf(buffer, 256, "{\"%s\": 3}", path);
    }
    return buffer;
}

static void a_retired_key_is_read_ignored_and_said_once(void **state) {
    (void)state;
    char file[256], typed[128], note[512], *help = printed(config_print_help), *schema = printed(config_print_schema);
    assert_true(config_retired_count > 0);
    assert_string_equal(load_ok(NULL, NULL).note, "");
    for (int i = 0; i < config_retired_count; i++) {
        const RetiredKey *key = &config_retired[i];
        snprintf(typed, sizeof typed, "%s=often", key->path);
        snprintf(note, sizeof note, "command line: %s is no longer used and is ignored: %s\n", key->path, key->reason);
        const Config c = load_ok(as_file(key->path, file), (const char *const[]){typed, "seed=7", NULL});
        char *written = config_to_json(&c);
        assert_int_equal(c.seed, 7);
        assert_string_equal(c.note, note);
        assert_non_null(strstr(load_ok(as_file(key->path, file), NULL).note, "x.json:1: "));
        snprintf(typed, sizeof typed, "\"%s\"", option_key(key->path));
        assert_null(option_find(key->path));
        assert_int_equal(count_of(help, key->path), 0);
        assert_int_equal(count_of(schema, typed) + count_of(written, typed), 0);
        free(written);
    }
    free(help);
    free(schema);
}

static void strings_hold_any_character(void **state) {
    (void)state;
    Config c = load_ok("{\"data\": {\"train\": \"a\\\"b\\\\\\u00e4\\ud83d\\ude00/*.bin\"}}", NULL);
    assert_string_equal(c.data.train, "a\"b\\\xc3\xa4\xf0\x9f\x98\x80/*.bin");
}

/* ---- round trip ------------------------------------------------------------------------------------------------- */

static void assert_round_trip(Config c) {
    char *text = config_to_json(&c);
    assert_non_null(text);
    Config again = load_ok(text, NULL);
    char *text_again = config_to_json(&again);
    assert_string_equal(text, text_again);
    assert_memory_equal(c.optimizer.muon.coefficients.triples, again.optimizer.muon.coefficients.triples,
                        sizeof c.optimizer.muon.coefficients.triples);
    assert_true(c.optimizer.lr == again.optimizer.lr && c.qk_clip.alpha == again.qk_clip.alpha);
    assert_int_equal(c.seed, again.seed);
    free(text);
    free(text_again);
}

static void the_resolved_configuration_reads_back_the_same(void **state) {
    (void)state;
    static const char *const odd[] = {"optimizer.lr=0.10000000000000002", "qk_clip.alpha=0.3333333333333333",
                                      "seed=9007199254740991", "optimizer.muon.per_head=[\"k\", \"o\"]"};
    static const char *const given[] = {"optimizer.muon.coefficients=[[3.4445, -4.775, 2.0315], [1e-300, 0.1, -0.0]]",
                                        "optimizer.overrides={\"layers.*.q\": \"adamw\", \"embed\": \"muon\"}",
                                        "model={\"preset\": \"gpt2\", \"qk_norm\": true}", "train.micro_batch=2"};
    assert_round_trip(load_ok(NULL, NULL));
    assert_round_trip(load_ok(NULL, odd));
    assert_round_trip(load_ok(NULL, given));
    assert_round_trip(load_ok(NULL, (const char *const[]){"model.attention=mla", NULL}));
    assert_round_trip(load_ok(NULL, (const char *const[]){"model.attention=mla", "model.q_rank=0", NULL}));
    assert_round_trip(load_ok(NULL, (const char *const[]){"model.attention=mla", "optimizer.muon.per_head=[\"q_rope\"]",
                                                          "model.head_value=20", NULL}));
    assert_true(load_ok(NULL, odd).optimizer.lr == 0.10000000000000002);
    assert_int_equal(load_ok(NULL, given).optimizer.muon.coefficients.count, 2);
}

static void the_resolved_configuration_may_be_overridden_again(void **state) {
    (void)state;
    Config c = load_ok(NULL, NULL);
    char *text = config_to_json(&c);
    c = load_ok(text, (const char *const[]){"train.steps=2000", NULL});
    assert_int_equal(c.train.steps, 2000);
    free(text);
}

/* ---- help, schema, documentation --------------------------------------------------------------------------------- */

static void print_markdown(FILE *out) {
    char values[LINE_SIZE], initial[LINE_SIZE];
    for (int s = 0; s < config_section_count; s++) {
        const Section *section = &config_sections[s];
        fprintf(out, "### %s\n\n%s\n\n", *section->path ? section->path : "Top level", section->help);
        fprintf(out, "| key | values | default | unit | meaning |\n|---|---|---|---|---|\n");
        for (int i = 0; i < config_option_count; i++) {
            const Option *option = &config_options[i];
            if (!option_is_in(option, section)) continue;
            fprintf(out, "| `%s` | %s | %s | %s | %s |\n", option->path, option_describe_values(option, values),
                    option_describe_default(option, initial), option->unit ? option->unit : "", option->help);
        }
        fputc('\n', out);
    }
    fprintf(out, "### Retired keys\n\nRead and ignored, so that runs of older versions resume.\n\n");
    fprintf(out, "| key | why |\n|---|---|\n");
    for (int i = 0; i < config_retired_count; i++)
        fprintf(out, "| `%s` | %s |\n", config_retired[i].path, config_retired[i].reason);
    fputc('\n', out);
}

/* Calls `visit` with the path and schema of every option that the resolved configuration has. */
static void for_each_option(const cJSON *node, const cJSON *schema, const char *path,
                            void (*visit)(const char *path, const cJSON *schema, const void *context),
                            const void *context) {
    const cJSON *properties = cJSON_GetObjectItemCaseSensitive(schema, "properties");
    if (!properties) {
        visit(path, schema, context);
        return;
    }
    assert_true(cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(schema, "additionalProperties")));
    for (const cJSON *child = node->child; child; child = child->next) {
        char child_path[256];
        snprintf(child_path, sizeof child_path, "%s%s%s", path, *path ? "." : "", child->string);
        const cJSON *child_schema = cJSON_GetObjectItemCaseSensitive(properties, child->string);
        if (!child_schema) fail_msg("the schema lacks %s", child_path);
        for_each_option(child, child_schema, child_path, visit, context);
    }
}

static void with_each_option(void (*visit)(const char *, const cJSON *, const void *), const void *context) {
    Config c = load_ok(NULL, NULL);
    char *schema_text = printed(config_print_schema), *text = config_to_json(&c);
    cJSON *schema = cJSON_Parse(schema_text), *resolved = cJSON_Parse(text);
    assert_non_null(schema);
    assert_non_null(resolved);
    for_each_option(resolved, schema, "", visit, context);
    cJSON_Delete(schema);
    cJSON_Delete(resolved);
    free(schema_text);
    free(text);
}

static void check_schema(const char *path, const cJSON *schema, const void *context) {
    (void)context;
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(schema, "type");
    if (!cJSON_GetObjectItemCaseSensitive(schema, "description")) fail_msg("%s has no description", path);
    if (!type && !cJSON_GetObjectItemCaseSensitive(schema, "anyOf")) fail_msg("%s has no type", path);
    bool number = type && (strcmp(type->valuestring, "integer") == 0 || strcmp(type->valuestring, "number") == 0);
    if (number &&
        !(cJSON_GetObjectItemCaseSensitive(schema, "minimum") && cJSON_GetObjectItemCaseSensitive(schema, "maximum"))) {
        fail_msg("%s has no range", path);
    }
}

static void the_schema_describes_every_option(void **state) {
    (void)state;
    with_each_option(check_schema, NULL);
}

/* The path on a line of its own, not as the beginning of another one. */
static void check_help(const char *path, const cJSON *schema, const void *context) {
    (void)schema;
    char line[300];
    snprintf(line, sizeof line, "\n  %s\n", path);
    if (!strstr(context, line)) fail_msg("--help does not mention %s", path);
}

static void help_mentions_every_option(void **state) {
    (void)state;
    char *help = printed(config_print_help);
    with_each_option(check_help, help);
    free(help);
}

static void the_committed_documentation_is_the_generated_one(void **state) {
    (void)state;
    static const char begin[] = "<!-- options: begin -->\n", end[] = "<!-- options: end -->\n";
    char *document = test_read_file("docs/configuration.md"), *generated = printed(print_markdown);
    char *from = strstr(document, begin), *to = strstr(document, end);
    assert_true(from && to && from < to);
    *to = '\0';
    if (strcmp(from + strlen(begin), generated) != 0) {
        fail_msg("docs/configuration.md is stale: put the output of test_config --markdown between its markers");
    }
    free(document);
    free(generated);
}

static void every_committed_configuration_loads(void **state) {
    (void)state;
    FileList list;
    assert_ok(file_glob("configs/*.json", &list));
    for (int64_t i = 0; i < list.count; i++) {
        Config config;
        assert_ok(config_load(&config, list.paths[i], 0, NULL));
    }
    file_list_free(&list);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--markdown") == 0) {
        print_markdown(stdout);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_refusal_says_where_and_what_in_one_exact_sentence),
        cmocka_unit_test(a_missing_file_is_named),
        cmocka_unit_test(a_file_beyond_one_mebibyte_is_refused),
        cmocka_unit_test(a_nul_byte_does_not_end_the_file),
        cmocka_unit_test(more_patterns_than_there_is_room_for_are_refused),
        cmocka_unit_test(defaults_are_those_of_the_design),
        cmocka_unit_test(choices_map_to_the_enum_of_the_same_name),
        cmocka_unit_test(a_preset_gives_the_defaults_of_keys_that_are_not_set),
        cmocka_unit_test(the_llama_mlp_is_eight_thirds_wide_rounded_up_to_64),
        cmocka_unit_test(the_command_line_wins_over_the_file_and_a_later_argument_over_an_earlier),
        cmocka_unit_test(a_pattern_that_is_given_again_moves_to_the_end),
        cmocka_unit_test(sizes_of_latent_attention_follow_the_width_where_they_are_not_set),
        cmocka_unit_test(defaults_bend_where_they_were_not_set),
        cmocka_unit_test(whole_numbers_are_read_to_the_last_digit),
        cmocka_unit_test(a_schema_key_for_editors_is_ignored),
        cmocka_unit_test(a_retired_key_is_read_ignored_and_said_once),
        cmocka_unit_test(strings_hold_any_character),
        cmocka_unit_test(the_resolved_configuration_reads_back_the_same),
        cmocka_unit_test(the_resolved_configuration_may_be_overridden_again),
        cmocka_unit_test(the_schema_describes_every_option),
        cmocka_unit_test(help_mentions_every_option),
        cmocka_unit_test(the_committed_documentation_is_the_generated_one),
        cmocka_unit_test(every_committed_configuration_loads),
    };
    return cmocka_run_group_tests(tests, open_folder, remove_folder);
}
