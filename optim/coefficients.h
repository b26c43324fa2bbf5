/* Named sets of Newton-Schulz coefficients: a choice of (a, b, c) in s <- a s + b s³ + c s⁵ per iteration. None reaches
 * exactly 1 in few iterations; `low` and `high` say how far from it they stay. */
#pragma once

#include "base/config.h"

#define COEFFICIENTS_ENUM(ID, name) COEFFICIENTS_##ID,
enum { COEFFICIENT_LIST(COEFFICIENTS_ENUM) COEFFICIENTS_COUNT };

typedef struct {
    const char *source;
    double low, high; /* a singular value in [.01, 1] lands in [low, high] (exact arithmetic, default iterations) */
    int count;        /* of triples; a single one is repeated optimizer.muon.iterations times (default 5) */
    double triples[COEFFICIENTS_MAX][3];
} CoefficientSet;

extern const CoefficientSet coefficient_sets[];               /* by the enum above */
const char *coefficient_set_name(const CoefficientSet *set);  /* of one in the table */
const CoefficientSet *coefficient_set_find(const char *name); /* NULL: there is none */
