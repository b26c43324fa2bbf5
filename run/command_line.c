/* Reading the command line. One row per command and per flag; --help prints the same rows. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/prepare.h"
#include "run/commands.h"

typedef struct {
    const char *word; /* as typed; "" for training */
    Command command;
    int least, most; /* plain arguments beside key=value */
    const char *usage, *meaning;
} CommandRow;

static const CommandRow command_rows[] = {
    {"", COMMAND_TRAIN, 0, 1, "[CONFIG.json] [key=value ...]",
     "train; without CONFIG configs/default.json, which needs no data"},
    {"--resume", COMMAND_TRAIN, 1, 1, "--resume RUN_DIR [key=value ...]", "continue from the newest intact checkpoint"},
    {"--dry-run", COMMAND_DRY_RUN, 0, 1, "--dry-run [CONFIG.json] [key=value ...]",
     "print resolved config, routing, memory and FLOPs; with device=cuda also the predicted step"},
    {"sample", COMMAND_SAMPLE, 1, 1, "sample RUN_DIR [--prompt TEXT] ...", "generate text"},
    {"eval", COMMAND_EVAL, 1, 1, "eval RUN_DIR [key=value ...]", "loss over the whole validation set"},
    {"prepare", COMMAND_PREPARE, 2, 1 << 20, "prepare OUT_DIR FILE...", "text to byte-level token shards"},
    {"inspect", COMMAND_INSPECT, 1, 1, "inspect FILE|RUN_DIR", "what a token file, checkpoint or run holds"},
    {"fit-coefficients", COMMAND_FIT_COEFFICIENTS, 0, 0, "fit-coefficients [--shapes 512x512,...] ...",
     "fit Newton-Schulz coefficients to random spectra"},
    {"--help", COMMAND_HELP, 0, 0, "--help", "this text and every configuration key"},
    {"--version", COMMAND_VERSION, 0, 0, "--version", "version and what was built in"},
    {"--schema", COMMAND_SCHEMA, 0, 0, "--schema", "JSON Schema of the configuration, for editors"},
};
enum { COMMAND_ROWS = sizeof command_rows / sizeof command_rows[0] };

typedef enum { FLAG_TEXT, FLAG_INTEGER, FLAG_REAL } FlagType;

typedef struct {
    Command command;
    const char *name;
    FlagType type;
    size_t offset; /* in CommandLine */
    double low, high;
    const char *meaning;
} FlagRow;

static const FlagRow flag_rows[] = {
    {COMMAND_SAMPLE, "--prompt", FLAG_TEXT, offsetof(CommandLine, prompt), 0, 0,
     "prompt to continue (default: a new line)"},
    {COMMAND_SAMPLE, "--length", FLAG_INTEGER, offsetof(CommandLine, length), 1, 1e6, "tokens to generate (256)"},
    {COMMAND_SAMPLE, "--temperature", FLAG_REAL, offsetof(CommandLine, temperature), 0, 100,
     "0 takes the most likely token (0.8)"},
    {COMMAND_SAMPLE, "--top-k", FLAG_INTEGER, offsetof(CommandLine, top_k), 0, 1e6,
     "choose among the k most likely tokens; 0: among all (0)"},
    {COMMAND_SAMPLE, "--seed", FLAG_INTEGER, offsetof(CommandLine, sample_seed), 0, 9e15,
     "the same seed gives the same text (1)"},
    {COMMAND_PREPARE, "--val-fraction", FLAG_REAL, offsetof(CommandLine, val_fraction), 1e-6, 0.499999,
     "share of the text kept for validation (0.1)"},
    {COMMAND_PREPARE, "--shard-tokens", FLAG_INTEGER, offsetof(CommandLine, shard_tokens), 1, 2147483647,
     "tokens of the largest shard (100000000)"},
    {COMMAND_FIT_COEFFICIENTS, "--shapes", FLAG_TEXT, offsetof(CommandLine, fit_shapes), 0, 0,
     "shapes of the random matrices (1024x1024)"},
    {COMMAND_FIT_COEFFICIENTS, "--iterations", FLAG_INTEGER, offsetof(CommandLine, fit_iterations), 1, 20,
     "Newton-Schulz iterations, all with the same coefficients (5)"},
    {COMMAND_FIT_COEFFICIENTS, "--samples", FLAG_INTEGER, offsetof(CommandLine, fit_samples), 1, 1000,
     "matrices of each shape (2)"},
    {COMMAND_FIT_COEFFICIENTS, "--steps", FLAG_INTEGER, offsetof(CommandLine, fit_steps), 1, 1e6,
     "steps of gradient descent (2000)"},
    {COMMAND_FIT_COEFFICIENTS, "--seed", FLAG_INTEGER, offsetof(CommandLine, sample_seed), 0, 9e15,
     "the same seed gives the same matrices (1)"},
};
enum { FLAG_ROWS = sizeof flag_rows / sizeof flag_rows[0] };

/* ---- parsing ---------------------------------------------------------------------------------------------------- */

static const CommandRow *find_command(const char *word) {
    for (int i = 1; i < COMMAND_ROWS; i++)
        if (strcmp(command_rows[i].word, word) == 0) return &command_rows[i];
    return NULL;
}

static const FlagRow *find_flag(Command command, const char *name) {
    for (int i = 0; i < FLAG_ROWS; i++)
        if (flag_rows[i].command == command && strcmp(flag_rows[i].name, name) == 0) return &flag_rows[i];
    return NULL;
}

static Status set_flag(CommandLine *line, const FlagRow *flag, const char *text) {
    void *target = (char *)line + flag->offset;
    if (!text) return status_error(STATUS_BAD_INPUT, "command line: %s needs a value: %s", flag->name, flag->meaning);
    if (flag->type == FLAG_TEXT) {
        memcpy(target, &text, sizeof text);
        return status_ok();
    }
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    bool whole = flag->type == FLAG_REAL || value == floor(value);
    if (end == text || *end || errno || !whole || !(value >= flag->low && value <= flag->high))
        return status_error(STATUS_BAD_INPUT, "command line: %s: expected a %snumber from %g to %g, found \"%s\"",
                            flag->name, flag->type == FLAG_INTEGER ? "whole " : "", flag->low, flag->high, text);
    if (flag->type == FLAG_INTEGER)
        *(int64_t *)target = (int64_t)value;
    else
        *(double *)target = value;
    return status_ok();
}

/* key=value: a dotted lower-case key before the first '='. Commands that take files do not take keys. */
static bool is_override(Command command, const char *word) {
    if (command == COMMAND_PREPARE || command == COMMAND_INSPECT || command == COMMAND_FIT_COEFFICIENTS) return false;
    size_t key = strspn(word, "abcdefghijklmnopqrstuvwxyz0123456789_.*");
    return key > 0 && word[key] == '=';
}

static Status unknown_argument(const char *word) {
    if (find_command(word))
        return status_error(STATUS_BAD_INPUT, "command line: %s must be the first argument; see ./train_gpt --help",
                            word);
    return status_error(STATUS_BAD_INPUT, "command line: unknown option %s; ./train_gpt --help lists all", word);
}

static Status place_arguments(CommandLine *line, const CommandRow *row) {
    if (line->file_count < row->least || line->file_count > row->most)
        return status_error(STATUS_BAD_INPUT, "command line: usage: ./train_gpt %s; found %d argument%s", row->usage,
                            line->file_count, line->file_count == 1 ? "" : "s");
    const char *first = line->file_count > 0 ? line->files[0] : NULL;
    if (strcmp(row->word, "--resume") == 0)
        line->resume_dir = first;
    else if (line->command == COMMAND_TRAIN || line->command == COMMAND_DRY_RUN)
        line->config_path = first;
    else if (line->command == COMMAND_SAMPLE || line->command == COMMAND_EVAL)
        line->run_dir = first;
    return status_ok();
}

Status command_line_parse(CommandLine *line, int argc, char **argv) {
    const CommandRow *row = argc > 1 ? find_command(argv[1]) : NULL;
    const PrepareOptions prepare = prepare_defaults();
    int next = row ? 2 : 1;
    if (!row) row = &command_rows[0];
    *line = (CommandLine){.command = row->command,
                          .overrides = argv,
                          .prompt = "\n",
                          .length = 256,
                          .temperature = 0.8,
                          .sample_seed = 1,
                          .val_fraction = prepare.validation_fraction,
                          .shard_tokens = prepare.shard_tokens,
                          .fit_shapes = "1024x1024",
                          .fit_iterations = 5,
                          .fit_samples = 2,
                          .fit_steps = 2000};

    /* Overrides gather at the front of argv, plain arguments behind them: both lists point into argv. */
    char **files = calloc((size_t)argc, sizeof *files);
    if (!files) return status_error(STATUS_OUT_OF_MEMORY, "no memory for %d arguments", argc);
    for (; next < argc; next++) {
        char *word = argv[next];
        const FlagRow *flag = find_flag(line->command, word);
        if (flag) {
            Status status = set_flag(line, flag, next + 1 < argc ? argv[next + 1] : NULL);
            if (status.code) return free(files), status;
            next++;
        } else if (word[0] == '-') {
            return free(files), unknown_argument(word);
        } else if (is_override(line->command, word)) {
            line->overrides[line->override_count++] = word;
        } else {
            files[line->file_count++] = word;
        }
    }
    line->files = argv + line->override_count;
    memcpy(line->files, files, (size_t)line->file_count * sizeof *files);
    free(files);
    return place_arguments(line, row);
}

Status command_line_load(const CommandLine *line, const char *path, Config *config) {
    Status status = config_load(config, path, line->override_count, line->overrides);
    if (!status.code) fputs(config->note, stderr);
    return status;
}

Status command_line_config(const CommandLine *line, Config *config) {
    char path[PATH_SIZE];
    if (line->resume_dir) {
        Status status = path_join(path, line->resume_dir, "config.json");
        return status.code ? status : command_line_load(line, path, config);
    }
    const char *standard = file_exists("configs/default.json") ? "configs/default.json" : NULL;
    return command_line_load(line, line->config_path ? line->config_path : standard, config);
}

/* ---- help ------------------------------------------------------------------------------------------------------- */

void command_help(FILE *out) {
    fprintf(out,
            "train_gpt trains a small GPT with Muon and AdamW, and measures its attention logits and spectra.\n\n");
    for (int i = 0; i < COMMAND_ROWS; i++) {
        fprintf(out, "  ./train_gpt %-40s %s\n", command_rows[i].usage, command_rows[i].meaning);
        for (int f = 0; f < FLAG_ROWS; f++)
            if (flag_rows[f].command == command_rows[i].command)
                fprintf(out, "      %-48s %s\n", flag_rows[f].name, flag_rows[f].meaning);
    }
    fprintf(out, "\nConfiguration keys (JSON, or key=value on the command line):\n\n");
    config_print_help(out);
}
