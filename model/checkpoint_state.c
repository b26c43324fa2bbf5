/* state.json of a checkpoint: its position and configuration, sizes and checksums of the files beside it, and whether
 * they agree. See checkpoint.h.
 */
#include "model/checkpoint_files.h"

#include <stdlib.h>
#include <string.h>

#include "base/config_json.h"

const char checkpoint_state_file[] = "state.json";

const char *const checkpoint_files[FILE_COUNT] = {
    [FILE_MODEL] = "model.safetensors",
    [FILE_CONFIG] = "config.json",
    [FILE_OPTIMIZER] = "optimizer.safetensors",
};

/* ---- as JSON ---------------------------------------------------------------------------------------------------- */

/* The last line: a checksum of every byte before it. */
static const char CHECKSUM_LINE[] = ",\n\t\"checksum\":\t\"%016llx\"\n}\n";
enum { CHECKSUM_LINE_SIZE = sizeof ",\n\t\"checksum\":\t\"0123456789abcdef\"\n}\n" - 1 };
static const int64_t STATE_LIMIT = 16 << 20;

/* 64-bit numbers are strings of hexadecimal digits: a JSON number is a double. */
static void add_hash(cJSON *json, const char *key, uint64_t hash) {
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
    cJSON_AddStringToObject(json, key, text);
}

static bool get_hash(const cJSON *json, const char *key, uint64_t *hash) {
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, key));
    char *end = NULL;
    if (!text || strlen(text) != 16) return false;
    *hash = strtoull(text, &end, 16);
    return *end == '\0';
}

static bool get_count(const cJSON *json, const char *key, int64_t *value) {
    return json_get_count(cJSON_GetObjectItemCaseSensitive(json, key), value);
}

static bool get_text(const cJSON *json, const char *key, char *buffer, size_t size) {
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, key));
    return text && (size_t)snprintf(buffer, size, "%s", text) < size;
}

static cJSON *state_to_json(const Gpt *gpt, const CheckpointState *state, const FileSum *sums) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "step", (double)state->step);
    cJSON_AddNumberToObject(json, "updates", (double)state->updates);
    cJSON_AddNumberToObject(json, "samples", (double)state->samples);
    cJSON_AddNumberToObject(json, "tokens", (double)state->tokens);
    add_hash(json, "data_fingerprint", state->data_fingerprint);
    cJSON_AddStringToObject(json, "backend", gpt->be->name);
    cJSON_AddStringToObject(json, "precision", gpt->be->compute_dtype == DTYPE_BF16 ? "bf16" : "fp32");
    cJSON *files = cJSON_AddObjectToObject(json, "files");
    for (int i = 0; i < FILE_COUNT; i++) {
        cJSON *file = cJSON_AddObjectToObject(files, checkpoint_files[i]);
        cJSON_AddNumberToObject(file, "bytes", (double)sums[i].size);
        add_hash(file, "fnv1a", sums[i].hash);
    }
    cJSON *config = cJSON_Parse(state->config_json ? state->config_json : "null");
    CHECK(config, "the run's configuration is not JSON: %s", state->config_json);
    cJSON_AddItemToObject(json, "config", config);
    return json;
}

Status checkpoint_state_write(const char *dir, const Gpt *gpt, const CheckpointState *state, const FileSum *sums) {
    char path[PATH_SIZE];
    Status status = path_join(path, dir, checkpoint_state_file);
    if (status.code) return status;
    cJSON *json = state_to_json(gpt, state, sums);
    char *text = cJSON_Print(json);
    cJSON_Delete(json);
    size_t length = text ? strlen(text) - 2 : 0; /* without the last "\n}", which the checksum's line brings */
    char *whole = text ? realloc(text, length + CHECKSUM_LINE_SIZE + 1) : NULL;
    if (!whole) {
        free(text);
        return NO_MEMORY("%s: no memory to write it", path);
    }
    uint64_t hash = file_hash(FILE_HASH_START, whole, (int64_t)length);
    snprintf(whole + length, CHECKSUM_LINE_SIZE + 1, CHECKSUM_LINE, (unsigned long long)hash);
    status = file_write(path, whole, (int64_t)length + CHECKSUM_LINE_SIZE);
    free(whole);
    return status;
}

static bool checksum_agrees(const char *text, int64_t size) {
    char expected[CHECKSUM_LINE_SIZE + 1];
    int64_t length = size - CHECKSUM_LINE_SIZE;
    if (length < 0) return false;
    uint64_t hash = file_hash(FILE_HASH_START, text, length);
    snprintf(expected, sizeof expected, CHECKSUM_LINE, (unsigned long long)hash);
    return memcmp(text + length, expected, CHECKSUM_LINE_SIZE) == 0;
}

static bool parse_state(const cJSON *json, CheckpointState *state, FileSum *sums) {
    const cJSON *files = cJSON_GetObjectItemCaseSensitive(json, "files");
    *state = (CheckpointState){0};
    bool complete = get_count(json, "step", &state->step) && get_count(json, "updates", &state->updates) &&
                    get_count(json, "samples", &state->samples) && get_count(json, "tokens", &state->tokens) &&
                    get_hash(json, "data_fingerprint", &state->data_fingerprint) &&
                    get_text(json, "backend", state->backend, sizeof state->backend) &&
                    get_text(json, "precision", state->precision, sizeof state->precision);
    for (int i = 0; i < FILE_COUNT; i++) {
        const cJSON *file = cJSON_GetObjectItemCaseSensitive(files, checkpoint_files[i]);
        complete = complete && get_count(file, "bytes", &sums[i].size) && get_hash(file, "fnv1a", &sums[i].hash);
    }
    return complete;
}

Status checkpoint_state_read(const char *dir, CheckpointState *state, FileSum *sums) {
    char path[PATH_SIZE], *text = NULL;
    int64_t size = 0;
    Status status = path_join(path, dir, checkpoint_state_file);
    if (status.code || FAILED(status, file_read(path, STATE_LIMIT, &text, &size))) return status;
    if (!checksum_agrees(text, size)) {
        status = BAD_INPUT("%s: the checksum does not match: the file is damaged", path);
    } else {
        cJSON *json = cJSON_ParseWithLength(text, (size_t)size);
        if (!parse_state(json, state, sums))
            status = BAD_INPUT("%s: not a checkpoint's state, or of another version", path);
        cJSON_Delete(json);
    }
    free(text);
    return status;
}

/* ---- verifying -------------------------------------------------------------------------------------------------- */

static Status sum_file(const char *path, FileSum *sum) {
    enum { CHUNK = 1 << 18 };
    FILE *file = fopen(path, "rb");
    if (!file) return file_error(path, "open");
    char *chunk = malloc(CHUNK);
    *sum = (FileSum){.hash = FILE_HASH_START};
    for (size_t n = 1; chunk && n > 0; sum->size += (int64_t)n) {
        n = fread(chunk, 1, CHUNK, file);
        sum->hash = file_hash(sum->hash, chunk, (int64_t)n);
    }
    Status status = !chunk         ? NO_MEMORY("%s: no memory to read it", path)
                    : ferror(file) ? file_error(path, "read")
                                   : status_ok();
    free(chunk);
    fclose(file);
    return status;
}

Status checkpoint_verify(const char *dir, CheckpointState *state) {
    FileSum expected[FILE_COUNT];
    Status status = checkpoint_state_read(dir, state, expected);
    for (int i = 0; i < FILE_COUNT && !status.code; i++) {
        char path[PATH_SIZE];
        FileSum found = {0};
        if (FAILED(status, path_join(path, dir, checkpoint_files[i]))) break;
        if (FAILED(status, sum_file(path, &found))) break;
        if (found.size != expected[i].size)
            status = BAD_INPUT("%s: the file has %lld bytes, not the %lld that were saved", path, (long long)found.size,
                               (long long)expected[i].size);
        else if (found.hash != expected[i].hash)
            status = BAD_INPUT("%s: the checksum does not match: the file is damaged", path);
    }
    return status;
}
