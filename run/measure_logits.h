/* Measurements of attention logits: their census, their bounds, and the ledger of QK-Clip. Private to run/. */
#pragma once

#include <cjson/cJSON.h>

#include "optim/qk_clip.h"
#include "probe/clip_ledger.h"
#include "probe/logit_bound.h"
#include "probe/logits.h"

typedef struct Trainer Trainer;

typedef struct {
    LogitProbe *census;     /* NULL: off */
    LogitBoundProbe *bound; /* NULL: off */
    ClipLedger clips;       /* no entries: off */

    int64_t first_sample;      /* of this step, in the training order */
    int32_t *tokens, *targets; /* (context): a sequence that logits are in, read again */
    int64_t tokens_of;         /* its number; -1: none */
} LogitMeasurements;

Status measure_logits_create(Trainer *t);
void measure_logits_free(Trainer *t);
int64_t measure_logits_bytes(const Trainer *t);

void measure_logits_begin(Trainer *t);
void measure_logits_forward(Trainer *t, int64_t micro_batch);
void measure_logits_read(Trainer *t);
void measure_logits_clips(Trainer *t, const ClipEvent *clips, int64_t count);
void measure_logits_report(Trainer *t, cJSON *line);
