/* Schedules: factors of optimizer.lr and weight_decay, and the momentum, by step. */
#pragma once

#include "base/config.h"

/* Factor in [0,1] for `step` = 1..steps. Linear warm-up to 1 at step `warmup`; then
 *      constant  1
 *      linear    falls linearly to `final` at the last step
 *      cosine    final + (1 - final) (1 + cos(pi progress)) / 2
 *      wsd       1, then linear to `final` over the last cooldown * steps steps (Hu et al. 2024, MiniCPM) */
double schedule_factor(const ScheduleConfig *schedule, int64_t steps, int64_t step);

/* mu for `step` = 1..steps: momentum_start at step 1, then linearly up to `momentum` over momentum_warmup steps; over
 * the last momentum_cooldown steps linearly back, to momentum_start at the last (modded-nanogpt: .85 to .95 over 300).
 */
double schedule_momentum(const MuonConfig *config, int64_t steps, int64_t step);
