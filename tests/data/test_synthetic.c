/* The synthetic language: its entropy is what it says, and counting the right context finds it. */
#include "tests/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/synthetic.h"

enum { V = 32, S = 16, A = 4, T = 128 }; /* vocabulary, states, classes, tokens of a sample */

static SyntheticLanguage open_language(uint64_t seed) {
    SyntheticLanguage language;
    assert_ok(synthetic_init(&language, V, S, 1.0, seed));
    return language;
}

static void the_entropy_is_that_of_zipfs_law(void **state) {
    (void)state;
    SyntheticLanguage language;
    assert_ok(synthetic_init(&language, 3, 1, 1.0, 1)); /* weights 1, 1/2, 1/3: p = 6/11, 3/11, 2/11 */
    double expected = -(6 * log(6.0 / 11) + 3 * log(3.0 / 11) + 2 * log(2.0 / 11)) / 11;
    assert_true(fabs(language.entropy - expected) < 1e-14);
    assert_true(fabs(language.cumulative[0] - 6.0 / 11) < 1e-15);
    assert_true(fabs(language.cumulative[1] - 9.0 / 11) < 1e-15);
    assert_true(language.cumulative[2] == 1.0);
    synthetic_free(&language);

    assert_ok(synthetic_init(&language, 1000, 5, 0.0, 1));
    assert_true(fabs(language.entropy - log(1000.0)) < 1e-12);
    assert_int_equal(language.classes, 3);
    synthetic_free(&language);
}

static void every_state_permutes_the_vocabulary_in_its_own_way(void **state) {
    (void)state;
    SyntheticLanguage language = open_language(5);
    for (int64_t s = 0; s < S; s++) {
        int seen[V] = {0}, same = 0;
        for (int64_t r = 0; r < V; r++) {
            int32_t token = synthetic_token(&language, s, r);
            assert_in_range(token, 0, V - 1);
            seen[token]++;
            same += token == synthetic_token(&language, (s + 1) % S, r);
        }
        for (int t = 0; t < V; t++) assert_int_equal(seen[t], 1);
        assert_true(same < V / 2);
    }
    synthetic_free(&language);
}

static void the_state_is_the_classes_of_the_last_two_tokens(void **state) {
    (void)state;
    SyntheticLanguage language = open_language(5);
    assert_int_equal(synthetic_state(&language, 0, 0), 0);
    assert_int_equal(synthetic_state(&language, 0, 7), 3);    /* class 3 */
    assert_int_equal(synthetic_state(&language, 6, 5), 9);    /* 4 * class 2 + class 1 */
    assert_int_equal(synthetic_state(&language, 31, 31), 15); /* 4 * class 3 + class 3 */
    synthetic_free(&language);
}

/* H(next | class of the last `order` tokens), estimated by counting: never below the truth by more than the bias
 * (cells - contexts) / 2N, here 0.001 nats (Miller 1955). */
static double count_entropy(const SyntheticLanguage *language, int order) {
    enum { SAMPLES = 2000 };
    int64_t contexts = order == 0 ? 1 : order == 1 ? A : A * A;
    double *counts = calloc((size_t)(contexts * V), sizeof *counts);
    int32_t tokens[T], targets[T];
    for (int64_t i = 0; i < SAMPLES; i++) {
        synthetic_sample(language, SYNTHETIC_TRAIN, i, T, tokens, targets);
        for (int64_t t = 0; t < T; t++) {
            int64_t before = t > 0 ? tokens[t - 1] % A : 0, last = tokens[t] % A;
            int64_t context = order == 0 ? 0 : order == 1 ? last : A * before + last;
            counts[context * V + targets[t]]++;
        }
    }
    double entropy = 0.0;
    for (int64_t c = 0; c < contexts; c++) {
        double total = 0.0;
        for (int64_t t = 0; t < V; t++) total += counts[c * V + t];
        for (int64_t t = 0; t < V; t++) {
            double n = counts[c * V + t];
            if (n > 0) entropy -= n / (SAMPLES * T) * log(n / total);
        }
    }
    free(counts);
    return entropy;
}

/* The estimate's standard error is about 1 nat / sqrt(256000 tokens) = 0.002; with the bias, 0.01 is ample. */
static void two_tokens_of_context_reach_the_floor_in_three_steps(void **state) {
    (void)state;
    SyntheticLanguage language = open_language(1337);
    double none = count_entropy(&language, 0), one = count_entropy(&language, 1), two = count_entropy(&language, 2);
    assert_true(none < log(V));
    assert_true(one < none - 0.1);
    assert_true(two < one - 0.1);
    assert_true(fabs(two - language.entropy) < 0.01);
    synthetic_free(&language);
}

/* The first target is predicted from one token, and still its state is known: the floor holds from there on. */
static void the_floor_holds_from_the_first_target_on(void **state) {
    (void)state;
    enum { SAMPLES = 100000 };
    SyntheticLanguage language = open_language(3);
    double counts[A][V] = {{0}}, totals[A] = {0}, entropy = 0.0;
    for (int64_t i = 0; i < SAMPLES; i++) {
        int32_t token, target;
        synthetic_sample(&language, SYNTHETIC_TRAIN, i, 1, &token, &target);
        counts[token % A][target]++;
        totals[token % A]++;
    }
    for (int c = 0; c < A; c++)
        for (int t = 0; t < V; t++)
            if (counts[c][t] > 0) entropy -= counts[c][t] / SAMPLES * log(counts[c][t] / totals[c]);
    assert_true(fabs(entropy - language.entropy) < 0.01);
    synthetic_free(&language);
}

static void targets_are_the_next_tokens(void **state) {
    (void)state;
    SyntheticLanguage language = open_language(2);
    int32_t tokens[T], targets[T];
    synthetic_sample(&language, SYNTHETIC_VALIDATION, 77, T, tokens, targets);
    assert_memory_equal(tokens + 1, targets, (T - 1) * sizeof *tokens);
    synthetic_free(&language);
}

static void a_sample_depends_on_seed_split_and_index_alone(void **state) {
    (void)state;
    SyntheticLanguage language = open_language(2), again = open_language(2), other = open_language(4);
    int32_t first[T], second[T], targets[T];
    synthetic_sample(&language, SYNTHETIC_TRAIN, 9, T, first, targets);
    synthetic_sample(&language, SYNTHETIC_TRAIN, 8, T, second, targets);
    assert_memory_not_equal(first, second, sizeof first);
    synthetic_sample(&again, SYNTHETIC_TRAIN, 9, T, second, targets);
    assert_memory_equal(first, second, sizeof first);
    synthetic_sample(&again, SYNTHETIC_VALIDATION, 9, T, second, targets);
    assert_memory_not_equal(first, second, sizeof first);
    synthetic_sample(&other, SYNTHETIC_TRAIN, 9, T, second, targets);
    assert_memory_not_equal(first, second, sizeof first);
    synthetic_free(&language);
    synthetic_free(&again);
    synthetic_free(&other);
}

static int64_t rank_of(const SyntheticLanguage *language, int64_t state, int32_t token) {
    int64_t rank = 0;
    while (synthetic_token(language, state, rank) != token) rank++;
    return rank;
}

static void another_seed_has_another_grammar_and_other_text(void **state) {
    (void)state;
    SyntheticLanguage language = open_language(2), other = open_language(3);
    int32_t tokens[T], others[T], targets[T];
    int same_token = 0, same_rank = 0;
    synthetic_sample(&language, SYNTHETIC_TRAIN, 0, T, tokens, targets);
    synthetic_sample(&other, SYNTHETIC_TRAIN, 0, T, others, targets);
    for (int64_t r = 0; r < V; r++) same_token += synthetic_token(&language, 0, r) == synthetic_token(&other, 0, r);
    for (int t = 2; t < T; t++)
        same_rank += rank_of(&language, synthetic_state(&language, tokens[t - 2], tokens[t - 1]), tokens[t]) ==
                     rank_of(&other, synthetic_state(&other, others[t - 2], others[t - 1]), others[t]);
    assert_true(same_token < V / 2);
    assert_true(same_rank < T / 2);
    synthetic_free(&language);
    synthetic_free(&other);
}

static void small_and_large_vocabularies_stay_in_range(void **state) {
    (void)state;
    const int64_t vocabs[] = {1, 2, 3, 257, 50257, 131072};
    for (size_t i = 0; i < sizeof vocabs / sizeof *vocabs; i++) {
        SyntheticLanguage language;
        int32_t tokens[T], targets[T];
        assert_ok(synthetic_init(&language, vocabs[i], 7, 0.7, i));
        synthetic_sample(&language, SYNTHETIC_TRAIN, INT64_MAX / 1000, T, tokens, targets);
        for (int t = 0; t < T; t++) assert_true(tokens[t] >= 0 && tokens[t] < vocabs[i]);
        synthetic_free(&language);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_entropy_is_that_of_zipfs_law),
        cmocka_unit_test(every_state_permutes_the_vocabulary_in_its_own_way),
        cmocka_unit_test(the_state_is_the_classes_of_the_last_two_tokens),
        cmocka_unit_test(two_tokens_of_context_reach_the_floor_in_three_steps),
        cmocka_unit_test(the_floor_holds_from_the_first_target_on),
        cmocka_unit_test(targets_are_the_next_tokens),
        cmocka_unit_test(a_sample_depends_on_seed_split_and_index_alone),
        cmocka_unit_test(another_seed_has_another_grammar_and_other_text),
        cmocka_unit_test(small_and_large_vocabularies_stay_in_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
