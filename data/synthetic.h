/* The built-in synthetic language: endless text with an exactly known entropy rate, from a seed and no file.
 *
 * Every token belongs to one of A = ceil(sqrt(S)) classes. The classes of the last two tokens are the grammar's state,
 * and each state has its own order of preference among the V tokens: a permutation pi. The next token's rank in that
 * order follows Zipf's law with exponent z:
 *
 *      class(t)   =  t mod A
 *      state s    =  (A class(x[i-2]) + class(x[i-1])) mod S             tokens before the sample's first have class 0
 *      P(rank r)  =  (r+1)^-z / sum_k (k+1)^-z                           r, k = 0 .. V-1
 *      x[i]       =  pi_s(r)
 *
 * The state is a function of what a model has seen, and pi_s is one to one, so the entropy of the next token given its
 * past is that of Zipf's law in every position: H = -sum_r P(r) ln P(r). No model has a lower expected loss, and one
 * that has learned the S permutations reaches it. There are steps on the way down: frequencies alone are nearly ln V,
 * the last token's class gives part of the gap, the last two tokens' classes all of it.
 */
#pragma once

#include <stdint.h>

#include "base/status.h"

typedef struct {
    int64_t vocab;      /* V */
    int64_t states;     /* S */
    int64_t classes;    /* A */
    double zipf;        /* z */
    double entropy;     /* H, nats per token */
    uint64_t seed;      /* of the permutations and of the text */
    double *cumulative; /* (V) P(rank <= r); the last is 1 */
} SyntheticLanguage;

/* 1 <= vocab <= 2^31, states >= 1, zipf >= 0 (0: all tokens equally likely). Fails for lack of memory only. */
Status synthetic_init(SyntheticLanguage *language, int64_t vocab, int64_t states, double zipf, uint64_t seed);
void synthetic_free(SyntheticLanguage *language);

int64_t synthetic_state(const SyntheticLanguage *language, int32_t before_last, int32_t last);
int32_t synthetic_token(const SyntheticLanguage *language, int64_t state, int64_t rank); /* pi_state(rank) */

/* Training and validation text come from disjoint ranges of the random counter. */
typedef enum { SYNTHETIC_TRAIN, SYNTHETIC_VALIDATION } SyntheticSplit;

/* Sample `index`: `length` tokens and their targets, the tokens that follow each. A function of (seed, split, index,
 * length) only. O(length log V). */
void synthetic_sample(const SyntheticLanguage *language, SyntheticSplit split, int64_t index, int64_t length,
                      int32_t *tokens, int32_t *targets);
