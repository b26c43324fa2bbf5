/* From the command line to a command. `train` is train_gpt.c, the others are in run/.
 *
 * Exit codes: 0 done; 1 a defect (CHECK); 2 bad input or environment; 3 diverged; 130 interrupted, checkpoint written.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/threads.h"
#include "run/commands.h"
#include "train_gpt.h"

enum { EXIT_BAD_INPUT = 2, EXIT_DIVERGED = 3, EXIT_INTERRUPTED = 130 };

static Status run_command(const CommandLine *line, bool *interrupted) {
    Config config;
    Status status = status_ok();
    switch (line->command) {
    case COMMAND_TRAIN:
        if (FAILED(status, command_line_config(line, &config))) return status;
        return train_run(&config, NULL, interrupted);
    case COMMAND_RESUME:
        if (FAILED(status, command_line_run_config(line, &config))) return status;
        return train_run(&config, line->path, interrupted);
    case COMMAND_DRY_RUN:
        if (FAILED(status, command_line_config(line, &config))) return status;
        return command_dry_run(&config, train_step);
    case COMMAND_SAMPLE:
        return command_sample(line);
    case COMMAND_EVAL:
        return command_eval(line);
    case COMMAND_PREPARE:
        return command_prepare(line);
    case COMMAND_INSPECT:
        return command_inspect(line);
    case COMMAND_FIT_COEFFICIENTS:
        return command_fit_coefficients(line);
    case COMMAND_HELP:
        command_help(stdout);
        break;
    case COMMAND_VERSION:
        command_version(stdout);
        break;
    case COMMAND_SCHEMA:
        config_print_schema(stdout);
        break;
    }
    return status;
}

int main(int argc, char **argv) {
    CommandLine line;
    bool interrupted = false;
    threads_shorten_spinning(argv);
    Status status = command_line_parse(&line, argc, argv);
    if (!status.code) status = run_command(&line, &interrupted);
    if (!status.code) return interrupted ? EXIT_INTERRUPTED : EXIT_SUCCESS;
    fprintf(stderr, "train_gpt: %s\n", status.message);
    return status.code == STATUS_DIVERGED ? EXIT_DIVERGED : EXIT_BAD_INPUT;
}
