/* Counter-based random numbers: their values are a promise, their statistics are those of independent draws.
 *
 * Tolerances are five standard errors (those of normal samples for skewness and kurtosis); the draws are fixed, so a
 * test that passes always passes.
 */
#include "tests/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

enum { SAMPLES = 200000 };

/* Computed by an independent implementation. A change here changes every run that was ever reproduced. */
static void the_streams_never_change(void **state) {
    (void)state;
    assert_true(rng_u64(0, RNG_INIT, 0) == UINT64_C(0x1cd364143cce4aae));
    assert_true(rng_u64(1337, RNG_INIT, 0) == UINT64_C(0x97c74a284dee9f27));
    assert_true(rng_u64(1337, RNG_INIT, 1) == UINT64_C(0xfade3540bcb058b5));
    assert_true(rng_u64(1337, RNG_DATA_ORDER, 0) == UINT64_C(0x896d3146ad921774));
    assert_true(rng_u64(UINT64_C(1) << 53, RNG_TEST, UINT64_C(1) << 40) == UINT64_C(0x9e2a5bbb0d526876));
    assert_true(rng_u64(UINT64_MAX, UINT64_MAX, UINT64_MAX) == UINT64_C(0x7ba8e05e958e39ce));
    assert_true(rng_uniform(1337, RNG_INIT, 0) == 0.5928846691512554);
    /* log and cos may differ in the last bits between C libraries */
    assert_true(fabs(rng_normal(1337, RNG_INIT, 0) - 1.330019818751126) < 1e-14);
    assert_true(fabs(rng_normal(1337, RNG_INIT, 1) + 0.14651810707833543) < 1e-14);
}

static void the_permutation_never_changes(void **state) {
    (void)state;
    static const uint64_t image[] = {10, 7, 2, 9, 4, 5, 8, 1, 0, 3, 6};
    for (uint64_t i = 0; i < 11; i++) assert_int_equal(rng_permute(1337, RNG_DATA_ORDER, i, 11), image[i]);
    assert_int_equal(rng_permute(1337, RNG_DATA_ORDER, 5, UINT64_C(1000000000039)), UINT64_C(748346370175));
}

static void a_permutation_meets_every_index_once_whatever_the_length(void **state) {
    (void)state;
    static const uint64_t lengths[] = {1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 255, 257, 1001, 4097, 65537};
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        uint64_t n = lengths[l];
        unsigned char *met = calloc(n, 1);
        assert_non_null(met);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t image = rng_permute(9, RNG_TEST, i, n);
            assert_true(image < n);
            assert_false(met[image]);
            met[image] = 1;
        }
        free(met);
    }
}

static void permutations_of_two_seeds_agree_by_chance_only(void **state) {
    (void)state;
    enum { N = 1001 };
    int fixed = 0, equal = 0, neighbours = 0;
    for (uint64_t i = 0; i < N; i++) {
        uint64_t image = rng_permute(1, RNG_TEST, i, N);
        fixed += image == i;
        equal += image == rng_permute(2, RNG_TEST, i, N);
        neighbours += i > 0 && image == rng_permute(1, RNG_TEST, i - 1, N) + 1;
    }
    /* each count is about Poisson with mean 1: beyond 8 has a probability of one in a million */
    assert_true(fixed <= 8 && equal <= 8 && neighbours <= 8);
}

typedef struct {
    double mean, variance, skewness, kurtosis;
} Moments;

static Moments moments(double (*draw)(uint64_t, uint64_t, uint64_t)) {
    double sums[5] = {0};
    for (uint64_t i = 0; i < SAMPLES; i++) {
        double x = draw(3, RNG_TEST, i), power = 1;
        for (int k = 1; k <= 4; k++) sums[k] += power *= x;
    }
    for (int k = 1; k <= 4; k++) sums[k] /= SAMPLES;
    double mean = sums[1], variance = sums[2] - mean * mean;
    double third = sums[3] - 3 * mean * sums[2] + 2 * mean * mean * mean;
    double fourth = sums[4] - 4 * mean * sums[3] + 6 * mean * mean * sums[2] - 3 * mean * mean * mean * mean;
    return (Moments){mean, variance, third / pow(variance, 1.5), fourth / (variance * variance)};
}

static void assert_near(double got, double expected, double standard_error) {
    if (!(fabs(got - expected) < 5 * standard_error)) fail_msg("expected %g, got %g", expected, got);
}

static void uniform_numbers_have_the_moments_of_the_unit_interval(void **state) {
    (void)state;
    Moments m = moments(rng_uniform);
    assert_near(m.mean, 0.5, sqrt(1.0 / 12 / SAMPLES));
    assert_near(m.variance, 1.0 / 12, sqrt((1.0 / 80 - 1.0 / 144) / SAMPLES));
    assert_near(m.skewness, 0, sqrt(6.0 / SAMPLES));
    assert_near(m.kurtosis, 1.8, sqrt(24.0 / SAMPLES));
}

static void normal_numbers_have_the_moments_of_the_normal_law(void **state) {
    (void)state;
    Moments m = moments(rng_normal);
    assert_near(m.mean, 0, sqrt(1.0 / SAMPLES));
    assert_near(m.variance, 1, sqrt(2.0 / SAMPLES));
    assert_near(m.skewness, 0, sqrt(6.0 / SAMPLES));
    assert_near(m.kurtosis, 3, sqrt(24.0 / SAMPLES));
}

static void uniform_numbers_fill_all_bins_alike_and_stay_below_one(void **state) {
    (void)state;
    enum { BINS = 256 };
    int counts[BINS] = {0};
    for (uint64_t i = 0; i < SAMPLES; i++) {
        double x = rng_uniform(4, RNG_TEST, i);
        assert_true(x >= 0 && x < 1);
        counts[(int)(x * BINS)]++;
    }
    double expected = (double)SAMPLES / BINS, chi_squared = 0;
    for (int b = 0; b < BINS; b++) chi_squared += (counts[b] - expected) * (counts[b] - expected) / expected;
    assert_near(chi_squared, BINS - 1, sqrt(2.0 * (BINS - 1)));
}

/* Correlation of two streams of uniform numbers, the second shifted by `lag`. */
static double correlation(uint64_t seed_a, uint64_t purpose_a, uint64_t seed_b, uint64_t purpose_b, uint64_t lag) {
    double sum = 0;
    for (uint64_t i = 0; i < SAMPLES; i++) {
        sum += (rng_uniform(seed_a, purpose_a, i) - 0.5) * (rng_uniform(seed_b, purpose_b, i + lag) - 0.5);
    }
    return 12 * sum / SAMPLES;
}

static void streams_of_different_purposes_seeds_and_indices_are_independent(void **state) {
    (void)state;
    double standard_error = sqrt(1.0 / SAMPLES);
    assert_near(correlation(5, RNG_INIT, 5, RNG_DATA_ORDER, 0), 0, standard_error);
    assert_near(correlation(5, RNG_INIT, 5, RNG_SAMPLE, 1), 0, standard_error);
    assert_near(correlation(5, RNG_TEST, 6, RNG_TEST, 0), 0, standard_error);
    assert_near(correlation(5, RNG_TEST, 6, RNG_TEST, 1), 0, standard_error);
    assert_near(correlation(5, RNG_TEST, 5, RNG_TEST, 1), 0, standard_error);
    assert_near(correlation(5, RNG_TEST, 5, RNG_TEST, 2), 0, standard_error);
    assert_near(correlation(5, RNG_TEST, 5, RNG_TEST, 0), 1, standard_error); /* the measure itself works */
}

static int compare_words(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void no_two_of_the_purposes_and_seeds_share_a_value(void **state) {
    (void)state;
    enum { SEEDS = 8, PURPOSES = 6, INDICES = 500, COUNT = SEEDS * PURPOSES * INDICES };
    uint64_t *words = malloc(COUNT * sizeof *words);
    assert_non_null(words);
    for (uint64_t i = 0; i < COUNT; i++) {
        words[i] = rng_u64(i % SEEDS, RNG_INIT + i / SEEDS % PURPOSES, i / (SEEDS * PURPOSES));
    }
    qsort(words, COUNT, sizeof *words, compare_words);
    for (int i = 1; i < COUNT; i++) assert_true(words[i] != words[i - 1]);
    free(words);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_streams_never_change),
        cmocka_unit_test(the_permutation_never_changes),
        cmocka_unit_test(a_permutation_meets_every_index_once_whatever_the_length),
        cmocka_unit_test(permutations_of_two_seeds_agree_by_chance_only),
        cmocka_unit_test(uniform_numbers_have_the_moments_of_the_unit_interval),
        cmocka_unit_test(normal_numbers_have_the_moments_of_the_normal_law),
        cmocka_unit_test(uniform_numbers_fill_all_bins_alike_and_stay_below_one),
        cmocka_unit_test(streams_of_different_purposes_seeds_and_indices_are_independent),
        cmocka_unit_test(no_two_of_the_purposes_and_seeds_share_a_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
