/* What a model of ours is called in Hugging Face `transformers`: architecture, config.json, names and shapes of
 * tensors.
 *
 *      layernorm, learned positions, gelu, bias, tied head, every head its own k and v    GPT2LMHeadModel
 *      rmsnorm, rope, swiglu                                                              LlamaForCausalLM
 *      the same with qk_norm, without bias                                                Qwen3ForCausalLM
 *      the same with latent attention                                                     DeepseekV3ForCausalLM, dense
 *      any other combination, and any with an attention softcap                           TrainGptForCausalLM
 *
 * The first four load in transformers as they are. The last is a name of our own, with Llama's names for the tensors:
 * transformers knows no model that computes the same, and refuses it by its name instead of computing something else.
 * Qwen3, DeepSeek-V3, and a Llama's biases in the mlp, need a transformers that knows them (4.53 does; 4.36 leaves such
 * biases out).
 */
#pragma once

#include "model/gpt.h"
#include "model/tensor_file.h"

/* Every element of the model's parameters once, as views of the master weights. Fills `list` unless it is NULL; returns
 * how many there are. */
int64_t huggingface_tensors(const Gpt *gpt, FileTensor *list);

/* config.json of this model; NULL without memory. The caller frees it. */
char *huggingface_config(const ModelConfig *config);

/* Whether the config.json at `path` describes this model, in every key that both have and that changes what it computes
 * but for the context. STATUS_BAD_INPUT names the first that differs. */
Status huggingface_check_config(const ModelConfig *config, const char *path);
