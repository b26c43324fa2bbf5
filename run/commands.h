/* The command line and every subcommand but training (which is train_gpt.c itself). */
#pragma once

#include <stdio.h>

#include "base/config.h"
#include "data/prepare.h"
#include "optim/fit_coefficients.h"
#include "run/sample.h"
#include "run/trainer.h"

typedef enum {
    COMMAND_TRAIN,
    COMMAND_RESUME,
    COMMAND_DRY_RUN,
    COMMAND_SAMPLE,
    COMMAND_EVAL,
    COMMAND_PREPARE,
    COMMAND_INSPECT,
    COMMAND_FIT_COEFFICIENTS,
    COMMAND_HELP,
    COMMAND_VERSION,
    COMMAND_SCHEMA,
} Command;

typedef struct {
    Command command;
    const char *path;   /* first plain argument: a configuration, run or file; NULL: none */
    int override_count; /* key=value arguments */
    char **overrides;
    int file_count; /* prepare, inspect: all plain arguments */
    char **files;
    const char *prompt; /* sample */
    SampleOptions sample;
    PrepareOptions prepare;
    const char *fit_shapes; /* fit-coefficients: "512x512,512x2048" */
    FitRequest fit;         /* but for its shapes */
} CommandLine;

/* Points into argv, which it reorders. STATUS_BAD_INPUT names the argument. */
Status command_line_parse(CommandLine *line, int argc, char **argv);
/* The configuration in the file line->path, or in the run line->path, with the key=value arguments. Without a path:
 * configs/default.json, or the built-in defaults if there is no such file. Says on stderr which keys were ignored. */
Status command_line_config(const CommandLine *line, Config *config);
Status command_line_run_config(const CommandLine *line, Config *config);

Status command_dry_run(const Config *config, TrainStep *step); /* which a prediction takes */
Status command_sample(const CommandLine *line);
Status command_eval(const CommandLine *line);
Status command_prepare(const CommandLine *line);
Status command_inspect(const CommandLine *line);
Status command_fit_coefficients(const CommandLine *line);
void command_help(FILE *out);
void command_version(FILE *out);
