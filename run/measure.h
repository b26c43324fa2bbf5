/* Measurements: which of them a step owes, the probes that take them, and their fields of metrics.jsonl.
 *
 * The step loop (train_gpt.c) calls the functions below in this order; each does nothing for what is not due:
 *
 *      measure_begin                       before the first forward pass
 *      measure_forward, measure_backward   after each of a micro-batch: its activations, its gradients so far
 *      measure_read                        when the host has waited for the passes: results come at once
 *      measure_update                      what the optimizer calls for each run of hidden matrices
 *      measure_clips                       what QK-Clip has done
 *      measure_end                         after optimizer and QK-Clip
 *      measure_report, .._report_spectra   the fields
 *
 * A measurement reads and never writes: a run's weights have the same bits with all of them and with none.
 */
#pragma once

#include <cjson/cJSON.h>

#include "optim/optimizer.h"
#include "optim/qk_clip.h"
#include "probe/clip_ledger.h"
#include "probe/logit_bound.h"
#include "probe/logits.h"
#include "probe/spectrum.h"

typedef struct Trainer Trainer;

typedef enum { MEASURE_SPECTRUM, MEASURE_LOGITS, MEASURE_CLIPS, MEASURE_BOUND, MEASURE_COUNT } Measurement;

typedef struct {
    bool due[MEASURE_COUNT]; /* in this step */
    double seconds;          /* of the host, in this step */
    SpectrumProbe *spectrum; /* NULL: off */
    LogitProbe *logits;      /* NULL: off */
    LogitBoundProbe *bound;  /* NULL: off */
    ClipLedger clips;        /* no entries: off */

    int64_t first_sample;      /* of this step, in the training order */
    int32_t *tokens, *targets; /* (context): a sequence that logits are in, read again */
    int64_t tokens_of;         /* its number; -1: none */
} Measurements;

/* Memory and tables of the probes that the configuration asks for. After model and optimizer have been planned. */
Status measure_create(Trainer *t);
void measure_free(Trainer *t);
int64_t measure_bytes(const Trainer *t); /* for the plan */

void measure_begin(Trainer *t);
void measure_forward(Trainer *t, int64_t micro_batch); /* counts from 0 */
void measure_backward(Trainer *t, int64_t micro_batch);
void measure_read(Trainer *t);
void measure_update(void *trainer, const UpdateEvent *event);
void measure_clips(Trainer *t, const ClipEvent *clips, int64_t count); /* of every step, due or not */
void measure_end(Trainer *t);
void measure_cancel(Trainer *t); /* the step was refused: there is no update to measure */

/* A line of an earlier part of this run, which is resumed. A MetricsReader. */
void measure_read_line(void *trainer, const cJSON *line);

bool measure_is_due(const Trainer *t);       /* anything in this step */
bool measure_sees_updates(const Trainer *t); /* so that the optimizer is to call measure_update */

/* What is known now. True: spectra are still being computed while the device goes on, and the line is to be kept for
 * measure_report_spectra. */
bool measure_report(Trainer *t, cJSON *line);
/* Waits for the spectra, adds them and forgets them. */
void measure_report_spectra(Trainer *t, cJSON *line);
