/* The subcommands beside training; see commands.h. */
#include "run/commands.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/checkpoint.h"
#include "run/report.h"
#include "run/roofline.h"

#define TRAIN_GPT_VERSION "0.1.0"

void command_version(FILE *out) {
    fprintf(out, "train_gpt %s (%s, matrix products by %s)\n", TRAIN_GPT_VERSION, __VERSION__,
            HAVE_ONEDNN ? "oneDNN" : "CBLAS");
}

/* On cuda the plan is of the GPU that dry_run.gpu names, whether or not one is here, and comes with a prediction. */
Status command_dry_run(const Config *config, TrainStep *step) {
    const bool predicts = strcmp(config->device, "cuda") == 0;
    Trainer t;
    Roofline roofline = {0};
    Status status = predicts ? trainer_plan_for_gpu(&t, config, &gpus[config->dry_run.gpu]) : trainer_plan(&t, config);
    if (status.code) goto done;
    if (predicts && FAILED(status, roofline_predict(&t, step, &roofline))) goto done;
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

/* What eval and sample start with: the run's configuration, and the tokenizer beside its training shards. */
static Status load_run(const CommandLine *line, Config *config, Tokenizer *tokenizer) {
    char model[PATH_SIZE];
    Status status = path_join(model, line->path, "model.safetensors");
    if (!status.code && file_exists(model))
        return BAD_INPUT("%s is a checkpoint; give the run's folder, two levels up", line->path);
    if (status.code || FAILED(status, command_line_run_config(line, config))) return status;
    return tokenizer_read_beside(tokenizer, config->data.train);
}

/* Memory for what was planned, and the weights of the run's newest intact checkpoint. */
static Status load_weights(Trainer *t, const char *run_dir, CheckpointState *state) {
    char dir[PATH_SIZE];
    Status status;
    if (FAILED(status, trainer_allocate_evaluation(t))) return status;
    if (FAILED(status, checkpoint_find_newest_intact(run_dir, dir, stderr))) return status;
    if (FAILED(status, checkpoint_load(dir, &t->gpt, state, NULL, 0))) return status;
    if (t->device_note[0]) fprintf(stderr, "%s\n", t->device_note);
    return status;
}

Status command_eval(const CommandLine *line) {
    Config config;
    CheckpointState state = {0};
    Trainer t = {0};
    Tokenizer tokenizer = {0};
    double loss = 0;
    Status status;

    if (FAILED(status, load_run(line, &config, &tokenizer))) return status;
    if (FAILED(status, trainer_plan_evaluation(&t, &config))) goto done;
    if (FAILED(status, load_weights(&t, line->path, &state))) goto done;
    if (FAILED(status, trainer_evaluate(&t, 0, &loss))) goto done;

    printf("%s, step %lld, on %s\n", line->path, (long long)state.step, dataset_facts(t.val_data)->description);
    const char *unit = tokenizer_is_byte_level(&tokenizer) ? "byte" : "token";
    printf("val_loss %.4f nats a %s, %.4f bits a %s, perplexity %.3f\n", loss, unit, loss / log(2), unit, exp(loss));
    if (!isnan(dataset_facts(t.val_data)->entropy_floor))
        printf("the language's entropy is %.4f nats a token: %.4f above the floor\n",
               dataset_facts(t.val_data)->entropy_floor, loss - dataset_facts(t.val_data)->entropy_floor);
done:
    tokenizer_free(&tokenizer);
    trainer_free(&t);
    return status;
}

/* The prompt as tokens: bytes for a byte-level tokenizer; otherwise whitespace-separated token numbers. */
static Status encode_prompt(const char *prompt, const Tokenizer *tokenizer, const Config *config, int32_t **tokens,
                            int64_t *count) {
    const int64_t size = (int64_t)strlen(prompt), vocab = config->model.vocab;
    *tokens = calloc((size_t)size + 1, sizeof **tokens);
    *count = 0;
    if (!*tokens) return NO_MEMORY("no memory for a prompt of %lld bytes", (long long)size);
    if (tokenizer_is_byte_level(tokenizer)) {
        tokenizer_encode_bytes(prompt, size, *tokens);
        *count = size;
    } else {
        const char *next = prompt + strspn(prompt, " \t\n,");
        while (*next) {
            char *end;
            long long token = strtoll(next, &end, 10);
            if (end == next || token < 0 || token >= vocab)
                return BAD_INPUT(
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
            return BAD_INPUT("--prompt: byte %lld is outside the model's vocabulary of %lld tokens", (long long)i,
                             (long long)vocab);
    return status_ok();
}

Status command_sample(const CommandLine *line) {
    Config config;
    Trainer t = {0}; /* its backend and model only */
    CheckpointState state = {0};
    Tokenizer tokenizer = {0};
    int32_t *prompt = NULL;
    int64_t prompt_length = 0;
    Status status;

    if (FAILED(status, load_run(line, &config, &tokenizer))) return status;
    if (FAILED(status, encode_prompt(line->prompt, &tokenizer, &config, &prompt, &prompt_length))) goto done;
    if (FAILED(status, trainer_plan_model(&t, &config, 1))) goto done;
    if (FAILED(status, load_weights(&t, line->path, &state))) goto done;
    status = sample_text(&t.gpt, &tokenizer, prompt, prompt_length, line->sample, stdout);
done:
    free(prompt);
    tokenizer_free(&tokenizer);
    trainer_free(&t);
    return status;
}

/* ---- data and files --------------------------------------------------------------------------------------------- */

Status command_prepare(const CommandLine *line) {
    return prepare_corpus(line->path, line->file_count - 1, line->files + 1, line->prepare, stdout);
}
