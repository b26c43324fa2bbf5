/* QK-Clip (Kimi K2 report 2025, algorithm 1): after the optimizer step, heads whose attention logits grew past tau have
 * their query and key projections scaled down, so that the same inputs would have given a maximum of tau.
 *
 *      S = MaxLogit of the head in this step's forward;  gamma = min(1, tau / S) for S > 0, else 1
 *      MHA: W_q, b_q *= gamma^alpha,  W_k, b_k *= gamma^(1-alpha)
 *      GQA: W_q, b_q *= gamma of its own head; the shared key stays (scaling it would clip the siblings)
 *      MLA: W^UQ (q^C) *= gamma^alpha,  W^UK (k^C) *= gamma^(1-alpha),  W^QR (q^R) *= gamma; the shared k^R stays.
 *           The logit q^C·k^C + q^R·k^R takes gamma in both terms; the paper's alpha is 1/2.
 *
 * Which blocks these are, and with which power, is in the rows of the weights (model/attention_*.c). The master weights
 * are scaled, then their working copies refreshed. A NaN or infinite S clips nothing.
 */
#pragma once

#include "base/config.h"
#include "model/params.h"

typedef struct {
    int64_t layer, head;
    float gamma, max_logit;
} ClipEvent;

/* max_logit: (layers, heads) on the host. Writes what was clipped into events (room for layers * heads); returns the
 * count. */
int64_t qk_clip_apply(Backend *be, const ParamTable *params, const QkClipConfig *config, const float *max_logit,
                      ClipEvent *events);
