/* Facts about a token file; see inspect.h. */
#include "data/inspect.h"

#include <ctype.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/shard.h"
#include "data/tokenizer.h"

enum {
    FREQUENT_SHOWN = 10,
    FIRST_SHOWN = 64,
    COUNTED_LIMIT = 1 << 24, /* a table of counts for larger tokens would not be small beside the file */
};

/* ---- tokens as text --------------------------------------------------------------------------------------------- */

/* Its bytes as they would stand in a C string: no byte of a file can reach the terminal as a control sequence. */
static void print_token(const Tokenizer *tokenizer, uint32_t token, FILE *out) {
    int64_t length = 0;
    const uint8_t *bytes = tokenizer_decode(tokenizer, token, &length);
    for (int64_t i = 0; i < length; i++) {
        if (bytes[i] == '\n')
            fputs("\\n", out);
        else if (bytes[i] == '"' || bytes[i] == '\\')
            fprintf(out, "\\%c", bytes[i]);
        else if (bytes[i] < 0x80 && isprint(bytes[i]))
            fputc(bytes[i], out);
        else
            fprintf(out, "\\x%02x", bytes[i]);
    }
}

/* ---- frequencies ------------------------------------------------------------------------------------------------ */

static double unigram_entropy(const int64_t *counts, int64_t limit, int64_t total) {
    double entropy = 0.0;
    for (int64_t t = 0; t < limit; t++) {
        double p = (double)counts[t] / (double)total;
        if (counts[t] > 0) entropy -= p * log(p);
    }
    return entropy;
}

/* The tokens of the largest counts, ties by number; returns how many there are, at most FREQUENT_SHOWN. */
static int find_frequent(const int64_t *counts, int64_t limit, int64_t *frequent) {
    int found = 0;
    for (int64_t t = 0; t < limit; t++) {
        if (counts[t] == 0) continue;
        int place = found < FREQUENT_SHOWN ? found++ : FREQUENT_SHOWN;
        for (; place > 0 && counts[frequent[place - 1]] < counts[t]; place--)
            if (place < FREQUENT_SHOWN) frequent[place] = frequent[place - 1];
        if (place < FREQUENT_SHOWN) frequent[place] = t;
    }
    return found;
}

static Status print_frequencies(const Shard *shard, const Tokenizer *tokenizer, int64_t limit, FILE *out) {
    int64_t *counts = calloc((size_t)limit, sizeof *counts);
    if (!counts) return NO_MEMORY("no memory to count %lld tokens", (long long)limit);
    int64_t distinct = 0;
    for (int64_t i = 0; i < shard->count; i++) distinct += counts[shard_token(shard, i)]++ == 0;
    double entropy = unigram_entropy(counts, limit, shard->count);
    fprintf(out, "distinct       %lld tokens\n", (long long)distinct);
    fprintf(out, "entropy        %.4f nats = %.4f bits a token, by frequency alone\n", entropy, entropy / log(2.0));

    int64_t frequent[FREQUENT_SHOWN];
    int shown = find_frequent(counts, limit, frequent);
    for (int i = 0; i < shown; i++) {
        int64_t t = frequent[i];
        fprintf(out, "%s %6.2f %%  %6lld", i == 0 ? "most frequent " : "              ",
                100.0 * (double)counts[t] / (double)shard->count, (long long)t);
        fputs(tokenizer->count > 0 ? "  \"" : "", out);
        print_token(tokenizer, (uint32_t)t, out);
        fputs(tokenizer->count > 0 ? "\"\n" : "\n", out);
    }
    free(counts);
    return status_ok();
}

static void print_first_tokens(const Shard *shard, const Tokenizer *tokenizer, FILE *out) {
    bool text = tokenizer->count > 0;
    fputs(text ? "begins         \"" : "begins        ", out);
    for (int64_t i = 0; i < shard->count && i < FIRST_SHOWN; i++) {
        if (text)
            print_token(tokenizer, shard_token(shard, i), out);
        else
            fprintf(out, " %u", shard_token(shard, i));
    }
    fputs(text ? "\"\n" : "\n", out);
}

Status inspect_token_file(const char *path, FILE *out) {
    Shard shard = {0};
    Tokenizer tokenizer = {0};
    Status status;
    if (FAILED(status, shard_open(&shard, path))) return status;
    if (FAILED(status, tokenizer_read_beside(&tokenizer, path))) goto done;
    shard_expect(&shard, SHARD_SEQUENTIAL);
    int64_t limit = (int64_t)shard_largest_token(&shard) + 1;

    fprintf(out, "file           %s\n", path);
    fprintf(out, "format         llm.c token file, %s, version %d\n", shard.format->name, shard.format->version);
    fprintf(out, "size           %lld bytes\n", (long long)shard.bytes);
    fprintf(out, "tokens         %lld\n", (long long)shard.count);
    fprintf(out, "largest token  %lld: needs model.vocab >= %lld\n", (long long)limit - 1, (long long)limit);
    if (limit > COUNTED_LIMIT)
        fprintf(out, "frequencies    not counted: tokens of %d and more\n", COUNTED_LIMIT);
    else if (FAILED(status, print_frequencies(&shard, &tokenizer, limit, out)))
        goto done;
    print_first_tokens(&shard, &tokenizer, out);
done:
    tokenizer_free(&tokenizer);
    shard_close(&shard);
    return status;
}
