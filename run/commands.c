/* The subcommands beside training; see commands.h. */
#include "run/commands.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "data/inspect.h"
#include "data/prepare.h"
#include "model/checkpoint.h"
#include "model/safetensors.h"
#include "run/report.h"
#include "run/roofline.h"
#include "run/sample.h"

#define TRAIN_GPT_VERSION "0.1.0"

void command_version(FILE *out) {
    fprintf(out, "train_gpt %s (%s, matrix products by %s)\n", TRAIN_GPT_VERSION, __VERSION__,
            HAVE_ONEDNN ? "oneDNN" : "CBLAS");
}

/* On cuda the plan is of the GPU that dry_run.gpu names, whether or not one is here, and comes with a prediction. */
Status command_dry_run(const Config *config) {
    const bool predicts = strcmp(config->device, "cuda") == 0;
    Trainer t;
    Roofline roofline = {0};
    Status status = predicts ? trainer_plan_for_gpu(&t, config, &gpus[config->dry_run.gpu]) : trainer_plan(&t, config);
    if (status.code) goto done;
    if (!predicts && FAILED(status, measure_create(&t))) goto done; /* for its part of the memory */
    if (predicts && FAILED(status, roofline_predict(&t, &roofline))) goto done;
    char *json = config_to_json(config);
    printf("%s\n\n", json ? json : "");
    free(json);
    report_print_header(&t);
    report_print_plan(&t, stdout);
    if (predicts) roofline_print(&t, &roofline, stdout);
done:
    trainer_free(&t);
    return status;
}

/* ---- trained models --------------------------------------------------------------------------------------------- */

static Status load_run_config(const CommandLine *line, Config *config) {
    char path[PATH_SIZE];
    Status status = path_join(path, line->run_dir, "model.safetensors");
    if (!status.code && file_exists(path))
        return status_error(STATUS_BAD_INPUT, "%s is a checkpoint; give the run's folder, two levels up",
                            line->run_dir);
    status = path_join(path, line->run_dir, "config.json");
    return status.code ? status : command_line_load(line, path, config);
}

/* The weights of the run's newest intact checkpoint. */
static Status load_weights(const char *run_dir, Gpt *gpt, CheckpointState *state) {
    char dir[PATH_SIZE];
    Status status = checkpoint_find_newest_intact(run_dir, dir, stderr);
    return status.code ? status : checkpoint_load(dir, gpt, state, NULL, 0);
}

/* Tokens as text: by the tokenizer.bin beside the training shards; NULL (numbers) where there is none. */
static Status find_tokenizer(const Config *config, Tokenizer *storage, Tokenizer **tokenizer) {
    char path[PATH_SIZE];
    const char *slash = strrchr(config->data.train, '/');
    int folder = slash ? (int)(slash - config->data.train) + 1 : 0;
    snprintf(path, sizeof path, "%.*stokenizer.bin", folder, config->data.train);
    *tokenizer = NULL;
    if (!file_exists(path)) return status_ok();
    Status status = tokenizer_read(storage, path);
    if (!status.code) *tokenizer = storage;
    return status;
}

Status command_eval(const CommandLine *line) {
    Config config;
    CheckpointState state = {0};
    Trainer t = {0};
    Tokenizer storage = {0}, *tokenizer = NULL;
    double loss = 0;
    Status status;

    if (FAILED(status, load_run_config(line, &config))) return status;
    if (FAILED(status, find_tokenizer(&config, &storage, &tokenizer))) goto done;
    if (FAILED(status, trainer_plan_evaluation(&t, &config))) goto done;
    if (FAILED(status, trainer_allocate_evaluation(&t))) goto done;
    if (FAILED(status, load_weights(line->run_dir, &t.gpt, &state))) goto done;
    if (t.device_note[0]) fprintf(stderr, "%s\n", t.device_note);
    if (FAILED(status, trainer_evaluate(&t, 0, &loss))) goto done;

    printf("%s, step %lld, on %s\n", line->run_dir, (long long)state.step, dataset_description(t.val_data));
    const char *unit = tokenizer && tokenizer_is_byte_level(tokenizer) ? "byte" : "token";
    printf("val_loss %.4f nats a %s, %.4f bits a %s, perplexity %.3f\n", loss, unit, loss / log(2), unit, exp(loss));
    if (!isnan(dataset_entropy_floor(t.val_data)))
        printf("the language's entropy is %.4f nats a token: %.4f above the floor\n", dataset_entropy_floor(t.val_data),
               loss - dataset_entropy_floor(t.val_data));
done:
    tokenizer_free(&storage);
    trainer_free(&t);
    return status;
}

/* The prompt as tokens: bytes for a byte-level tokenizer; otherwise whitespace-separated token numbers. */
static Status encode_prompt(const char *prompt, const Tokenizer *tokenizer, const Config *config, int32_t **tokens,
                            int64_t *count) {
    const int64_t size = (int64_t)strlen(prompt), vocab = config->model.vocab;
    *tokens = calloc((size_t)size + 1, sizeof **tokens);
    *count = 0;
    if (!*tokens) return status_error(STATUS_OUT_OF_MEMORY, "no memory for a prompt of %lld bytes", (long long)size);
    if (tokenizer && tokenizer_is_byte_level(tokenizer)) {
        tokenizer_encode_bytes(prompt, size, *tokens);
        *count = size;
    } else {
        const char *next = prompt + strspn(prompt, " \t\n,");
        while (*next) {
            char *end;
            long long token = strtoll(next, &end, 10);
            if (end == next || token < 0 || token >= vocab)
                return status_error(
                    STATUS_BAD_INPUT,
                    "--prompt: expected a token number in [0, %lld), found \"%.20s\"; text needs a byte-level "
                    "tokenizer.bin, and there is none beside data.train=%s",
                    (long long)vocab, next, config->data.train);
            (*tokens)[(*count)++] = (int32_t)token;
            next = end + strspn(end, " \t\n,");
        }
    }
    if (*count == 0) *count = 1; /* token 0 starts a text from nothing */
    for (int64_t i = 0; i < *count; i++)
        if ((*tokens)[i] >= vocab)
            return status_error(STATUS_BAD_INPUT,
                                "--prompt: byte %lld is outside the model's vocabulary of %lld tokens", (long long)i,
                                (long long)vocab);
    return status_ok();
}

Status command_sample(const CommandLine *line) {
    Config config;
    Trainer t = {0}; /* its backend and model only */
    CheckpointState state = {0};
    Tokenizer storage = {0}, *tokenizer = NULL;
    int32_t *prompt = NULL;
    int64_t prompt_length = 0;
    Status status;

    if (FAILED(status, load_run_config(line, &config))) return status;
    if (FAILED(status, find_tokenizer(&config, &storage, &tokenizer))) goto done;
    if (FAILED(status, encode_prompt(line->prompt, tokenizer, &config, &prompt, &prompt_length))) goto done;
    if (FAILED(status, trainer_plan_model(&t, &config, 1))) goto done;
    if (FAILED(status, trainer_allocate_evaluation(&t))) goto done;
    if (FAILED(status, load_weights(line->run_dir, &t.gpt, &state))) goto done;
    if (t.device_note[0]) fprintf(stderr, "%s\n", t.device_note);
    status = sample_text(
        &t.gpt, tokenizer, prompt, prompt_length,
        (SampleOptions){
            .length = line->length, .temperature = line->temperature, .top_k = line->top_k, .seed = line->sample_seed},
        stdout);
done:
    free(prompt);
    tokenizer_free(&storage);
    trainer_free(&t);
    return status;
}

/* ---- data and files --------------------------------------------------------------------------------------------- */

Status command_prepare(const CommandLine *line) {
    PrepareOptions options = {.validation_fraction = line->val_fraction, .shard_tokens = line->shard_tokens};
    return prepare_corpus(line->files[0], line->file_count - 1, line->files + 1, options, stdout);
}

static const char *plural(int64_t count) {
    return count == 1 ? "" : "s";
}

static Status inspect_safetensors(const char *path) {
    SafetensorsFile file;
    Status status = safetensors_open(&file, path);
    if (status.code) return status;
    int64_t elements = 0;
    char text[128];
    for (int64_t i = 0; i < file.count; i++) {
        printf("%-64s %s\n", file.entries[i].name, safetensors_describe(&file.entries[i], text, sizeof text));
        elements += safetensors_numel(&file.entries[i]);
    }
    printf("%s: %lld tensor%s, %lld elements, %lld bytes\n", path, (long long)file.count, plural(file.count),
           (long long)elements, (long long)file.size);
    safetensors_close(&file);
    return status;
}

/* A line for each checkpoint: where it stands, or what is broken. */
static Status print_checkpoints(const char *run_dir) {
    char pattern[PATH_SIZE];
    FileList list;
    Status status = path_join(pattern, run_dir, "checkpoints/step_*[0-9]");
    if (status.code) return status;
    if (file_glob(pattern, &list).code) {
        printf("no checkpoint yet\n");
        return status;
    }
    for (int64_t i = 0; i < list.count; i++) {
        CheckpointState state;
        Status checkpoint = checkpoint_verify(list.paths[i], &state);
        if (checkpoint.code)
            printf("%s: broken: %s\n", list.paths[i], checkpoint.message);
        else
            printf("%s: intact, %lld tokens seen, on %s in %s\n", list.paths[i], (long long)state.tokens, state.backend,
                   state.precision);
    }
    file_list_free(&list);
    return status;
}

static Status inspect_run(const CommandLine *line) {
    CommandLine run = *line;
    run.run_dir = line->files[0];
    Config config;
    Status status = load_run_config(&run, &config);
    if (status.code) return status;
    printf("%s: %s, %lld layer%s, width %lld, %s on the matrices, lr %g, %lld step%s of %lld x %lld tokens\n",
           run.run_dir, config.name, (long long)config.model.layers, plural(config.model.layers),
           (long long)config.model.width, optimizer_name(config.optimizer.matrices), config.optimizer.lr,
           (long long)config.train.steps, plural(config.train.steps), (long long)config.train.batch,
           (long long)config.model.context);
    return print_checkpoints(run.run_dir);
}

Status command_inspect(const CommandLine *line) {
    const char *path = line->files[0];
    char model[PATH_SIZE];
    struct stat info;
    if (stat(path, &info) != 0) return status_error(STATUS_BAD_INPUT, "%s: no such file or folder", path);
    if (S_ISDIR(info.st_mode)) {
        Status status = path_join(model, path, "model.safetensors");
        if (status.code) return status;
        return file_exists(model) ? inspect_safetensors(model) : inspect_run(line);
    }
    const char *dot = strrchr(path, '.');
    return dot && strcmp(dot, ".safetensors") == 0 ? inspect_safetensors(path) : inspect_token_file(path, stdout);
}
