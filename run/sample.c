/* Generation; see sample.h. */
#include "run/sample.h"

#include <math.h>
#include <stdlib.h>

#include "base/rng.h"

static int compare_descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The k-th largest logit: everything below it is out. `sorted` has room for V. */
static float top_k_threshold(const float *logits, int64_t vocab, int64_t k, float *sorted) {
    memcpy(sorted, logits, (size_t)vocab * sizeof *sorted);
    qsort(sorted, (size_t)vocab, sizeof *sorted, compare_descending);
    return sorted[k - 1];
}

static int64_t argmax(const float *logits, int64_t vocab) {
    int64_t best = 0;
    for (int64_t v = 1; v < vocab; v++)
        if (logits[v] > logits[best]) best = v;
    return best;
}

/* The i-th random number of the seed chooses. Overwrites logits (V); `sorted` has room for V. */
static int64_t sample_token(float *logits, int64_t vocab, SampleOptions options, float *sorted, int64_t i) {
    const int64_t best = argmax(logits, vocab);
    if (options.temperature <= 0) return best;
    const float top = logits[best];
    const float threshold =
        options.top_k > 0 && options.top_k < vocab ? top_k_threshold(logits, vocab, options.top_k, sorted) : -INFINITY;
    double total = 0;
    for (int64_t v = 0; v < vocab; v++) {
        double p = logits[v] < threshold ? 0 : exp(((double)logits[v] - (double)top) / options.temperature);
        logits[v] = (float)p;
        total += p;
    }
    double left = rng_uniform((uint64_t)options.seed, RNG_SAMPLE, (uint64_t)i) * total;
    for (int64_t v = 0; v < vocab; v++) {
        left -= (double)logits[v];
        if (left < 0) return v;
    }
    return best; /* rounding used up the last bit of probability */
}

/* Text without control characters, which a young model is fond of and which would steer the terminal. */
static void print_token(const Tokenizer *tokenizer, int64_t token, FILE *out) {
    int64_t length;
    const uint8_t *bytes = tokenizer_decode(tokenizer, token, &length);
    for (int64_t i = 0; i < length; i++)
        if ((bytes[i] >= ' ' && bytes[i] != 0x7f) || bytes[i] == '\n' || bytes[i] == '\t') fputc(bytes[i], out);
    if (tokenizer->count == 0) fprintf(out, "%lld ", (long long)token);
    fflush(out);
}

Status sample_text(Gpt *gpt, const Tokenizer *tokenizer, const int32_t *prompt, int64_t prompt_length,
                   SampleOptions options, FILE *out) {
    const int64_t total = prompt_length + options.length;
    int32_t *tokens =
        calloc((size_t)(total + gpt->T), sizeof *tokens); /* T more: the window may reach beyond the end */
    float *logits = calloc((size_t)gpt->V, sizeof *logits), *sorted = calloc((size_t)gpt->V, sizeof *sorted);
    Status status = status_ok();
    if (!tokens || !logits || !sorted) {
        status = NO_MEMORY("no memory to generate %lld tokens", (long long)options.length);
        goto done;
    }
    for (int64_t i = 0; i < prompt_length; i++) print_token(tokenizer, tokens[i] = prompt[i], out);
    for (int64_t n = prompt_length; n < total; n++) {
        /* Tokens behind position n - 1 are still zero; attention is causal, so they do not matter. */
        int64_t first = n > gpt->T ? n - gpt->T : 0;
        gpt_set_batch(gpt, tokens + first, NULL);
        gpt_forward(gpt);
        gpt_logits_at(gpt, n - 1 - first, logits);
        if (FAILED(status, backend_sync(gpt->be))) goto done;
        tokens[n] = (int32_t)sample_token(logits, gpt->V, options, sorted, n);
        print_token(tokenizer, tokens[n], out);
    }
    fputc('\n', out);
done:
    free(tokens);
    free(logits);
    free(sorted);
    return status;
}
