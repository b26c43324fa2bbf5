/* Measurements: which of them a step owes, the probes that take them, and their fields of metrics.jsonl.
 *
 * The step loop (train_gpt.c) calls the functions below in this order; each does nothing for what is not due:
 *
 *      measure_begin                       before the first forward pass
 *      measure_forward, measure_backward   after each of a micro-batch: its activations, its gradients so far
 *      measure_read                        when the host has waited for the passes: results come at once
 *      measure_gradient                    the step will be made: before it, with the batch's gradients
 *      measure_update                      what the optimizer calls for each run of hidden matrices
 *      measure_clips                       what QK-Clip has done
 *      measure_end                         after optimizer and QK-Clip
 *      measure_report, .._report_spectra   the fields
 *
 * A measurement reads and never writes: a run's weights have the same bits with all of them and with none. The parts:
 * measure_spectra.h, measure_blocks.h, measure_logits.h.
 */
#pragma once

#include <cjson/cJSON.h>

#include "optim/optimizer.h"
#include "probe/spectrum.h"
#include "run/measure_blocks.h"
#include "run/measure_logits.h"

typedef struct Trainer Trainer;

typedef enum {
    MEASURE_SPECTRUM,
    MEASURE_COLLISION,
    MEASURE_MOMENTUM,
    MEASURE_SHADOW,
    MEASURE_LOGITS,
    MEASURE_CLIPS,
    MEASURE_BOUND,
    MEASURE_COUNT
} Measurement;

typedef struct {
    bool due[MEASURE_COUNT]; /* in this step */
    double seconds;          /* of the host, in this step */
    double update_seconds;   /* those between trainer_start_optimizer and trainer_stop_optimizer */
    SpectrumProbe *spectrum; /* NULL: off */
    BlockMeasurements blocks;
    LogitMeasurements logits;
} Measurements;

/* Memory and tables of the probes that the configuration asks for: they are sized and allocated in one. After model and
 * optimizer have been planned; trainer_allocate does it. */
Status measure_create(Trainer *t);
void measure_free(Trainer *t);
int64_t measure_bytes(const Trainer *t); /* for the plan */

void measure_begin(Trainer *t);
void measure_forward(Trainer *t, int64_t micro_batch); /* counts from 0 */
void measure_backward(Trainer *t, int64_t micro_batch);
void measure_read(Trainer *t);
void measure_gradient(Trainer *t, const StepNumbers *numbers);
void measure_update(void *trainer, const UpdateEvent *event);
void measure_clips(Trainer *t, const ClipEvent *clips, int64_t count); /* of every step, due or not */
void measure_end(Trainer *t);
void measure_cancel(Trainer *t); /* the step was refused: there is no update to measure */

int64_t measure_interval(const Trainer *t, Measurement which); /* steps between two; 0: never */
/* As measure_begin, but this alone is due, or, for MEASURE_COUNT, nothing. */
void measure_begin_only(Trainer *t, Measurement which);
bool measure_is_due(const Trainer *t);       /* anything in this step */
bool measure_sees_updates(const Trainer *t); /* so that the optimizer is to call measure_update */

/* State that measurements keep from step to step, for checkpoints: writes its tensors, unless that is NULL, and returns
 * how many there are. Their names begin with "shadow.". measure_resume: a checkpoint's have been loaded. */
int64_t measure_state(Trainer *t, NamedTensor *tensors);
void measure_resume(Trainer *t);
/* A line of an earlier part of this run, which is resumed. A MetricsReader. */
void measure_read_line(void *trainer, const cJSON *line);

/* A new record of a list field, with the layer and role of its block. For the parts. */
cJSON *measure_add_block(cJSON *list, const Trainer *t, int kind, int64_t layer);

/* What is known now. True: spectra are still being computed while the device goes on, and the line is to be kept for
 * measure_report_spectra. */
bool measure_report(Trainer *t, cJSON *line);
/* Waits for the spectra, adds them and forgets them. */
void measure_report_spectra(Trainer *t, cJSON *line);
