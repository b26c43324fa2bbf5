/* Session: a model under measurement, set up as ./train_gpt sets it up and stepped by its train_step, without
 * measurements. The session stays where it is: the trainer's clock points to it. */
#pragma once

#include "bench/measure.h"
#include "run/trainer.h"

typedef struct {
    Trainer trainer;
    Ceiling ceiling;
    bool unbroken;            /* no clock on the phases, so that the host waits in a step as ./train_gpt does: once */
    double optimizer_seconds; /* as reported by the newest step; see StepReport */
} Session;

/* Seconds of one step. */
typedef struct {
    double forward, backward, optimizer;
    double rest; /* data, zeroing gradients, gradient norm and reading results; shadows, which step in every step */
} StepSeconds;

typedef struct {
    Samples mfu;         /* model FLOP/s over the ceiling, per repetition */
    Samples rate;        /* tokens/s */
    Samples ceiling;     /* FLOP/s */
    StepSeconds seconds; /* mean of all steps */
} StepMeasurement;

/* options: "key=value key=value ...", as on the command line of ./train_gpt, over the file `config` or, where that is
 * NULL, the defaults; but device=cpu is the default. */
Status session_config(Config *result, const char *config, const char *options);
Status session_open(Session *session, const char *options);
/* On a GPU: unbroken steps, and no ceiling. */
Status session_open_gpu(Session *session, const Config *config);
void session_close(Session *session);

double session_tokens(const Session *session); /* of a step */
double step_total(StepSeconds s);

/* One step; adds its times, but for unbroken ones. Samples of the ceiling between the phases are not in them. */
Status session_step(Session *session, StepSeconds *seconds);

/* A step to warm up, then repetitions of a quarter of a second, or of one step, for about `budget` seconds and at least
 * 2. */
Status session_measure(Session *session, double budget, StepMeasurement *result);
