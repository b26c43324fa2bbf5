/* Counter-based random numbers; see rng.h. */
#include "base/rng.h"

#include <math.h>

#include "base/status.h"

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t rng_u64(uint64_t seed, uint64_t purpose, uint64_t index) {
    const uint64_t golden = 0x9e3779b97f4a7c15u;
    return mix(mix(mix(seed + golden) ^ (purpose * golden)) + (index + 1) * golden);
}

double rng_uniform(uint64_t seed, uint64_t purpose, uint64_t index) {
    return (double)(rng_u64(seed, purpose, index) >> 11) * 0x1p-53;
}

double rng_normal(uint64_t seed, uint64_t purpose, uint64_t index) {
    const double two_pi = 6.283185307179586;
    double u = 1.0 - rng_uniform(seed, purpose, 2 * index); /* (0, 1]: its logarithm is finite */
    double v = rng_uniform(seed, purpose, 2 * index + 1);
    return sqrt(-2.0 * log(u)) * cos(two_pi * v);
}

/* A four-round Feistel network permutes [0, 4^half) for the smallest power that covers n; indices that land outside [0,
 * n) walk on along their cycle until they are inside, which keeps the map one to one (Black & Rogaway 2002). */
uint64_t rng_permute(uint64_t seed, uint64_t purpose, uint64_t index, uint64_t n) {
    CHECK(n >= 1 && index < n, "index %llu of %llu", (unsigned long long)index, (unsigned long long)n);
    int half = 1;
    while (half < 32 && ((n - 1) >> (2 * half)) != 0) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1;
    do {
        uint64_t left = index >> half, right = index & mask;
        for (uint64_t round = 0; round < 4; round++) {
            uint64_t next = left ^ (rng_u64(seed, purpose, right * 4 + round) & mask);
            left = right;
            right = next;
        }
        index = left << half | right;
    } while (index >= n);
    return index;
}
