/* Generation: continues a prompt token by token. */
#pragma once

#include "data/tokenizer.h"
#include "model/gpt.h"

typedef struct {
    int64_t length;     /* tokens to generate */
    double temperature; /* logits are divided by it; 0 takes the most likely token */
    int64_t top_k;      /* choose among the k most likely; 0: among all */
    int64_t seed;
} SampleOptions;

/* Prints the prompt and its continuation as text, without control characters other than newline and tab, or as numbers
 * where the tokenizer has no tokens. gpt: one row (B = 1), with weights. The model sees the last T tokens; each step is
 * a whole forward pass, so that any backend can do it. */
Status sample_text(Gpt *gpt, const Tokenizer *tokenizer, const int32_t *prompt, int64_t prompt_length,
                   SampleOptions options, FILE *out);
