/* Counter-based random numbers: a value is a pure function of (seed, purpose, index).
 *
 * There is no generator state: nothing to save in a checkpoint, nothing that depends on the order of calls, threads or
 * ranks. The mixing is SplitMix64's finalizer (Steele, Lea & Flood 2014) applied over the three words.
 */
#pragma once

#include <stdint.h>

/* One stream per use, so that two uses never see the same numbers. Values are part of the reproducibility promise. */
typedef enum {
    RNG_INIT = 1,       /* weight initialisation */
    RNG_DATA_ORDER = 2, /* order of training windows */
    RNG_SYNTHETIC_GRAMMAR = 3,
    RNG_SYNTHETIC_TEXT = 4,
    RNG_SAMPLE = 5, /* generation */
    RNG_TEST = 6,
    RNG_FIT = 7, /* matrices whose spectra coefficients are fitted to */
} RngPurpose;

uint64_t rng_u64(uint64_t seed, uint64_t purpose, uint64_t index);
double rng_uniform(uint64_t seed, uint64_t purpose, uint64_t index); /* [0, 1) */
double rng_normal(uint64_t seed, uint64_t purpose, uint64_t index);  /* mean 0, variance 1 (Box-Muller) */

/* The image of `index` under a pseudo-random permutation of [0, n): shuffles without a table. n >= 1. */
uint64_t rng_permute(uint64_t seed, uint64_t purpose, uint64_t index, uint64_t n);
