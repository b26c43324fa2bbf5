/* Factors and momentum by step; see schedule.h. */
#include "optim/schedule.h"

#include <math.h>

#include "base/status.h"

/* 0 at `start`, 1 at `end` and beyond. */
static double progress_between(double start, double end, int64_t step) {
    return end > start ? fmin(1, fmax(0, ((double)step - start) / (end - start))) : 1;
}

double schedule_factor(const ScheduleConfig *schedule, int64_t steps, int64_t step) {
    CHECK(step >= 1, "step %lld; steps count from 1", (long long)step);
    const double pi = 3.14159265358979323846;
    double warmup = (double)schedule->warmup, last = (double)steps, final = schedule->final;
    if (step <= schedule->warmup) return (double)step / warmup;

    double progress = progress_between(warmup, last, step);
    double cooldown = schedule->cooldown > 0 ? progress_between(last * (1 - schedule->cooldown), last, step) : 0;
    switch (schedule->kind) {
    case SCHEDULE_LINEAR:
        return 1 - (1 - final) * progress;
    case SCHEDULE_COSINE:
        return final + (1 - final) * (1 + cos(pi * progress)) / 2;
    case SCHEDULE_WSD:
        return 1 - (1 - final) * cooldown;
    case SCHEDULE_CONSTANT:
        break;
    }
    return 1;
}

double schedule_momentum(const MuonConfig *config, int64_t steps, int64_t step) {
    const double warmup = (double)config->momentum_warmup, cooldown = (double)config->momentum_cooldown;
    double rise = progress_between(1, 1 + warmup, step);
    double fall = cooldown > 0 ? progress_between((double)steps - cooldown, (double)steps, step) : 0;
    if (rise == 1 && fall == 0) return config->momentum; /* exactly */
    return config->momentum_start + (config->momentum - config->momentum_start) * fmin(rise, 1 - fall);
}
