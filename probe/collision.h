/* Collisions of an update with the top singular triples of the weights; see collision.c for the probe. */
#pragma once

#include "probe/triples.h"

/* c_i = u_iᵀ U v_i of an update U against the triples; returns mean c_i² / (|U|_F² / (n m)), which is 1 for a U without
 * any direction of its own, and NaN for a zero U. */
double collision_with(const Triples *weights, const float *update, double *c);
