/* Measurements of the watched blocks (probe.blocks): collisions, momentum, shadow optimizers. Private to run/.
 *
 *      measure_blocks_begin
 *      measure_blocks_backward    a micro-batch's gradients are there
 *      measure_blocks_gradient    the batch's are, the weights are still old: the shadows step
 *      measure_blocks_update      for each run, before and after its step
 *      measure_blocks_report
 */
#pragma once

#include <cjson/cJSON.h>

#include "optim/optimizer.h"
#include "probe/collision.h"
#include "probe/momentum.h"
#include "probe/shadow.h"

typedef struct Trainer Trainer;

enum { SHADOWS = 2 };

typedef struct {
    WatchedBlocks *blocks; /* NULL: nothing is watched */
    CollisionProbe collision;
    MomentumProbe momentum;
    ShadowProbe shadow;
    Optimizer shadows[SHADOWS]; /* without routes: off */
    int64_t shadow_updates;     /* that they have seen: AdamW's t */
    Arena shadow_arena;
    Tensor shadow_count; /* (1): the same number, for checkpoints */
} BlockMeasurements;

Status measure_blocks_create(Trainer *t);
void measure_blocks_free(Trainer *t);
int64_t measure_blocks_bytes(const Trainer *t);

void measure_blocks_begin(Trainer *t);
void measure_blocks_backward(Trainer *t);
void measure_blocks_gradient(Trainer *t, const StepNumbers *numbers);
void measure_blocks_update(Trainer *t, const UpdateEvent *event);
void measure_blocks_report(Trainer *t, cJSON *line);

int64_t measure_blocks_state(Trainer *t, NamedTensor *tensors); /* as measure_state */
void measure_blocks_resume(Trainer *t);
