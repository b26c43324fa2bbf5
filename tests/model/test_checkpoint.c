/* Checkpoints: every architecture's round trip bit for bit, damage of any file, interrupted writing, pruning; and what
 * transformers finds in the folder.
 */
#include "tests/tensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model/checkpoint.h"
#include "model/huggingface.h"
#include "tests/model/metadata.h"

/* ---- models ----------------------------------------------------------------------------------------------------- */

static ModelConfig gpt2_model(void) {
    return (ModelConfig){.preset = PRESET_GPT2,
                         .layers = 2,
                         .heads = 4,
                         .kv_heads = 4,
                         .width = 16,
                         .context = 8,
                         .vocab = 37,
                         .norm = NORM_LAYERNORM,
                         .position = POSITION_LEARNED,
                         .mlp = MLP_GELU,
                         .mlp_width = 24,
                         .bias = true,
                         .tie_embeddings = true,
                         .rope_theta = 10000,
                         .norm_eps = 1e-5,
                         .init_std = 0.02};
}

static ModelConfig llama_model(void) {
    ModelConfig c = gpt2_model();
    c.preset = PRESET_LLAMA;
    c.kv_heads = 2;
    c.norm = NORM_RMSNORM;
    c.position = POSITION_ROPE;
    c.mlp = MLP_SWIGLU;
    c.bias = false;
    c.tie_embeddings = false;
    return c;
}

static ModelConfig llama_model_with_biases(void) {
    ModelConfig c = llama_model();
    c.bias = true;
    c.tie_embeddings = true;
    return c;
}

static ModelConfig qwen3_model(void) {
    ModelConfig c = llama_model();
    c.qk_norm = true;
    return c;
}

static ModelConfig deepseek_model(void) {
    ModelConfig c = llama_model();
    c.attention = ATTENTION_MLA;
    c.kv_heads = c.heads;
    c.q_rank = 7, c.kv_rank = 6;
    c.head_nope = 3, c.head_rope = 2, c.head_value = 5;
    return c;
}

static ModelConfig deepseek_model_without_q_rank(void) {
    ModelConfig c = deepseek_model();
    c.q_rank = 0;
    c.tie_embeddings = true;
    return c;
}

static ModelConfig softcapped_mla_model(void) {
    ModelConfig c = deepseek_model();
    c.attention_softcap = 30;
    c.mlp = MLP_GELU;
    return c;
}

static ModelConfig mixed_model(void) {
    ModelConfig c = gpt2_model();
    c.kv_heads = 1;
    c.mlp = MLP_SWIGLU;
    c.qk_norm = true;
    c.tie_embeddings = false;
    c.attention_softcap = 30;
    return c;
}

static ModelConfig softcapped_model(void) {
    ModelConfig c = gpt2_model();
    c.attention_softcap = 30;
    return c;
}

typedef struct {
    ModelConfig (*model)(void);
    const char *architecture;
} ModelRow;

static const ModelRow models[] = {
    {gpt2_model, "GPT2LMHeadModel"},
    {llama_model, "LlamaForCausalLM"},
    {llama_model_with_biases, "LlamaForCausalLM"},
    {qwen3_model, "Qwen3ForCausalLM"},
    {deepseek_model, "DeepseekV3ForCausalLM"},
    {deepseek_model_without_q_rank, "DeepseekV3ForCausalLM"},
    {softcapped_mla_model, "TrainGptForCausalLM"},
    {mixed_model, "TrainGptForCausalLM"},
    {softcapped_model, "TrainGptForCausalLM"},
};
enum { MODELS = sizeof models / sizeof models[0], MOMENTS = 2 };

/* A model whose every weight is a random number of its own, and two tensors of an optimizer. */
typedef struct {
    Gpt gpt;
    NamedTensor moments[MOMENTS];
} Run;

static void fill(Tensor t, uint64_t seed) {
    for (int64_t i = 0; i < tensor_numel(t); i++) ((float *)t.data)[i] = (float)test_uniform(seed, i);
}

static void run_open(Run *run, Backend *be, ModelConfig config, uint64_t seed) {
    assert_ok(gpt_plan(&run->gpt, &config, 1, be));
    assert_ok(gpt_allocate(&run->gpt));
    fill(run->gpt.params.master, seed);
    run->moments[0] = (NamedTensor){.name = "q.momentum", .tensor = test_zeros(be, DTYPE_F32, shape4(2, 1, 16, 16))};
    run->moments[1] = (NamedTensor){.name = "embed.m", .tensor = test_zeros(be, DTYPE_F32, shape2(37, 16))};
    for (int i = 0; i < MOMENTS; i++) fill(run->moments[i].tensor, seed + 1 + (uint64_t)i);
}

static bool same_bits(Tensor a, Tensor b) {
    return memcmp(a.data, b.data, (size_t)tensor_bytes(a)) == 0;
}

/* Padding between tensors is not part of the model. */
static bool same_weights(const Gpt *a, const Gpt *b) {
    for (int p = 0; p < a->params.param_count; p++)
        for (int64_t layer = 0; layer < a->params.params[p].count; layer++)
            if (!same_bits(params_tensor(&a->params, a->params.master, p, layer),
                           params_tensor(&b->params, b->params.master, p, layer)))
                return false;
    return true;
}

/* ---- fixture ---------------------------------------------------------------------------------------------------- */

typedef struct {
    Backend be;
    Run run; /* gpt2-like */
    char run_dir[PATH_SIZE];
} Fixture;

static int set_up(void **state) {
    Fixture *f = calloc(1, sizeof *f);
    test_open(&f->be, "ref", "fp32");
    run_open(&f->run, &f->be, gpt2_model(), 1);
    test_folder(f->run_dir);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    Fixture *f = *state;
    assert_ok(folder_remove(f->run_dir));
    gpt_free(&f->run.gpt);
    test_close(&f->be);
    free(f);
    return 0;
}

static CheckpointState state_at(int64_t step) {
    return (CheckpointState){.step = step,
                             .updates = step - 1,
                             .samples = 16 * step,
                             .tokens = INT64_C(3000000000) + step,
                             .data_fingerprint = 0xfedcba9876543210u,
                             .config_json = "{\"name\": \"test\", \"optimizer\": {\"lr\": 0.002}}"};
}

static Status save(Fixture *f, const Run *run, int64_t step) {
    char dir[PATH_SIZE];
    CheckpointState state = state_at(step);
    assert_ok(checkpoint_path(dir, f->run_dir, step));
    return checkpoint_save(dir, &run->gpt, &state, run->moments, MOMENTS);
}

static char *path_in(Fixture *f, int64_t step, const char *name) {
    static char path[PATH_SIZE];
    char dir[PATH_SIZE];
    assert_ok(checkpoint_path(dir, f->run_dir, step));
    assert_ok(path_join(path, dir, name));
    return path;
}

/* Whether step_0000....tmp is there. */
static bool unfinished_exists(Fixture *f, int64_t step) {
    char path[PATH_SIZE + 4];
    assert_ok(checkpoint_path(path, f->run_dir, step));
    strcat(path, ".tmp");
    return file_exists(path);
}

static bool step_exists(Fixture *f, int64_t step) {
    char dir[PATH_SIZE];
    assert_ok(checkpoint_path(dir, f->run_dir, step));
    return file_exists(dir);
}

static void assert_newest(Fixture *f, int64_t step) {
    char expected[PATH_SIZE], found[PATH_SIZE];
    assert_ok(checkpoint_path(expected, f->run_dir, step));
    assert_ok(checkpoint_find_newest_intact(f->run_dir, found, NULL));
    assert_string_equal(found, expected);
}

/* ---- round trips ------------------------------------------------------------------------------------------------ */

static void every_architecture_comes_back_bit_for_bit(void **state) {
    Fixture *f = *state;
    for (int m = 0; m < MODELS; m++) {
        Run saved, loaded;
        CheckpointState read;
        char dir[PATH_SIZE];
        run_open(&saved, &f->be, models[m].model(), 10);
        run_open(&loaded, &f->be, models[m].model(), 20);
        assert_false(same_weights(&loaded.gpt, &saved.gpt));
        assert_ok(save(f, &saved, m + 1));
        assert_ok(checkpoint_path(dir, f->run_dir, m + 1));
        assert_ok(checkpoint_load(dir, &loaded.gpt, &read, loaded.moments, MOMENTS));
        assert_true(same_weights(&loaded.gpt, &saved.gpt));
        for (int i = 0; i < MOMENTS; i++) assert_true(same_bits(loaded.moments[i].tensor, saved.moments[i].tensor));
        gpt_free(&saved.gpt);
        gpt_free(&loaded.gpt);
    }
}

static void a_bf16_model_keeps_its_masters_and_refreshes_its_copies(void **state) {
    Fixture *f = *state;
    Backend be;
    Run loaded;
    CheckpointState read;
    char dir[PATH_SIZE];
    test_open(&be, "ref", "bf16");
    run_open(&loaded, &be, gpt2_model(), 20);
    assert_ok(save(f, &f->run, 1));
    assert_ok(checkpoint_path(dir, f->run_dir, 1));
    assert_ok(checkpoint_load(dir, &loaded.gpt, &read, loaded.moments, MOMENTS));
    assert_true(same_weights(&loaded.gpt, &f->run.gpt));
    const ParamTable *t = &loaded.gpt.params;
    int qkv = loaded.gpt.index[PARAM_QKV];
    Tensor master = params_tensor(t, t->master, qkv, 1), work = params_tensor(t, t->work, qkv, 1);
    for (int64_t i = 0; i < tensor_numel(master); i++)
        assert_int_equal(((bf16 *)work.data)[i], bf16_from_f32(((float *)master.data)[i]));
    gpt_free(&loaded.gpt);
    test_close(&be);
}

static void the_state_comes_back(void **state) {
    Fixture *f = *state;
    CheckpointState read, expected = state_at(123);
    char dir[PATH_SIZE];
    assert_ok(save(f, &f->run, 123));
    assert_ok(checkpoint_path(dir, f->run_dir, 123));
    assert_ok(checkpoint_verify(dir, &read));
    assert_int_equal(read.step, expected.step);
    assert_int_equal(read.updates, expected.updates);
    assert_int_equal(read.samples, expected.samples);
    assert_true(read.tokens == expected.tokens);
    assert_true(read.data_fingerprint == expected.data_fingerprint);
    assert_string_equal(read.backend, "ref");
    assert_string_equal(read.precision, "fp32");
    char *text = test_read_file(path_in(f, 123, "state.json"));
    cJSON *json = cJSON_Parse(text);
    const cJSON *config = cJSON_GetObjectItem(json, "config");
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(config, "name")), "test");
    cJSON_Delete(json);
    free(text);
}

static void weights_load_without_the_optimizer(void **state) {
    Fixture *f = *state;
    Run loaded;
    CheckpointState read;
    char dir[PATH_SIZE];
    run_open(&loaded, &f->be, gpt2_model(), 20);
    assert_ok(save(f, &f->run, 1));
    assert_ok(checkpoint_path(dir, f->run_dir, 1));
    assert_ok(checkpoint_load(dir, &loaded.gpt, &read, NULL, 0));
    assert_true(same_weights(&loaded.gpt, &f->run.gpt));
    gpt_free(&loaded.gpt);
}

static void a_checkpoint_of_the_same_step_is_replaced(void **state) {
    Fixture *f = *state;
    Run loaded;
    CheckpointState read;
    char dir[PATH_SIZE];
    assert_ok(save(f, &f->run, 1));
    fill(f->run.gpt.params.master, 99);
    assert_ok(save(f, &f->run, 1));
    run_open(&loaded, &f->be, gpt2_model(), 20);
    assert_ok(checkpoint_path(dir, f->run_dir, 1));
    assert_ok(checkpoint_load(dir, &loaded.gpt, &read, loaded.moments, MOMENTS));
    assert_true(same_weights(&loaded.gpt, &f->run.gpt));
    assert_false(unfinished_exists(f, 1));
    gpt_free(&loaded.gpt);
}

/* ---- what transformers finds ------------------------------------------------------------------------------------ */

static void the_architecture_is_the_one_that_computes_the_same(void **state) {
    (void)state;
    for (int m = 0; m < MODELS; m++) {
        ModelConfig config = models[m].model();
        char *text = huggingface_config(&config);
        cJSON *json = cJSON_Parse(text), *names = cJSON_GetObjectItem(json, "architectures");
        assert_string_equal(cJSON_GetStringValue(cJSON_GetArrayItem(names, 0)), models[m].architecture);
        cJSON_Delete(json);
        free(text);
    }
}

static void every_element_has_a_name(void **state) {
    Fixture *f = *state;
    for (int m = 0; m < MODELS; m++) {
        Gpt gpt;
        ModelConfig config = models[m].model();
        int64_t elements = 0;
        assert_ok(gpt_plan(&gpt, &config, 1, &f->be));
        int64_t count = huggingface_tensors(&gpt, NULL);
        FileTensor *list = calloc((size_t)count, sizeof *list);
        assert_int_equal(huggingface_tensors(&gpt, list), count);
        for (int64_t i = 0; i < count; i++) elements += tensor_numel(list[i].tensor);
        assert_int_equal(elements, gpt.params.count);
        free(list);
        gpt_free(&gpt);
    }
}

typedef struct {
    const char *name;
    int64_t shape[2]; /* 0: there is no second dimension */
} Expected;

static void assert_file_holds(Fixture *f, int64_t step, const Expected *expected, size_t count) {
    SafetensorsFile file;
    assert_ok(safetensors_open(&file, path_in(f, step, "model.safetensors")));
    for (size_t i = 0; i < count; i++) {
        const SafetensorsEntry *entry = safetensors_find(&file, expected[i].name);
        if (!entry) fail_msg("there is no %s", expected[i].name);
        assert_int_equal(entry->ndim, expected[i].shape[1] ? 2 : 1);
        assert_int_equal(entry->shape[0], expected[i].shape[0]);
        assert_int_equal(entry->shape[1], expected[i].shape[1]);
    }
    assert_string_equal(metadata_of(&file, "format"), "pt");
    safetensors_close(&file);
}

static void gpt2_matrices_are_stored_in_by_out(void **state) {
    Fixture *f = *state;
    static const Expected expected[] = {
        {"transformer.wte.weight", {37, 16}},          {"transformer.wpe.weight", {8, 16}},
        {"transformer.h.0.ln_1.bias", {16, 0}},        {"transformer.h.1.attn.c_attn.weight", {16, 48}},
        {"transformer.h.1.attn.c_attn.bias", {48, 0}}, {"transformer.h.1.attn.c_proj.weight", {16, 16}},
        {"transformer.h.1.mlp.c_fc.weight", {16, 24}}, {"transformer.h.1.mlp.c_proj.weight", {24, 16}},
        {"transformer.ln_f.weight", {16, 0}},
    };
    assert_ok(save(f, &f->run, 1));
    assert_file_holds(f, 1, expected, sizeof expected / sizeof expected[0]);

    SafetensorsFile file;
    float values[16 * 48];
    assert_ok(safetensors_open(&file, path_in(f, 1, "model.safetensors")));
    const SafetensorsEntry *entry = safetensors_find(&file, "transformer.h.1.attn.c_attn.weight");
    assert_ok(safetensors_read_f32(&file, entry, 0, 16 * 48, values));
    const Gpt *g = &f->run.gpt;
    const float *w = params_tensor(&g->params, g->params.master, g->index[PARAM_QKV], 1).data;
    for (int out = 0; out < 48; out++)
        for (int in = 0; in < 16; in++) assert_true(values[in * 48 + out] == w[out * 16 + in]);
    safetensors_close(&file);
}

static void fused_matrices_are_stored_apart_for_llama(void **state) {
    Fixture *f = *state;
    static const Expected expected[] = {
        {"model.embed_tokens.weight", {37, 16}},
        {"model.layers.1.self_attn.q_proj.weight", {16, 16}},
        {"model.layers.1.self_attn.k_proj.weight", {8, 16}},
        {"model.layers.1.self_attn.v_proj.weight", {8, 16}},
        {"model.layers.1.self_attn.o_proj.weight", {16, 16}},
        {"model.layers.1.self_attn.q_norm.weight", {4, 0}},
        {"model.layers.0.mlp.gate_proj.weight", {24, 16}},
        {"model.layers.0.mlp.up_proj.weight", {24, 16}},
        {"model.layers.0.mlp.down_proj.weight", {16, 24}},
        {"model.layers.0.input_layernorm.weight", {16, 0}},
        {"model.layers.0.post_attention_layernorm.weight", {16, 0}},
        {"model.norm.weight", {16, 0}},
        {"lm_head.weight", {37, 16}},
    };
    Run run;
    run_open(&run, &f->be, qwen3_model(), 5);
    assert_ok(save(f, &run, 1));
    assert_file_holds(f, 1, expected, sizeof expected / sizeof expected[0]);

    SafetensorsFile file;
    float up[24 * 16];
    assert_ok(safetensors_open(&file, path_in(f, 1, "model.safetensors")));
    const SafetensorsEntry *entry = safetensors_find(&file, "model.layers.0.mlp.up_proj.weight");
    assert_ok(safetensors_read_f32(&file, entry, 0, 24 * 16, up));
    const ParamTable *t = &run.gpt.params;
    Tensor block = params_block(t, t->master, params_find_kind(t, "up"), 0);
    assert_memory_equal(up, block.data, sizeof up);
    safetensors_close(&file);
    gpt_free(&run.gpt);
}

static float *read_file_tensor(const SafetensorsFile *file, const char *name, int64_t count) {
    const SafetensorsEntry *entry = safetensors_find(file, name);
    float *values = calloc((size_t)count, sizeof *values);
    assert_ok(safetensors_read_f32(file, entry, 0, count, values));
    return values;
}

/* In the file, each head's `first_rows` rows of block `first` come before its `second_rows` rows of block `second`. */
static void assert_rows_by_head(const SafetensorsFile *file, const char *name, const ParamTable *t, const char *first,
                                const char *second, int heads) {
    Tensor a = params_block_head(t, t->master, params_find_kind(t, first), 1, 0);
    Tensor b = params_block_head(t, t->master, params_find_kind(t, second), 1, 0);
    const int64_t columns = a.shape[1], of_a = tensor_numel(a), of_b = tensor_numel(b);
    assert_int_equal(b.shape[1], columns);
    float *values = read_file_tensor(file, name, heads * (of_a + of_b));
    for (int head = 0; head < heads; head++) {
        const float *at = values + head * (of_a + of_b);
        a = params_block_head(t, t->master, params_find_kind(t, first), 1, head);
        b = params_block_head(t, t->master, params_find_kind(t, second), 1, head);
        assert_memory_equal(at, a.data, (size_t)of_a * sizeof(float));
        assert_memory_equal(at + of_a, b.data, (size_t)of_b * sizeof(float));
    }
    free(values);
}

static void assert_rows_of_blocks(const SafetensorsFile *file, const char *name, const ParamTable *t,
                                  const char *const *blocks, int64_t elements) {
    float *values = read_file_tensor(file, name, elements);
    int64_t at = 0;
    for (; *blocks; blocks++) {
        Tensor block = params_block(t, t->master, params_find_kind(t, *blocks), 1);
        assert_memory_equal(values + at, block.data, (size_t)tensor_bytes(block));
        at += tensor_numel(block);
    }
    assert_int_equal(at, elements);
    free(values);
}

static void latent_attention_is_stored_in_deepseeks_order(void **state) {
    Fixture *f = *state;
    static const Expected expected[] = {
        {"model.embed_tokens.weight", {37, 16}},
        {"model.layers.1.self_attn.q_a_proj.weight", {7, 16}},
        {"model.layers.1.self_attn.q_a_layernorm.weight", {7, 0}},
        {"model.layers.1.self_attn.q_b_proj.weight", {20, 7}},
        {"model.layers.1.self_attn.kv_a_proj_with_mqa.weight", {8, 16}},
        {"model.layers.1.self_attn.kv_a_layernorm.weight", {6, 0}},
        {"model.layers.1.self_attn.kv_b_proj.weight", {32, 6}},
        {"model.layers.1.self_attn.o_proj.weight", {16, 20}},
        {"model.layers.0.mlp.gate_proj.weight", {24, 16}},
        {"model.layers.0.mlp.up_proj.weight", {24, 16}},
        {"model.layers.0.mlp.down_proj.weight", {16, 24}},
        {"model.layers.0.input_layernorm.weight", {16, 0}},
        {"model.layers.0.post_attention_layernorm.weight", {16, 0}},
        {"model.norm.weight", {16, 0}},
        {"lm_head.weight", {37, 16}},
    };
    SafetensorsFile file;
    Run run;
    run_open(&run, &f->be, deepseek_model(), 5);
    const ParamTable *t = &run.gpt.params;
    assert_ok(save(f, &run, 1));
    assert_file_holds(f, 1, expected, sizeof expected / sizeof expected[0]);
    assert_ok(safetensors_open(&file, path_in(f, 1, "model.safetensors")));
    assert_int_equal(file.count, 3 + 2 * 12); /* nothing else; a layer has 12 */
    assert_rows_by_head(&file, "model.layers.1.self_attn.q_b_proj.weight", t, "q", "q_rope", 4);
    assert_rows_by_head(&file, "model.layers.1.self_attn.kv_b_proj.weight", t, "k", "v", 4);
    assert_rows_of_blocks(&file, "model.layers.1.self_attn.q_a_proj.weight", t, (const char *[]){"q_down", NULL},
                          7 * 16);
    assert_rows_of_blocks(&file, "model.layers.1.self_attn.kv_a_proj_with_mqa.weight", t,
                          (const char *[]){"kv_down", "k_rope", NULL}, 8 * 16);
    safetensors_close(&file);
    gpt_free(&run.gpt);

    run_open(&run, &f->be, deepseek_model_without_q_rank(), 6);
    assert_ok(save(f, &run, 2));
    assert_ok(safetensors_open(&file, path_in(f, 2, "model.safetensors")));
    assert_null(safetensors_find(&file, "model.layers.1.self_attn.q_b_proj.weight"));
    assert_rows_by_head(&file, "model.layers.1.self_attn.q_proj.weight", t, "q", "q_rope", 4);
    safetensors_close(&file);
    gpt_free(&run.gpt);
}

static double config_number(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!cJSON_IsNumber(item)) fail_msg("config.json has no number %s", key);
    return item->valuedouble;
}

static void config_json_describes_the_model(void **state) {
    (void)state;
    ModelConfig gpt2 = gpt2_model(), qwen3 = qwen3_model(), mixed = mixed_model();
    char *texts[3] = {huggingface_config(&gpt2), huggingface_config(&qwen3), huggingface_config(&mixed)};
    cJSON *json[3];
    for (int i = 0; i < 3; i++) json[i] = cJSON_Parse(texts[i]);
    assert_true(config_number(json[0], "n_inner") == 24 && config_number(json[0], "n_positions") == 8);
    assert_true(config_number(json[0], "layer_norm_epsilon") == 1e-5);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(json[0], "eos_token_id")));
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(json[0], "tie_word_embeddings")));
    assert_true(config_number(json[1], "num_key_value_heads") == 2 && config_number(json[1], "head_dim") == 4);
    assert_true(config_number(json[1], "rope_theta") == 10000);
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(json[1], "model_type")), "qwen3");
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(json[2], "norm")), "layernorm");
    assert_true(config_number(json[2], "attention_softcap") == 30);
    for (int i = 0; i < 3; i++) {
        cJSON_Delete(json[i]);
        free(texts[i]);
    }
}

static void config_json_describes_latent_attention(void **state) {
    (void)state;
    ModelConfig with = deepseek_model(), without = deepseek_model_without_q_rank();
    char *texts[2] = {huggingface_config(&with), huggingface_config(&without)};
    cJSON *json[2] = {cJSON_Parse(texts[0]), cJSON_Parse(texts[1])};
    static const struct {
        const char *key;
        double value;
    } expected[] = {
        {"q_lora_rank", 7},       {"kv_lora_rank", 6},        {"qk_nope_head_dim", 3},    {"qk_rope_head_dim", 2},
        {"v_head_dim", 5},        {"num_attention_heads", 4}, {"num_key_value_heads", 4}, {"first_k_dense_replace", 2},
        {"num_hidden_layers", 2}, {"hidden_size", 16},        {"intermediate_size", 24},  {"rope_theta", 10000},
        {"rms_norm_eps", 1e-5}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
        assert_true(config_number(json[0], expected[i].key) == expected[i].value);
    assert_true(cJSON_IsFalse(cJSON_GetObjectItem(json[0], "rope_interleave")));
    assert_true(cJSON_IsFalse(cJSON_GetObjectItem(json[0], "attention_bias")));
    assert_null(cJSON_GetObjectItem(json[0], "head_dim"));
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(json[0], "model_type")), "deepseek_v3");
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(json[1], "q_lora_rank"))); /* left out, it would be 1536 */
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(json[1], "tie_word_embeddings")));
    for (int i = 0; i < 2; i++) {
        cJSON_Delete(json[i]);
        free(texts[i]);
    }
}

/* ---- what does not fit ------------------------------------------------------------------------------------------ */

static void assert_refused(Fixture *f, ModelConfig config, const char *part) {
    Run run;
    CheckpointState read = {.step = -7};
    char dir[PATH_SIZE];
    run_open(&run, &f->be, config, 20);
    float before = *(float *)run.gpt.params.master.data, moment = *(float *)run.moments[0].tensor.data;
    assert_ok(checkpoint_path(dir, f->run_dir, 1));
    assert_fails(checkpoint_load(dir, &run.gpt, &read, run.moments, MOMENTS), STATUS_BAD_INPUT, part);
    assert_true(*(float *)run.gpt.params.master.data == before);
    assert_true(*(float *)run.moments[0].tensor.data == moment);
    assert_int_equal(read.step, -7);
    gpt_free(&run.gpt);
}

static void another_shape_is_refused_before_a_weight_changes(void **state) {
    Fixture *f = *state;
    ModelConfig wider = gpt2_model(), deeper = gpt2_model(), shallower = gpt2_model();
    wider.mlp_width = 32;
    deeper.layers = 3;
    shallower.layers = 1;
    assert_ok(save(f, &f->run, 1));
    assert_refused(f, wider, "\"transformer.h.0.mlp.c_fc.weight\" is F32 (16,24), but this run needs F32 (16,32)");
    assert_refused(f, wider, "mlp_width");
    assert_refused(f, deeper, "\"transformer.h.2.ln_1.weight\"");
    assert_refused(f, shallower, "there are 28 tensors, but this run has 16");
    assert_refused(f, llama_model(), "\"model.embed_tokens.weight\"");
}

static void another_optimizer_is_refused_before_a_weight_changes(void **state) {
    Fixture *f = *state;
    CheckpointState read;
    char dir[PATH_SIZE];
    assert_ok(save(f, &f->run, 1));
    assert_ok(checkpoint_path(dir, f->run_dir, 1));
    fill(f->run.gpt.params.master, 50);
    float before = *(float *)f->run.gpt.params.master.data;
    NamedTensor other[MOMENTS] = {f->run.moments[0], f->run.moments[1]};
    snprintf(other[0].name, sizeof other[0].name, "q.m");
    assert_fails(checkpoint_load(dir, &f->run.gpt, &read, other, MOMENTS), STATUS_BAD_INPUT, "\"q.m\"");
    assert_fails(checkpoint_load(dir, &f->run.gpt, &read, f->run.moments, 1), STATUS_BAD_INPUT, "2 tensors");
    assert_true(*(float *)f->run.gpt.params.master.data == before);
}

/* Two of a group "probe", one of a group "other", with the values 1, 2 and 3. */
enum { OPTIONALS = 3 };

static void add_optionals(Fixture *f, NamedTensor tensors[MOMENTS + OPTIONALS], float sign) {
    static const char *const names[OPTIONALS] = {"probe.layers.0.q.m", "probe.count", "other.sum"};
    memcpy(tensors, f->run.moments, sizeof f->run.moments);
    for (int i = 0; i < OPTIONALS; i++) {
        NamedTensor *t = &tensors[MOMENTS + i];
        *t = (NamedTensor){.tensor = test_zeros(&f->be, DTYPE_F32, shape1(2)), .optional = true};
        snprintf(t->name, sizeof t->name, "%s", names[i]);
        test_fill(&f->be, t->tensor, (double)sign * (1 + i));
    }
}

/* Whether the tensor has the saved value, or the other it had before. */
static bool was_loaded(const NamedTensor *tensors, int i) {
    const float value = *(const float *)tensors[MOMENTS + i].tensor.data;
    assert_true(value == (float)(1 + i) || value == -(float)(1 + i));
    return value > 0;
}

static void measurements_are_loaded_a_whole_group_or_not_at_all(void **state) {
    Fixture *f = *state;
    NamedTensor saved[MOMENTS + OPTIONALS], loaded[MOMENTS + OPTIONALS];
    CheckpointState read, at = state_at(1);
    char dir[PATH_SIZE];
    assert_ok(checkpoint_path(dir, f->run_dir, 1));
    add_optionals(f, saved, 1);
    add_optionals(f, loaded, -1);

    assert_ok(checkpoint_save(dir, &f->run.gpt, &at, saved, MOMENTS + OPTIONALS));
    assert_ok(checkpoint_load(dir, &f->run.gpt, &read, f->run.moments, MOMENTS)); /* nobody asks for them */
    snprintf(loaded[MOMENTS + 1].name, sizeof loaded[MOMENTS + 1].name, "probe.updates");
    assert_ok(checkpoint_load(dir, &f->run.gpt, &read, loaded, MOMENTS + OPTIONALS)); /* one of the group is missing */
    assert_true(!was_loaded(loaded, 0) && !was_loaded(loaded, 1) && was_loaded(loaded, 2));

    add_optionals(f, loaded, -1);
    loaded[MOMENTS].tensor = tensor_slice(loaded[MOMENTS].tensor, 0, 0, 1);
    assert_ok(checkpoint_load(dir, &f->run.gpt, &read, loaded, MOMENTS + OPTIONALS)); /* one has another shape */
    assert_true(!was_loaded(loaded, 0) && !was_loaded(loaded, 1) && was_loaded(loaded, 2));

    add_optionals(f, loaded, -1);
    assert_ok(checkpoint_load(dir, &f->run.gpt, &read, loaded, MOMENTS + OPTIONALS));
    assert_true(was_loaded(loaded, 0) && was_loaded(loaded, 1) && was_loaded(loaded, 2));

    assert_ok(save(f, &f->run, 1)); /* a file without any */
    add_optionals(f, loaded, -1);
    assert_ok(checkpoint_load(dir, &f->run.gpt, &read, loaded, MOMENTS + OPTIONALS));
    assert_true(!was_loaded(loaded, 0) && !was_loaded(loaded, 1) && !was_loaded(loaded, 2));
}

static void measurements_do_not_hide_that_the_optimizer_differs(void **state) {
    Fixture *f = *state;
    NamedTensor tensors[MOMENTS + OPTIONALS];
    CheckpointState read, at = state_at(1);
    char dir[PATH_SIZE];
    assert_ok(checkpoint_path(dir, f->run_dir, 1));
    add_optionals(f, tensors, 1);
    assert_ok(checkpoint_save(dir, &f->run.gpt, &at, tensors, MOMENTS + OPTIONALS));
    assert_fails(checkpoint_load(dir, &f->run.gpt, &read, tensors + 1, MOMENTS + OPTIONALS - 1), STATUS_BAD_INPUT,
                 "there are 2 tensors, but this run has 1");
    snprintf(tensors[1].name, sizeof tensors[1].name, "layers.1.q.m");
    assert_fails(checkpoint_load(dir, &f->run.gpt, &read, tensors, MOMENTS + OPTIONALS), STATUS_BAD_INPUT,
                 "\"layers.1.q.m\"");
}

/* ---- damage ----------------------------------------------------------------------------------------------------- */

static void flip_bit(const char *path, int64_t byte) {
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)byte, SEEK_SET), 0);
    int c = fgetc(file);
    assert_int_equal(fseek(file, (long)byte, SEEK_SET), 0);
    assert_true(fputc(c ^ 1, file) != EOF);
    assert_int_equal(fclose(file), 0);
}

static void one_flipped_bit_in_any_file_is_found(void **state) {
    Fixture *f = *state;
    static const char *const names[] = {"model.safetensors", "config.json", "optimizer.safetensors", "state.json"};
    CheckpointState read;
    char dir[PATH_SIZE];
    assert_ok(save(f, &f->run, 1));
    assert_ok(checkpoint_path(dir, f->run_dir, 1));
    for (int i = 0; i < 4; i++) {
        char *path = path_in(f, 1, names[i]), *text;
        int64_t size;
        assert_ok(file_read(path, 1 << 20, &text, &size));
        free(text);
        const int64_t bytes[] = {0, size / 3, size / 2, size - 30, size - 1};
        for (int b = 0; b < 5; b++) {
            flip_bit(path, bytes[b]);
            assert_fails(checkpoint_verify(dir, &read), STATUS_BAD_INPUT, names[i]);
            assert_fails(checkpoint_load(dir, &f->run.gpt, &read, NULL, 0), STATUS_BAD_INPUT, names[i]);
            flip_bit(path, bytes[b]);
        }
        assert_ok(checkpoint_verify(dir, &read));
    }
}

static void cut_and_missing_files_are_found(void **state) {
    Fixture *f = *state;
    CheckpointState read;
    char dir[PATH_SIZE];
    assert_ok(checkpoint_path(dir, f->run_dir, 1));
    assert_ok(save(f, &f->run, 1));
    assert_int_equal(truncate(path_in(f, 1, "optimizer.safetensors"), 1000), 0);
    assert_fails(checkpoint_verify(dir, &read), STATUS_BAD_INPUT, "has 1000 bytes");
    assert_ok(save(f, &f->run, 1));
    assert_int_equal(truncate(path_in(f, 1, "state.json"), 20), 0);
    assert_fails(checkpoint_verify(dir, &read), STATUS_BAD_INPUT, "state.json");
    assert_ok(save(f, &f->run, 1));
    assert_int_equal(unlink(path_in(f, 1, "config.json")), 0);
    assert_fails(checkpoint_verify(dir, &read), STATUS_IO, "config.json");
}

static void broken_checkpoints_are_passed_over_with_a_line_each(void **state) {
    Fixture *f = *state;
    char found[PATH_SIZE], expected[PATH_SIZE], *text = NULL;
    size_t size;
    for (int64_t step = 1; step <= 3; step++) assert_ok(save(f, &f->run, step));
    flip_bit(path_in(f, 3, "model.safetensors"), 5000);
    assert_int_equal(unlink(path_in(f, 2, "state.json")), 0);
    FILE *notes = open_memstream(&text, &size);
    assert_ok(checkpoint_find_newest_intact(f->run_dir, found, notes));
    fclose(notes);
    assert_ok(checkpoint_path(expected, f->run_dir, 1));
    assert_string_equal(found, expected);
    assert_non_null(strstr(text, "step_00000003/model.safetensors"));
    assert_non_null(strstr(text, "step_00000002/state.json"));
    free(text);
}

static void a_run_without_an_intact_checkpoint_says_so(void **state) {
    Fixture *f = *state;
    char found[PATH_SIZE];
    assert_fails(checkpoint_find_newest_intact(f->run_dir, found, NULL), STATUS_BAD_INPUT, "no intact checkpoint");
    assert_ok(save(f, &f->run, 1));
    flip_bit(path_in(f, 1, "config.json"), 3);
    assert_fails(checkpoint_find_newest_intact(f->run_dir, found, NULL), STATUS_BAD_INPUT, "broken ones: 1");
}

/* ---- interrupted writing ---------------------------------------------------------------------------------------- */

static void a_half_written_checkpoint_is_no_candidate(void **state) {
    Fixture *f = *state;
    char path[PATH_SIZE], folder[PATH_SIZE];
    assert_ok(save(f, &f->run, 1));
    assert_ok(path_join(folder, f->run_dir, "checkpoints/step_00000002.tmp"));
    assert_ok(folder_create(folder));
    test_write_file(path, folder, "shard.safetensors", "half", 4);
    assert_newest(f, 1);
    assert_ok(save(f, &f->run, 2));
    assert_newest(f, 2);
    assert_false(unfinished_exists(f, 2));
    assert_false(file_exists(path_in(f, 2, "shard.safetensors"))); /* nothing of the remains came along */
}

static void a_full_disk_leaves_the_old_checkpoint(void **state) {
    Fixture *f = *state;
    struct rlimit before;
    assert_ok(save(f, &f->run, 1));
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    const rlim_t limits[] = {100, 3000, 12000};
    for (int i = 0; i < 3; i++) {
        struct rlimit small = {.rlim_cur = limits[i], .rlim_max = before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        Status same = save(f, &f->run, 1), next = save(f, &f->run, 2);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_fails(same, STATUS_IO, strerror(EFBIG));
        assert_fails(next, STATUS_IO, "step_00000002.tmp");
        assert_false(step_exists(f, 2));
        assert_false(unfinished_exists(f, 2));
        assert_newest(f, 1);
    }
    signal(SIGXFSZ, handler);
}

/* A child saves one checkpoint after another, the same two steps over and over, until it is killed. */
static void killed_at_any_moment_leaves_an_intact_checkpoint(void **state) {
    enum { ROUNDS = 12 };
    Fixture *f = *state;
    assert_ok(save(f, &f->run, 1));
    for (int round = 0; round < ROUNDS; round++) {
        pid_t child = fork();
        if (child == 0) {
            for (int64_t i = 0;; i++)
                if (save(f, &f->run, 1 + i % 2).code) _exit(1);
        }
        assert_true(child > 0);
        usleep((useconds_t)(2000 + 1700 * round));
        kill(child, SIGKILL);
        int how;
        assert_int_equal(waitpid(child, &how, 0), child);
        assert_true(WIFSIGNALED(how));
        char found[PATH_SIZE];
        CheckpointState read;
        assert_ok(checkpoint_find_newest_intact(f->run_dir, found, NULL));
        for (int64_t step = 1; step <= 2; step++) {
            char dir[PATH_SIZE];
            assert_ok(checkpoint_path(dir, f->run_dir, step));
            if (file_exists(dir)) assert_ok(checkpoint_verify(dir, &read));
        }
    }
}

/* ---- pruning ---------------------------------------------------------------------------------------------------- */

static void pruning_keeps_the_newest(void **state) {
    Fixture *f = *state;
    char path[PATH_SIZE], folder[PATH_SIZE], checkpoints[PATH_SIZE];
    for (int64_t step = 8; step <= 12; step++) assert_ok(save(f, &f->run, step));
    assert_ok(path_join(checkpoints, f->run_dir, "checkpoints"));
    assert_ok(path_join(folder, checkpoints, "step_00000010.tmp"));
    assert_ok(folder_create(folder));
    test_write_file(path, checkpoints, "step_5_notes.txt", "mine", 4);
    assert_ok(checkpoint_prune(f->run_dir, 12, 2));
    for (int64_t step = 8; step <= 12; step++) assert_int_equal(step_exists(f, step), step >= 11);
    assert_false(file_exists(folder));
    assert_true(file_exists(path));
}

static void pruning_with_keep_0_keeps_all(void **state) {
    Fixture *f = *state;
    for (int64_t step = 1; step <= 3; step++) assert_ok(save(f, &f->run, step));
    assert_ok(checkpoint_prune(f->run_dir, 2, 0));
    for (int64_t step = 1; step <= 3; step++) assert_true(step_exists(f, step));
}

static void a_broken_later_checkpoint_does_not_take_the_place_of_an_intact_one(void **state) {
    Fixture *f = *state;
    assert_ok(save(f, &f->run, 1));
    assert_ok(save(f, &f->run, 5));
    flip_bit(path_in(f, 5, "model.safetensors"), 4000);
    assert_ok(save(f, &f->run, 3)); /* resumed from 1 */
    assert_ok(checkpoint_prune(f->run_dir, 3, 1));
    assert_newest(f, 3);
    assert_false(step_exists(f, 1));
    assert_false(step_exists(f, 5));
}

#define WITH_RUN(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_RUN(every_architecture_comes_back_bit_for_bit),
        WITH_RUN(a_bf16_model_keeps_its_masters_and_refreshes_its_copies),
        WITH_RUN(the_state_comes_back),
        WITH_RUN(weights_load_without_the_optimizer),
        WITH_RUN(a_checkpoint_of_the_same_step_is_replaced),
        cmocka_unit_test(the_architecture_is_the_one_that_computes_the_same),
        WITH_RUN(every_element_has_a_name),
        WITH_RUN(gpt2_matrices_are_stored_in_by_out),
        WITH_RUN(fused_matrices_are_stored_apart_for_llama),
        WITH_RUN(latent_attention_is_stored_in_deepseeks_order),
        cmocka_unit_test(config_json_describes_the_model),
        cmocka_unit_test(config_json_describes_latent_attention),
        WITH_RUN(another_shape_is_refused_before_a_weight_changes),
        WITH_RUN(another_optimizer_is_refused_before_a_weight_changes),
        WITH_RUN(measurements_are_loaded_a_whole_group_or_not_at_all),
        WITH_RUN(measurements_do_not_hide_that_the_optimizer_differs),
        WITH_RUN(one_flipped_bit_in_any_file_is_found),
        WITH_RUN(cut_and_missing_files_are_found),
        WITH_RUN(broken_checkpoints_are_passed_over_with_a_line_each),
        WITH_RUN(a_run_without_an_intact_checkpoint_says_so),
        WITH_RUN(a_half_written_checkpoint_is_no_candidate),
        WITH_RUN(a_full_disk_leaves_the_old_checkpoint),
        WITH_RUN(killed_at_any_moment_leaves_an_intact_checkpoint),
        WITH_RUN(pruning_keeps_the_newest),
        WITH_RUN(pruning_with_keep_0_keeps_all),
        WITH_RUN(a_broken_later_checkpoint_does_not_take_the_place_of_an_intact_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
