/* Zipfian text from a finite-state grammar; the formulas are in synthetic.h. */
#include "data/synthetic.h"

#include <math.h>
#include <stdlib.h>

#include "base/rng.h"

static int64_t ceil_sqrt(int64_t n) {
    int64_t root = (int64_t)sqrt((double)n);
    while (root * root < n) root++;
    while (root > 1 && (root - 1) * (root - 1) >= n) root--;
    return root;
}

/* Sums start at the rare ranks: small terms first loses less. */
static void tabulate_zipf(SyntheticLanguage *language) {
    int64_t V = language->vocab;
    double total = 0.0, sum = 0.0;
    for (int64_t r = V - 1; r >= 0; r--) total += pow((double)(r + 1), -language->zipf);
    language->entropy = 0.0;
    for (int64_t r = V - 1; r >= 0; r--) {
        double p = pow((double)(r + 1), -language->zipf) / total;
        language->cumulative[r] = 1.0 - sum; /* what the rarer ranks leave */
        sum += p;
        if (p > 0.0) language->entropy -= p * log(p);
    }
}

Status synthetic_init(SyntheticLanguage *language, int64_t vocab, int64_t states, double zipf, uint64_t seed) {
    CHECK(vocab >= 1 && vocab <= (int64_t)1 << 31 && states >= 1 && zipf >= 0.0, "vocab %lld, states %lld, zipf %g",
          (long long)vocab, (long long)states, zipf);
    *language = (SyntheticLanguage){.vocab = vocab, .states = states, .zipf = zipf, .seed = seed};
    language->classes = ceil_sqrt(states);
    language->cumulative = malloc((size_t)vocab * sizeof *language->cumulative);
    if (!language->cumulative)
        return NO_MEMORY("no memory for the synthetic language's table of %lld ranks", (long long)vocab);
    tabulate_zipf(language);
    return status_ok();
}

void synthetic_free(SyntheticLanguage *language) {
    free(language->cumulative);
    *language = (SyntheticLanguage){0};
}

int64_t synthetic_state(const SyntheticLanguage *language, int32_t before_last, int32_t last) {
    int64_t A = language->classes;
    return (A * (before_last % A) + last % A) % language->states;
}

int32_t synthetic_token(const SyntheticLanguage *language, int64_t state, int64_t rank) {
    uint64_t order = rng_u64(language->seed, RNG_SYNTHETIC_GRAMMAR, (uint64_t)state);
    return (int32_t)rng_permute(order, RNG_SYNTHETIC_GRAMMAR, (uint64_t)rank, (uint64_t)language->vocab);
}

/* The rank r with cumulative[r-1] <= u < cumulative[r]. */
static int64_t find_rank(const SyntheticLanguage *language, double u) {
    int64_t low = 0, high = language->vocab - 1;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (u < language->cumulative[middle])
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

void synthetic_sample(const SyntheticLanguage *language, SyntheticSplit split, int64_t index, int64_t length,
                      int32_t *tokens, int32_t *targets) {
    CHECK(index >= 0 && length >= 1 && index < INT64_MAX / (length + 1), "sample %lld of %lld tokens", (long long)index,
          (long long)length);
    uint64_t counter = ((uint64_t)split << 63) + (uint64_t)(index * (length + 1)); /* below 2^63 is training's half */
    int32_t before_last = 0, last = 0;
    for (int64_t i = 0; i <= length; i++) {
        double u = rng_uniform(language->seed, RNG_SYNTHETIC_TEXT, counter + (uint64_t)i);
        int64_t state = synthetic_state(language, before_last, last);
        int32_t token = synthetic_token(language, state, find_rank(language, u));
        if (i < length) tokens[i] = token;
        if (i > 0) targets[i - 1] = token;
        before_last = last;
        last = token;
    }
}
