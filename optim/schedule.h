/* Learning-rate schedules: a factor of optimizer.lr, by step. */
#pragma once

#include "core/config.h"

/* Factor in [0,1] for `step` = 1..steps. Linear warm-up to 1 at step `warmup`; then
 *      constant  1
 *      linear    falls linearly to `final` at the last step
 *      cosine    final + (1 - final) (1 + cos(pi progress)) / 2
 *      wsd       1, then linear to `final` over the last cooldown * steps steps (Hu et al. 2024, MiniCPM) */
double schedule_factor(const ScheduleConfig *schedule, int64_t steps, int64_t step);
