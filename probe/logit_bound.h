/* How large attention logits could be: norms of inputs and weights, and the bound that they give (bound.c measures it).
 *
 * A logit is scale q·k with q = W_q x_i + b_q, k = W_k x_j + b_k, so by Cauchy-Schwarz
 *
 *      |s_ij| <= scale (‖x_q‖ ‖W_q‖₂ + ‖b_q‖) (‖x_k‖ ‖W_k‖₂ + ‖b_k‖)           max‖x‖ over all tokens
 *
 * Rotary positions turn q and k and keep their lengths: the bound holds with them, too. Growth of logits is growth of
 * one of its factors (Wortsman et al. 2023; Kimi K2 report 2025); tightness = max |s_ij| / bound says how well tokens
 * and singular vectors line up. Without rotary positions and biases a sharper bound holds, which knows how W_q and W_k
 * lie to each other:
 *
 *      |s_ij| <= scale ‖x_q‖ ‖x_k‖ sigma_max(W_qᵀ W_k)
 *
 * All in fp64. W_qᵀ W_k is (C, C), but its nonzero singular values are the roots of the eigenvalues of
 * (W_q W_qᵀ) (W_k W_kᵀ), which is (D, D).
 */
#pragma once

#include <stdint.h>

/* One product within a logit. Where q and k are put together of several (a content part and a rotary one, which have
 * inputs and weights of their own), q·k is the sum of theirs. */
typedef struct {
    double x_q, x_k; /* largest norm of an input of W_q, of W_k */
    double w_q, w_k; /* spectral norms */
    double b_q, b_k; /* norms of the biases; 0: none */
    double w_qk;     /* sigma_max(W_qᵀ W_k) */
} LogitPart;

/* The bounds of a logit that is the sum of these parts, times scale. */
double logit_bound(const LogitPart *parts, int count, double scale);
double logit_bound_qk(const LogitPart *parts, int count, double scale);

/* w_q, w_k and w_qk of a part from row-major W_q (size, q_inputs) and W_k (size, k_inputs): NaN if one is not finite.
 * workspace: logit_part_workspace_size(size) doubles. The BLAS must not start threads where several call this. */
int64_t logit_part_workspace_size(int64_t size);
void logit_part_measure(LogitPart *part, const float *w_q, int64_t q_inputs, const float *w_k, int64_t k_inputs,
                        int64_t size, double *workspace);
