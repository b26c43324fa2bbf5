/* Names of tensors and config.json for Hugging Face transformers; see huggingface.h. The names, and which rows of a
 * parameter have one of their own, are in the rows of the weights.
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
#include "model/weights.h"

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
    bool gpt2 = c->norm == NORM_LAYERNORM && c->position == POSITION_LEARNED && c->mlp == MLP_GELU;
    bool llama = c->norm == NORM_RMSNORM && c->position == POSITION_ROPE && c->mlp == MLP_SWIGLU;
    if (c->attention_softcap != 0) return FAMILY_OWN;
    if (llama && c->attention == ATTENTION_MLA) return FAMILY_DEEPSEEK;
    if (c->attention != ATTENTION_MHA) return FAMILY_OWN;
    if (gpt2 && c->bias && c->tie_embeddings && !c->qk_norm && c->kv_heads == c->heads) return FAMILY_GPT2;
    if (llama && !c->qk_norm) return FAMILY_LLAMA;
    if (llama && !c->bias) return FAMILY_QWEN3;
    return FAMILY_OWN;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static bool is_gpt2(const Gpt *g) {
    return family_of(&g->config) == FAMILY_GPT2;
}

static void write_name(char *buffer, const Gpt *g, bool per_layer, int64_t layer, const char *name) {
    const char *layers = is_gpt2(g) ? "transformer.h" : "model.layers";
    int length = per_layer ? snprintf(buffer, FILE_TENSOR_NAME_SIZE, "%s.%lld.%s", layers, (long long)layer, name)
                           : snprintf(buffer, FILE_TENSOR_NAME_SIZE, "%s", name);
    CHECK(length < FILE_TENSOR_NAME_SIZE, "%s is too long", name);
}

/* The rows [first, first + count) of a parameter, which have a name of their own: a tensor of each layer. */
static int64_t list_rows(const Gpt *g, int param, int64_t first, int64_t count, const char *name, FileTensor *list) {
    const Param *p = &g->params.params[param];
    const WeightRow *row = g->rows[param];
    if (count == 0) return 0;
    for (int64_t layer = 0; list && layer < p->count; layer++) {
        Tensor whole = params_tensor(&g->params, g->params.master, param, layer);
        FileTensor *t = &list[layer];
        *t = (FileTensor){.tensor = tensor_slice(whole, 0, first, count)};
        t->transposed = is_gpt2(g) && p->per_layer && !p->vector; /* its Conv1D holds (in, out) */
        if (row->by_head) t->heads = g->H, t->first_rows = row->parts[0].rows(g) / g->H;
        write_name(t->name, g, p->per_layer, layer, name);
    }
    return p->count;
}

static int64_t list_parts(const Gpt *g, int param, FileTensor *list) {
    const WeightRow *row = g->rows[param];
    int64_t first = 0, listed = 0;
    for (int i = 0; weight_has_part(row, i);) {
        const char *name = row->parts[i].llama;
        int64_t rows = row->parts[i].rows(g);
        for (i++; weight_has_part(row, i) && !row->parts[i].llama; i++) rows += row->parts[i].rows(g);
        listed += list_rows(g, param, first, rows, name, list ? list + listed : NULL);
        first += rows;
    }
    return listed;
}

int64_t huggingface_tensors(const Gpt *g, FileTensor *list) {
    int64_t count = 0;
    for (int param = 0; param < g->params.param_count; param++) {
        FileTensor *next = list ? list + count : NULL;
        count += is_gpt2(g) ? list_rows(g, param, 0, g->params.params[param].rows, g->rows[param]->gpt2, next)
                            : list_parts(g, param, next);
    }
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
        Status status = BAD_INPUT("%s: the model there has %s %s, this run's %s; change the model section to match",
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
        status = NO_MEMORY("no memory to compare with %s", path);
    else if (!cJSON_IsObject(theirs))
        status = BAD_INPUT("%s: not a JSON object", path);
    else
        status = compare_configs(ours, theirs, path);
    cJSON_Delete(ours);
    cJSON_Delete(theirs);
    free(own);
    free(text);
    return status;
}
