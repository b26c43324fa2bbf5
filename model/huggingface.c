/* Names of tensors and config.json for Hugging Face transformers; see huggingface.h.
 *
 * One table per naming: a row maps a parameter, or the part of its rows with a name of its own, to a name, in which *
 * stands for the layer. Rows of parameters that a model does not have are passed over.
 *
 *      qkv (L,(H+2K)D,C)       | q_proj H*D rows | k_proj K*D | v_proj K*D |
 *      up  (L,2F,C) or (L,F,C) | gate_proj F rows, if gated | up_proj F rows |
 *      latent                  | q_a_proj q_rank rows, if any | kv_a_proj_with_mqa kv_rank + R rows |
 *
 * DeepSeek stores what comes from the latent vectors head by head, where ours has all heads' first parts first (blocks
 * are runs of rows):
 *
 *      q_up    | q^C of head 0 | q^C of head 1 | ... | q^R of head 0 | q^R of head 1 | ...
 *      q_b     | q^C of head 0 | q^R of head 0 | q^C of head 1 | q^R of head 1 | ...
 *      kv_up and kv_b likewise, with k^C and v
 */
#include "model/huggingface.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

/* ---- architectures ---------------------------------------------------------------------------------------------- */

typedef enum { FAMILY_GPT2, FAMILY_LLAMA, FAMILY_QWEN3, FAMILY_DEEPSEEK, FAMILY_OWN } Family;

typedef struct {
    const char *architecture, *model_type;
} FamilyRow;

static const FamilyRow families[] = {
    [FAMILY_GPT2] = {"GPT2LMHeadModel", "gpt2"},         [FAMILY_LLAMA] = {"LlamaForCausalLM", "llama"},
    [FAMILY_QWEN3] = {"Qwen3ForCausalLM", "qwen3"},      [FAMILY_DEEPSEEK] = {"DeepseekV3ForCausalLM", "deepseek_v3"},
    [FAMILY_OWN] = {"TrainGptForCausalLM", "train_gpt"},
};

static Family family_of(const ModelConfig *c) {
    bool plain = c->attention_softcap == 0;
    bool gpt2 = c->norm == NORM_LAYERNORM && c->position == POSITION_LEARNED && c->mlp == MLP_GELU;
    bool llama = c->norm == NORM_RMSNORM && c->position == POSITION_ROPE && c->mlp == MLP_SWIGLU;
    if (c->attention == ATTENTION_MLA) return plain && llama ? FAMILY_DEEPSEEK : FAMILY_OWN;
    if (plain && gpt2 && c->bias && c->tie_embeddings && !c->qk_norm && c->kv_heads == c->heads) return FAMILY_GPT2;
    if (plain && llama && !c->qk_norm) return FAMILY_LLAMA;
    if (plain && llama && !c->bias) return FAMILY_QWEN3;
    return FAMILY_OWN;
}

const char *huggingface_architecture(const ModelConfig *config) {
    return families[family_of(config)].architecture;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

typedef enum {
    PART_ALL,
    PART_Q,
    PART_K,
    PART_V,
    PART_GATE,
    PART_UP,
    PART_Q_DOWN,
    PART_KV_DOWN,
    PART_Q_DIRECT, /* all, of a matrix that reads the residual stream */
    PART_Q_LATENT  /* all, of one that reads a latent vector */
} Part;

typedef struct {
    GptParam param;
    Part part;
    const char *name;
    bool transposed; /* GPT-2's Conv1D holds (in, out) */
} NameRow;

static const NameRow gpt2_names[] = {
    {PARAM_WTE, PART_ALL, "transformer.wte.weight", false},
    {PARAM_WPE, PART_ALL, "transformer.wpe.weight", false},
    {PARAM_NORM1, PART_ALL, "transformer.h.*.ln_1.weight", false},
    {PARAM_NORM1_BIAS, PART_ALL, "transformer.h.*.ln_1.bias", false},
    {PARAM_QKV, PART_ALL, "transformer.h.*.attn.c_attn.weight", true},
    {PARAM_QKV_BIAS, PART_ALL, "transformer.h.*.attn.c_attn.bias", false},
    {PARAM_OUT, PART_ALL, "transformer.h.*.attn.c_proj.weight", true},
    {PARAM_OUT_BIAS, PART_ALL, "transformer.h.*.attn.c_proj.bias", false},
    {PARAM_NORM2, PART_ALL, "transformer.h.*.ln_2.weight", false},
    {PARAM_NORM2_BIAS, PART_ALL, "transformer.h.*.ln_2.bias", false},
    {PARAM_UP, PART_ALL, "transformer.h.*.mlp.c_fc.weight", true},
    {PARAM_UP_BIAS, PART_ALL, "transformer.h.*.mlp.c_fc.bias", false},
    {PARAM_DOWN, PART_ALL, "transformer.h.*.mlp.c_proj.weight", true},
    {PARAM_DOWN_BIAS, PART_ALL, "transformer.h.*.mlp.c_proj.bias", false},
    {PARAM_NORMF, PART_ALL, "transformer.ln_f.weight", false},
    {PARAM_NORMF_BIAS, PART_ALL, "transformer.ln_f.bias", false},
};

static const NameRow llama_names[] = {
    {PARAM_WTE, PART_ALL, "model.embed_tokens.weight", false},
    {PARAM_WPE, PART_ALL, "model.embed_positions.weight", false},
    {PARAM_NORM1, PART_ALL, "model.layers.*.input_layernorm.weight", false},
    {PARAM_NORM1_BIAS, PART_ALL, "model.layers.*.input_layernorm.bias", false},
    {PARAM_QKV, PART_Q, "model.layers.*.self_attn.q_proj.weight", false},
    {PARAM_QKV, PART_K, "model.layers.*.self_attn.k_proj.weight", false},
    {PARAM_QKV, PART_V, "model.layers.*.self_attn.v_proj.weight", false},
    {PARAM_QKV_BIAS, PART_Q, "model.layers.*.self_attn.q_proj.bias", false},
    {PARAM_QKV_BIAS, PART_K, "model.layers.*.self_attn.k_proj.bias", false},
    {PARAM_QKV_BIAS, PART_V, "model.layers.*.self_attn.v_proj.bias", false},
    {PARAM_Q_NORM, PART_ALL, "model.layers.*.self_attn.q_norm.weight", false},
    {PARAM_K_NORM, PART_ALL, "model.layers.*.self_attn.k_norm.weight", false},
    {PARAM_LATENT, PART_Q_DOWN, "model.layers.*.self_attn.q_a_proj.weight", false},
    {PARAM_LATENT, PART_KV_DOWN, "model.layers.*.self_attn.kv_a_proj_with_mqa.weight", false},
    {PARAM_Q_LATENT_NORM, PART_ALL, "model.layers.*.self_attn.q_a_layernorm.weight", false},
    {PARAM_Q_UP, PART_Q_DIRECT, "model.layers.*.self_attn.q_proj.weight", false},
    {PARAM_Q_UP, PART_Q_LATENT, "model.layers.*.self_attn.q_b_proj.weight", false},
    {PARAM_KV_LATENT_NORM, PART_ALL, "model.layers.*.self_attn.kv_a_layernorm.weight", false},
    {PARAM_KV_UP, PART_ALL, "model.layers.*.self_attn.kv_b_proj.weight", false},
    {PARAM_OUT, PART_ALL, "model.layers.*.self_attn.o_proj.weight", false},
    {PARAM_OUT_BIAS, PART_ALL, "model.layers.*.self_attn.o_proj.bias", false},
    {PARAM_NORM2, PART_ALL, "model.layers.*.post_attention_layernorm.weight", false},
    {PARAM_NORM2_BIAS, PART_ALL, "model.layers.*.post_attention_layernorm.bias", false},
    {PARAM_UP, PART_GATE, "model.layers.*.mlp.gate_proj.weight", false},
    {PARAM_UP, PART_UP, "model.layers.*.mlp.up_proj.weight", false},
    {PARAM_UP_BIAS, PART_GATE, "model.layers.*.mlp.gate_proj.bias", false},
    {PARAM_UP_BIAS, PART_UP, "model.layers.*.mlp.up_proj.bias", false},
    {PARAM_DOWN, PART_ALL, "model.layers.*.mlp.down_proj.weight", false},
    {PARAM_DOWN_BIAS, PART_ALL, "model.layers.*.mlp.down_proj.bias", false},
    {PARAM_NORMF, PART_ALL, "model.norm.weight", false},
    {PARAM_NORMF_BIAS, PART_ALL, "model.norm.bias", false},
    {PARAM_HEAD, PART_ALL, "lm_head.weight", false},
};

typedef struct {
    int64_t first, count;
} Rows;

static Rows rows_of(const Gpt *g, const Param *p, Part part) {
    int64_t q = g->H * g->D, kv = g->K * g->D;
    switch (part) {
    case PART_Q:
        return (Rows){0, q};
    case PART_K:
        return (Rows){q, kv};
    case PART_V:
        return (Rows){q + kv, kv};
    case PART_GATE:
        return (Rows){0, p->rows - g->F};
    case PART_UP:
        return (Rows){p->rows - g->F, g->F};
    case PART_Q_DOWN:
        return (Rows){0, g->config.q_rank};
    case PART_KV_DOWN:
        return (Rows){g->config.q_rank, p->rows - g->config.q_rank};
    case PART_Q_DIRECT:
        return (Rows){0, g->config.q_rank ? 0 : p->rows};
    case PART_Q_LATENT:
        return (Rows){0, g->config.q_rank ? p->rows : 0};
    default:
        return (Rows){0, p->rows};
    }
}

static void write_name(char *buffer, const char *pattern, int64_t layer) {
    const char *star = strchr(pattern, '*');
    int length = star ? snprintf(buffer, FILE_TENSOR_NAME_SIZE, "%.*s%lld%s", (int)(star - pattern), pattern,
                                 (long long)layer, star + 1)
                      : snprintf(buffer, FILE_TENSOR_NAME_SIZE, "%s", pattern);
    CHECK(length < FILE_TENSOR_NAME_SIZE, "%s is too long", pattern);
}

int64_t file_tensor_stretches(const FileTensor *t) {
    return t->heads ? 2 * t->heads : 1;
}

Tensor file_tensor_stretch(const FileTensor *t, int64_t i) {
    if (!t->heads) return t->tensor;
    const int64_t head = i / 2, firsts = t->heads * t->first_rows;
    const int64_t second_rows = (t->tensor.shape[0] - firsts) / t->heads;
    return i % 2 ? tensor_slice(t->tensor, 0, firsts + head * second_rows, second_rows)
                 : tensor_slice(t->tensor, 0, head * t->first_rows, t->first_rows);
}

static bool goes_by_head(GptParam param) {
    return param == PARAM_Q_UP || param == PARAM_KV_UP;
}

/* The tensors of one row of the table, a layer each. */
static int64_t list_row(const Gpt *g, const NameRow *row, FileTensor *list) {
    int index = g->index[row->param];
    if (index < 0) return 0;
    const Param *p = &g->params.params[index];
    Rows rows = rows_of(g, p, row->part);
    if (rows.count == 0) return 0;
    for (int64_t layer = 0; list && layer < p->count; layer++) {
        Tensor whole = params_tensor(&g->params, g->params.master, index, layer);
        list[layer] =
            (FileTensor){.tensor = tensor_slice(whole, 0, rows.first, rows.count), .transposed = row->transposed};
        if (goes_by_head(row->param)) list[layer].heads = g->H, list[layer].first_rows = g->config.head_nope;
        write_name(list[layer].name, row->name, layer);
    }
    return p->count;
}

int64_t huggingface_tensors(const Gpt *gpt, FileTensor *list) {
    bool gpt2 = family_of(&gpt->config) == FAMILY_GPT2;
    const NameRow *names = gpt2 ? gpt2_names : llama_names;
    size_t rows = gpt2 ? sizeof gpt2_names / sizeof *names : sizeof llama_names / sizeof *names;
    int64_t count = 0;
    for (size_t i = 0; i < rows; i++) count += list_row(gpt, &names[i], list ? list + count : NULL);
    return count;
}

/* ---- config.json ------------------------------------------------------------------------------------------------ */

static void add_integer(cJSON *json, const char *key, int64_t value) {
    cJSON_AddNumberToObject(json, key, (double)value);
}

static void add_common(cJSON *json, const ModelConfig *c, Family family) {
    cJSON *architectures = cJSON_AddArrayToObject(json, "architectures");
    cJSON_AddItemToArray(architectures, cJSON_CreateString(families[family].architecture));
    cJSON_AddStringToObject(json, "model_type", families[family].model_type);
    cJSON_AddStringToObject(json, "torch_dtype", "float32");
    add_integer(json, "vocab_size", c->vocab);
    cJSON_AddBoolToObject(json, "tie_word_embeddings", c->tie_embeddings);
    cJSON_AddNumberToObject(json, "initializer_range", c->init_std);
    /* the defaults of transformers name tokens that a byte vocabulary does not have */
    cJSON_AddNullToObject(json, "bos_token_id");
    cJSON_AddNullToObject(json, "eos_token_id");
}

static void add_gpt2(cJSON *json, const ModelConfig *c) {
    add_integer(json, "n_layer", c->layers);
    add_integer(json, "n_head", c->heads);
    add_integer(json, "n_embd", c->width);
    add_integer(json, "n_inner", c->mlp_width);
    add_integer(json, "n_positions", c->context);
    add_integer(json, "n_ctx", c->context);
    cJSON_AddStringToObject(json, "activation_function", "gelu_new");
    cJSON_AddNumberToObject(json, "layer_norm_epsilon", c->norm_eps);
    cJSON_AddNumberToObject(json, "resid_pdrop", 0);
    cJSON_AddNumberToObject(json, "embd_pdrop", 0);
    cJSON_AddNumberToObject(json, "attn_pdrop", 0);
}

static void add_llama(cJSON *json, const ModelConfig *c) {
    add_integer(json, "num_hidden_layers", c->layers);
    add_integer(json, "num_attention_heads", c->heads);
    add_integer(json, "num_key_value_heads", c->kv_heads);
    if (c->attention == ATTENTION_MHA) add_integer(json, "head_dim", c->width / c->heads);
    add_integer(json, "hidden_size", c->width);
    add_integer(json, "intermediate_size", c->mlp_width);
    add_integer(json, "max_position_embeddings", c->context);
    cJSON_AddStringToObject(json, "hidden_act", c->mlp == MLP_SWIGLU ? "silu" : "gelu_new");
    cJSON_AddNumberToObject(json, "rms_norm_eps", c->norm_eps);
    cJSON_AddNumberToObject(json, "rope_theta", c->rope_theta);
    cJSON_AddBoolToObject(json, "attention_bias", c->bias);
    cJSON_AddBoolToObject(json, "mlp_bias", c->bias);
}

/* Beside Llama's keys. Every layer is dense: the experts that transformers knows come behind the last. */
static void add_deepseek(cJSON *json, const ModelConfig *c) {
    if (c->q_rank)
        add_integer(json, "q_lora_rank", c->q_rank);
    else
        cJSON_AddNullToObject(json, "q_lora_rank");
    add_integer(json, "kv_lora_rank", c->kv_rank);
    add_integer(json, "qk_nope_head_dim", c->head_nope);
    add_integer(json, "qk_rope_head_dim", c->head_rope);
    add_integer(json, "v_head_dim", c->head_value);
    add_integer(json, "first_k_dense_replace", c->layers);
    cJSON_AddBoolToObject(json, "rope_interleave", false); /* our pairs are halves apart, not neighbours */
    cJSON_AddNullToObject(json, "rope_scaling");
}

/* What Llama's keys cannot say, in the words of our own configuration. */
static void add_own(cJSON *json, const ModelConfig *c) {
    cJSON_AddStringToObject(json, "norm", c->norm == NORM_LAYERNORM ? "layernorm" : "rmsnorm");
    cJSON_AddStringToObject(json, "position", c->position == POSITION_LEARNED ? "learned" : "rope");
    cJSON_AddStringToObject(json, "mlp", c->mlp == MLP_SWIGLU ? "swiglu" : "gelu");
    cJSON_AddBoolToObject(json, "qk_norm", c->qk_norm);
    cJSON_AddNumberToObject(json, "attention_softcap", c->attention_softcap);
}

char *huggingface_config(const ModelConfig *config) {
    Family family = family_of(config);
    cJSON *json = cJSON_CreateObject();
    add_common(json, config, family);
    if (family == FAMILY_GPT2)
        add_gpt2(json, config);
    else
        add_llama(json, config);
    if (config->attention == ATTENTION_MLA) add_deepseek(json, config);
    if (family == FAMILY_OWN) add_own(json, config);
    char *text = cJSON_Print(json);
    cJSON_Delete(json);
    return text;
}

/* Keys of huggingface_config that say nothing of what the model computes from its weights, and those of the context, of
 * which a learned position table's shape speaks. */
static bool is_free(const char *key) {
    static const char *const keys[] = {
        "torch_dtype", "initializer_range",       "bos_token_id", "eos_token_id", "n_positions",
        "n_ctx",       "max_position_embeddings", "resid_pdrop",  "embd_pdrop",   "attn_pdrop"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(keys[i], key) == 0) return true;
    return false;
}

static Status compare_configs(const cJSON *ours, const cJSON *theirs, const char *path) {
    for (const cJSON *key = ours->child; key; key = key->next) {
        const cJSON *other = cJSON_GetObjectItemCaseSensitive(theirs, key->string);
        if (is_free(key->string) || !other || cJSON_IsNull(other) || cJSON_Compare(key, other, true)) continue;
        char *is = cJSON_PrintUnformatted(key), *was = cJSON_PrintUnformatted(other);
        Status status = status_error(STATUS_BAD_INPUT,
                                     "%s: the model there has %s %s, this run's %s; change the model section to match",
                                     path, key->string, was ? was : "", is ? is : "");
        free(is);
        free(was);
        return status;
    }
    return status_ok();
}

Status huggingface_check_config(const ModelConfig *config, const char *path) {
    const int64_t limit = 1 << 20;
    char *text = NULL, *own = NULL;
    int64_t size = 0;
    cJSON *theirs = NULL, *ours = NULL;
    Status status = file_read(path, limit, &text, &size);
    if (status.code) return status;
    own = huggingface_config(config);
    theirs = cJSON_ParseWithLength(text, (size_t)size);
    ours = own ? cJSON_Parse(own) : NULL;
    if (!ours)
        status = status_error(STATUS_OUT_OF_MEMORY, "no memory to compare with %s", path);
    else if (!cJSON_IsObject(theirs))
        status = status_error(STATUS_BAD_INPUT, "%s: this is no JSON object", path);
    else
        status = compare_configs(ours, theirs, path);
    cJSON_Delete(ours);
    cJSON_Delete(theirs);
    free(own);
    free(text);
    return status;
}
