/* Reading the command line. One row per command and per flag; --help prints the same rows. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "run/commands.h"

typedef struct {
    const char *word; /* as typed; "" for training */
    Command command;
    bool takes_keys;
    int least, most; /* plain arguments; where keys are taken, at most one */
    const char *usage, *meaning;
} CommandRow;

static const CommandRow command_rows[] = {
    {"", COMMAND_TRAIN, true, 0, 1, "[CONFIG.json] [key=value ...]",
     "train; without CONFIG configs/default.json, which needs no data"},
    {"--resume", COMMAND_RESUME, true, 1, 1, "--resume RUN_DIR [key=value ...]",
     "continue from the newest intact checkpoint"},
    {"--dry-run", COMMAND_DRY_RUN, true, 0, 1, "--dry-run [CONFIG.json] [key=value ...]",
     "print resolved config, routing, memory and FLOPs; with device=cuda also the predicted step"},
    {"sample", COMMAND_SAMPLE, true, 1, 1, "sample RUN_DIR [--prompt TEXT] ...", "generate text"},
    {"eval", COMMAND_EVAL, true, 1, 1, "eval RUN_DIR [key=value ...]", "loss over the whole validation set"},
    {"prepare", COMMAND_PREPARE, false, 2, 1 << 20, "prepare OUT_DIR FILE...", "text to byte-level token shards"},
    {"inspect", COMMAND_INSPECT, false, 1, 1, "inspect FILE|RUN_DIR", "what a token file, checkpoint or run holds"},
    {"fit-coefficients", COMMAND_FIT_COEFFICIENTS, false, 0, 0, "fit-coefficients [--shapes 512x512,...] ...",
     "fit Newton-Schulz coefficients to random spectra"},
    {"--help", COMMAND_HELP, true, 0, 0, "--help", "this text and every configuration key"},
    {"--version", COMMAND_VERSION, true, 0, 0, "--version", "version and what was built in"},
    {"--schema", COMMAND_SCHEMA, true, 0, 0, "--schema", "JSON Schema of the configuration, for editors"},
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

#define TEXT(member)  FLAG_TEXT, offsetof(CommandLine, member)
#define WHOLE(member) FLAG_INTEGER, offsetof(CommandLine, member)
#define REAL(member)  FLAG_REAL, offsetof(CommandLine, member)

static const FlagRow flag_rows[] = {
    {COMMAND_SAMPLE, "--prompt", TEXT(prompt), 0, 0, "prompt to continue (default: a new line)"},
    {COMMAND_SAMPLE, "--length", WHOLE(sample.length), 1, 1e6, "tokens to generate (256)"},
    {COMMAND_SAMPLE, "--temperature", REAL(sample.temperature), 0, 100, "0 takes the most likely token (0.8)"},
    {COMMAND_SAMPLE, "--top-k", WHOLE(sample.top_k), 0, 1e6, "choose among the k most likely tokens; 0: among all (0)"},
    {COMMAND_SAMPLE, "--seed", WHOLE(sample.seed), 0, 9e15, "the same seed gives the same text (1)"},
    {COMMAND_PREPARE, "--val-fraction", REAL(prepare.validation_fraction), 1e-6, 0.499999,
     "share of the text kept for validation (0.1)"},
    {COMMAND_PREPARE, "--shard-tokens", WHOLE(prepare.shard_tokens), 1, 2147483647,
     "tokens of the largest shard (100000000)"},
    {COMMAND_FIT_COEFFICIENTS, "--shapes", TEXT(fit_shapes), 0, 0, "shapes of the random matrices (1024x1024)"},
    {COMMAND_FIT_COEFFICIENTS, "--iterations", WHOLE(fit.iterations), 1, 20,
     "Newton-Schulz iterations, all with the same coefficients (5)"},
    {COMMAND_FIT_COEFFICIENTS, "--samples", WHOLE(fit.samples), 1, 1000, "matrices of each shape (2)"},
    {COMMAND_FIT_COEFFICIENTS, "--steps", WHOLE(fit.steps), 1, 1e6, "steps of gradient descent (2000)"},
    {COMMAND_FIT_COEFFICIENTS, "--seed", WHOLE(fit.seed), 0, 9e15, "the same seed gives the same matrices (1)"},
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
    if (!text) return BAD_INPUT("command line: %s needs a value: %s", flag->name, flag->meaning);
    if (flag->type == FLAG_TEXT) {
        memcpy(target, &text, sizeof text);
        return status_ok();
    }
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    bool whole = flag->type == FLAG_REAL || value == floor(value);
    if (end == text || *end || errno || !whole || !(value >= flag->low && value <= flag->high))
        return BAD_INPUT("command line: %s: expected a %snumber from %g to %g, found \"%s\"", flag->name,
                         flag->type == FLAG_INTEGER ? "whole " : "", flag->low, flag->high, text);
    if (flag->type == FLAG_INTEGER)
        *(int64_t *)target = (int64_t)value;
    else
        *(double *)target = value;
    return status_ok();
}

/* key=value: a dotted lower-case key before the first '='. */
static bool is_override(const char *word) {
    size_t key = strspn(word, "abcdefghijklmnopqrstuvwxyz0123456789_.*");
    return key > 0 && word[key] == '=';
}

static Status unknown_argument(const char *word) {
    if (find_command(word))
        return BAD_INPUT("command line: %s must be the first argument; see ./train_gpt --help", word);
    return BAD_INPUT("command line: unknown option %s; ./train_gpt --help lists all", word);
}

Status command_line_parse(CommandLine *line, int argc, char **argv) {
    const CommandRow *row = argc > 1 ? find_command(argv[1]) : NULL;
    int next = row ? 2 : 1;
    if (!row) row = &command_rows[0];
    *line = (CommandLine){.command = row->command,
                          .overrides = argv,
                          .files = argv,
                          .prompt = "\n",
                          .sample = {.length = 256, .temperature = 0.8, .seed = 1},
                          .prepare = prepare_defaults(),
                          .fit_shapes = "1024x1024",
                          .fit = {.iterations = 5, .samples = 2, .steps = 2000, .seed = 1}};
    for (; next < argc; next++) {
        char *word = argv[next];
        const FlagRow *flag = find_flag(line->command, word);
        if (flag) {
            Status status = set_flag(line, flag, ++next < argc ? argv[next] : NULL);
            if (status.code) return status;
        } else if (word[0] == '-') {
            return unknown_argument(word);
        } else if (row->takes_keys && is_override(word)) {
            line->overrides[line->override_count++] = word;
        } else {
            if (line->file_count++ == 0) line->path = word;
            if (!row->takes_keys) line->files[line->file_count - 1] = word;
        }
    }
    if (line->file_count >= row->least && line->file_count <= row->most) return status_ok();
    return BAD_INPUT("command line: usage: ./train_gpt %s; found %d argument%s", row->usage, line->file_count,
                     line->file_count == 1 ? "" : "s");
}

static Status load_config(const CommandLine *line, const char *path, Config *config) {
    Status status = config_load(config, path, line->override_count, line->overrides);
    if (!status.code) fputs(config->note, stderr);
    return status;
}

Status command_line_config(const CommandLine *line, Config *config) {
    static const char standard[] = "configs/default.json";
    return load_config(line, line->path || !file_exists(standard) ? line->path : standard, config);
}

Status command_line_run_config(const CommandLine *line, Config *config) {
    char path[PATH_SIZE];
    Status status = path_join(path, line->path, "config.json");
    return status.code ? status : load_config(line, path, config);
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
