/* Saving, verifying, loading and pruning of checkpoints; see checkpoint.h.
 *
 * Tensors travel through one host buffer of a few MiB: device memory is never assumed to be readable. A transposed
 * tensor (GPT-2's Conv1D) is the exception that needs its whole matrix on the host.
 */
#include "model/checkpoint.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "model/huggingface.h"
#include "model/safetensors.h"

static const char STATE_FILE[] = "state.json";
static const char CHECKPOINTS[] = "checkpoints";

/* The files whose sums state.json keeps. */
typedef enum { FILE_MODEL, FILE_CONFIG, FILE_OPTIMIZER, FILE_COUNT } FileId;

static const char *const file_names[FILE_COUNT] = {
    [FILE_MODEL] = "model.safetensors",
    [FILE_CONFIG] = "config.json",
    [FILE_OPTIMIZER] = "optimizer.safetensors",
};

typedef struct {
    int64_t size;
    uint64_t hash;
} FileSum;

typedef struct {
    FileTensor *items;
    int64_t count;
} TensorList;

/* ---- tensors to and from a file --------------------------------------------------------------------------------- */

enum { PIECE = 1 << 20 }; /* elements that travel at a time */

/* Host memory for one tensor after another. */
typedef struct {
    float *piece; /* PIECE elements, or the largest transposed matrix */
    float *row;   /* one row of that matrix as the file has it */
} Staging;

static int64_t max_of(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static Status staging_create(Staging *staging, TensorList list) {
    int64_t piece = PIECE, row = 1;
    for (int64_t i = 0; i < list.count; i++) {
        if (!list.items[i].transposed) continue;
        piece = max_of(piece, tensor_numel(list.items[i].tensor));
        row = max_of(row, list.items[i].tensor.shape[0]);
    }
    *staging = (Staging){.piece = malloc((size_t)piece * sizeof(float)), .row = malloc((size_t)row * sizeof(float))};
    if (staging->piece && staging->row) return status_ok();
    return status_error(STATUS_OUT_OF_MEMORY, "no memory for a checkpoint's staging of %lld bytes",
                        (long long)((piece + row) * (int64_t)sizeof(float)));
}

static void staging_free(Staging *staging) {
    free(staging->piece);
    free(staging->row);
}

static Tensor flat(Tensor t) {
    return tensor_reshape(t, 1, (int64_t[]){tensor_numel(t)});
}

static Status write_stretch(Backend *be, SafetensorsWriter *w, Tensor t, const Staging *staging) {
    int64_t count = tensor_numel(t);
    Status status = status_ok();
    for (int64_t start = 0; start < count && !status.code; start += PIECE) {
        int64_t n = count - start < PIECE ? count - start : PIECE;
        backend_to_host(be, staging->piece, tensor_slice(flat(t), 0, start, n));
        status = safetensors_writer_append(w, staging->piece, n * (int64_t)sizeof(float));
    }
    return status;
}

static Status write_tensor(Backend *be, SafetensorsWriter *w, const FileTensor *t, const Staging *staging) {
    Status status = status_ok();
    for (int64_t i = 0; i < file_tensor_stretches(t) && !status.code; i++)
        status = write_stretch(be, w, file_tensor_stretch(t, i), staging);
    return status;
}

static Status write_transposed(Backend *be, SafetensorsWriter *w, const FileTensor *t, const Staging *staging) {
    int64_t rows = t->tensor.shape[0], columns = t->tensor.shape[1];
    Status status = status_ok();
    backend_to_host(be, staging->piece, t->tensor);
    for (int64_t c = 0; c < columns && !status.code; c++) {
        for (int64_t r = 0; r < rows; r++) staging->row[r] = staging->piece[r * columns + c];
        status = safetensors_writer_append(w, staging->row, rows * (int64_t)sizeof(float));
    }
    return status;
}

/* From element `first` of the file's tensor on. */
static Status read_stretch(Backend *be, const SafetensorsFile *file, const SafetensorsEntry *entry, int64_t first,
                           Tensor t, const Staging *staging) {
    int64_t count = tensor_numel(t);
    Status status = status_ok();
    for (int64_t start = 0; start < count && !status.code; start += PIECE) {
        int64_t n = count - start < PIECE ? count - start : PIECE;
        status = safetensors_read_f32(file, entry, first + start, n, staging->piece);
        backend_from_host(be, tensor_slice(flat(t), 0, start, n), staging->piece);
    }
    return status;
}

static Status read_tensor(Backend *be, const SafetensorsFile *file, const FileTensor *t, const Staging *staging) {
    const SafetensorsEntry *entry = safetensors_find(file, t->name);
    int64_t first = 0;
    Status status = status_ok();
    for (int64_t i = 0; i < file_tensor_stretches(t) && !status.code; i++) {
        Tensor stretch = file_tensor_stretch(t, i);
        status = read_stretch(be, file, entry, first, stretch, staging);
        first += tensor_numel(stretch);
    }
    return status;
}

static Status read_transposed(Backend *be, const SafetensorsFile *file, const FileTensor *t, const Staging *staging) {
    const SafetensorsEntry *entry = safetensors_find(file, t->name);
    int64_t rows = t->tensor.shape[0], columns = t->tensor.shape[1];
    Status status = status_ok();
    for (int64_t c = 0; c < columns && !status.code; c++) {
        status = safetensors_read_f32(file, entry, c * rows, rows, staging->row);
        for (int64_t r = 0; r < rows; r++) staging->piece[r * columns + c] = staging->row[r];
    }
    backend_from_host(be, t->tensor, staging->piece);
    return status;
}

static SafetensorsEntry entry_of(const FileTensor *t) {
    SafetensorsEntry entry = {.name = t->name, .dtype = SAFETENSORS_F32, .ndim = t->tensor.ndim};
    for (int i = 0; i < entry.ndim; i++) entry.shape[i] = t->tensor.shape[t->transposed ? entry.ndim - 1 - i : i];
    return entry;
}

/* ---- files of tensors ------------------------------------------------------------------------------------------- */

static Status write_tensors(const char *path, Backend *be, TensorList list, FileSum *sum) {
    static const SafetensorsMetadata metadata[] = {{"format", "pt"}}; /* transformers refuses a file without it */
    SafetensorsWriter w = {0};
    Staging staging = {0};
    Status status = status_ok();
    SafetensorsEntry *entries = calloc((size_t)list.count + 1, sizeof *entries);
    if (!entries) return status_error(STATUS_OUT_OF_MEMORY, "%s: no memory for its header", path);
    for (int64_t i = 0; i < list.count; i++) entries[i] = entry_of(&list.items[i]);
    if (FAILED(status, staging_create(&staging, list))) goto done;
    if (FAILED(status, safetensors_writer_open(&w, path, entries, list.count, metadata, 1))) goto done;
    for (int64_t i = 0; i < list.count; i++) {
        const FileTensor *t = &list.items[i];
        status = t->transposed ? write_transposed(be, &w, t, &staging) : write_tensor(be, &w, t, &staging);
        if (status.code) goto done;
    }
    status = safetensors_writer_finish(&w);
    *sum = (FileSum){.size = w.size, .hash = w.hash};
done:
    safetensors_writer_abandon(&w);
    staging_free(&staging);
    free(entries);
    return status;
}

/* State of measurements, not of training: a file may lack it, and may have some that nobody asks for. */
static bool is_shadow(const char *name) {
    return strncmp(name, "shadow.", sizeof "shadow." - 1) == 0;
}

static bool same_entry(const SafetensorsEntry *a, const SafetensorsEntry *b) {
    return a->dtype == b->dtype && a->ndim == b->ndim && memcmp(a->shape, b->shape, sizeof a->shape) == 0;
}

/* Shadows that the file does not have, all of them and in these shapes, are not loaded: they start anew together. */
static void drop_unknown_shadows(const SafetensorsFile *file, TensorList *list) {
    bool known = true;
    int64_t kept = 0;
    for (int64_t i = 0; i < list->count; i++) {
        if (!is_shadow(list->items[i].name)) continue;
        const SafetensorsEntry expected = entry_of(&list->items[i]);
        const SafetensorsEntry *found = safetensors_find(file, expected.name);
        known = known && found && same_entry(found, &expected);
    }
    for (int64_t i = 0; i < list->count; i++)
        if (known || !is_shadow(list->items[i].name)) list->items[kept++] = list->items[i];
    list->count = kept;
}

/* The file has these tensors, in these shapes, and no others but shadows. `keys`: where in the configuration shapes
 * come from. */
static Status check_tensors(const SafetensorsFile *file, TensorList list, const char *keys) {
    for (int64_t i = 0; i < list.count; i++) {
        char found_text[96], expected_text[96];
        const char *name = list.items[i].name;
        SafetensorsEntry expected = entry_of(&list.items[i]);
        const SafetensorsEntry *found = safetensors_find(file, name);
        if (!found)
            return status_error(STATUS_BAD_INPUT,
                                "%s: there is no tensor \"%s\"; compare %s with the run's config.json", file->path,
                                name, keys);
        if (!same_entry(found, &expected))
            return status_error(STATUS_BAD_INPUT,
                                "%s: tensor \"%s\" is %s, but this run needs %s; compare %s with the run's config.json",
                                file->path, name, safetensors_describe(found, found_text, sizeof found_text),
                                safetensors_describe(&expected, expected_text, sizeof expected_text), keys);
    }
    int64_t file_count = 0, list_count = 0;
    for (int64_t i = 0; i < file->count; i++) file_count += is_shadow(file->entries[i].name) ? 0 : 1;
    for (int64_t i = 0; i < list.count; i++) list_count += is_shadow(list.items[i].name) ? 0 : 1;
    if (file_count != list_count)
        return status_error(STATUS_BAD_INPUT,
                            "%s: there are %lld tensors, but this run has %lld; compare %s with the run's config.json",
                            file->path, (long long)file_count, (long long)list_count, keys);
    return status_ok();
}

static Status read_tensors(const SafetensorsFile *file, Backend *be, TensorList list) {
    Staging staging = {0};
    Status status = staging_create(&staging, list);
    for (int64_t i = 0; i < list.count && !status.code; i++) {
        const FileTensor *t = &list.items[i];
        status = t->transposed ? read_transposed(be, file, t, &staging) : read_tensor(be, file, t, &staging);
    }
    staging_free(&staging);
    return status;
}

static Status list_allocate(TensorList *list, int64_t count) {
    *list = (TensorList){.items = calloc((size_t)count + 1, sizeof *list->items), .count = count};
    if (list->items) return status_ok();
    return status_error(STATUS_OUT_OF_MEMORY, "no memory to name %lld tensors", (long long)count);
}

/* The model's tensors; the caller frees list->items. */
static Status list_model(TensorList *list, const Gpt *gpt) {
    Status status = list_allocate(list, huggingface_tensors(gpt, NULL));
    if (!status.code) huggingface_tensors(gpt, list->items);
    return status;
}

static Status list_optimizer(TensorList *list, const NamedTensor *tensors, int64_t count) {
    Status status = list_allocate(list, count);
    for (int64_t i = 0; i < count && !status.code; i++) {
        const Tensor t = tensors[i].tensor;
        CHECK(t.dtype == DTYPE_F32 && tensor_is_contiguous(t), "tensor %s", tensors[i].name);
        list->items[i].tensor = t;
        snprintf(list->items[i].name, sizeof list->items[i].name, "%s", tensors[i].name);
    }
    return status;
}

/* ---- state.json ------------------------------------------------------------------------------------------------- */

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

/* A count: whole, not negative, and no larger than a JSON number, which is a double, holds exactly. */
static bool get_integer(const cJSON *json, const char *key, int64_t *value) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= 0x1p53)) return false;
    *value = (int64_t)item->valuedouble;
    return (double)*value == item->valuedouble;
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
        cJSON *file = cJSON_AddObjectToObject(files, file_names[i]);
        cJSON_AddNumberToObject(file, "bytes", (double)sums[i].size);
        add_hash(file, "fnv1a", sums[i].hash);
    }
    cJSON *config = cJSON_Parse(state->config_json ? state->config_json : "null");
    CHECK(config, "the run's configuration is no JSON: %s", state->config_json);
    cJSON_AddItemToObject(json, "config", config);
    return json;
}

static Status write_state(const char *dir, const Gpt *gpt, const CheckpointState *state, const FileSum *sums) {
    char path[PATH_SIZE];
    Status status = path_join(path, dir, STATE_FILE);
    if (status.code) return status;
    cJSON *json = state_to_json(gpt, state, sums);
    char *text = cJSON_Print(json);
    cJSON_Delete(json);
    size_t length = text ? strlen(text) - 2 : 0; /* without the last "\n}", which the checksum's line brings */
    char *whole = text ? realloc(text, length + CHECKSUM_LINE_SIZE + 1) : NULL;
    if (!whole) {
        free(text);
        return status_error(STATUS_OUT_OF_MEMORY, "%s: no memory to write it", path);
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
    bool complete = get_integer(json, "step", &state->step) && get_integer(json, "updates", &state->updates) &&
                    get_integer(json, "samples", &state->samples) && get_integer(json, "tokens", &state->tokens) &&
                    get_hash(json, "data_fingerprint", &state->data_fingerprint) &&
                    get_text(json, "backend", state->backend, sizeof state->backend) &&
                    get_text(json, "precision", state->precision, sizeof state->precision);
    for (int i = 0; i < FILE_COUNT; i++) {
        const cJSON *file = cJSON_GetObjectItemCaseSensitive(files, file_names[i]);
        complete = complete && get_integer(file, "bytes", &sums[i].size) && get_hash(file, "fnv1a", &sums[i].hash);
    }
    return complete;
}

static Status read_state(const char *dir, CheckpointState *state, FileSum *sums) {
    char path[PATH_SIZE], *text = NULL;
    int64_t size = 0;
    Status status = path_join(path, dir, STATE_FILE);
    if (status.code || FAILED(status, file_read(path, STATE_LIMIT, &text, &size))) return status;
    if (!checksum_agrees(text, size)) {
        status = status_error(STATUS_BAD_INPUT, "%s: the checksum does not agree: the file is damaged", path);
    } else {
        cJSON *json = cJSON_ParseWithLength(text, (size_t)size);
        if (!parse_state(json, state, sums))
            status = status_error(STATUS_BAD_INPUT, "%s: not a checkpoint's state, or of another version", path);
        cJSON_Delete(json);
    }
    free(text);
    return status;
}

/* ---- saving ----------------------------------------------------------------------------------------------------- */

static Status write_config(const char *path, const Gpt *gpt, FileSum *sum) {
    char *text = huggingface_config(&gpt->config);
    if (!text) return status_error(STATUS_OUT_OF_MEMORY, "%s: no memory to write it", path);
    int64_t size = (int64_t)strlen(text);
    *sum = (FileSum){.size = size, .hash = file_hash(FILE_HASH_START, text, size)};
    Status status = file_write(path, text, size);
    free(text);
    return status;
}

static Status write_files(const char *dir, const Gpt *gpt, const CheckpointState *state, TensorList model,
                          TensorList optimizer) {
    char paths[FILE_COUNT][PATH_SIZE];
    FileSum sums[FILE_COUNT];
    Status status;
    for (int i = 0; i < FILE_COUNT; i++)
        if (FAILED(status, path_join(paths[i], dir, file_names[i]))) return status;
    status = write_tensors(paths[FILE_MODEL], gpt->be, model, &sums[FILE_MODEL]);
    if (!status.code) status = write_config(paths[FILE_CONFIG], gpt, &sums[FILE_CONFIG]);
    if (!status.code) status = write_tensors(paths[FILE_OPTIMIZER], gpt->be, optimizer, &sums[FILE_OPTIMIZER]);
    if (!status.code) status = write_state(dir, gpt, state, sums);
    if (!status.code) status = folder_sync(dir);
    return status.code ? status : backend_sync(gpt->be); /* a device that failed meanwhile delivered no weights */
}

/* temporary becomes dir. One that is there already is swapped out in one step; where the file system cannot swap, there
 * is a moment without either, and older checkpoints stand in. */
static Status publish(const char *temporary, const char *dir) {
    if (rename(temporary, dir) == 0) return status_ok();
    if (errno == ENOTEMPTY || errno == EEXIST) {
        if (renameat2(AT_FDCWD, temporary, AT_FDCWD, dir, RENAME_EXCHANGE) == 0) return folder_remove(temporary);
        Status status = folder_remove(dir);
        if (status.code) return status;
        if (rename(temporary, dir) == 0) return status;
    }
    return status_error(STATUS_IO, "%s: cannot rename it to %s: %s", temporary, dir, strerror(errno));
}

static Status sync_parent(const char *dir) {
    char parent[PATH_SIZE];
    snprintf(parent, sizeof parent, "%s", dir);
    char *slash = strrchr(parent, '/');
    if (slash) *slash = '\0';
    return folder_sync(!slash ? "." : slash == parent ? "/" : parent);
}

Status checkpoint_save(const char *dir, const Gpt *gpt, const CheckpointState *state, const NamedTensor *optimizer,
                       int64_t optimizer_count) {
    char temporary[PATH_SIZE];
    TensorList model = {0}, moments = {0};
    Status status;
    if (snprintf(temporary, sizeof temporary, "%s.tmp", dir) >= (int)sizeof temporary)
        return status_error(STATUS_BAD_INPUT, "%s: the path is too long", dir);
    if (FAILED(status, list_model(&model, gpt))) goto done;
    if (FAILED(status, list_optimizer(&moments, optimizer, optimizer_count))) goto done;
    if (FAILED(status, folder_remove(temporary))) goto done;
    if (FAILED(status, folder_create(temporary))) goto done;
    status = write_files(temporary, gpt, state, model, moments);
    if (!status.code) status = publish(temporary, dir);
    if (!status.code)
        status = sync_parent(dir);
    else
        (void)folder_remove(temporary); /* the first failure is the one to tell of */
done:
    free(model.items);
    free(moments.items);
    return status;
}

/* ---- verifying and loading -------------------------------------------------------------------------------------- */

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
    Status status = !chunk         ? status_error(STATUS_OUT_OF_MEMORY, "%s: no memory to read it", path)
                    : ferror(file) ? file_error(path, "read")
                                   : status_ok();
    free(chunk);
    fclose(file);
    return status;
}

Status checkpoint_verify(const char *dir, CheckpointState *state) {
    FileSum expected[FILE_COUNT];
    Status status = read_state(dir, state, expected);
    for (int i = 0; i < FILE_COUNT && !status.code; i++) {
        char path[PATH_SIZE];
        FileSum found = {0};
        if (FAILED(status, path_join(path, dir, file_names[i]))) break;
        if (FAILED(status, sum_file(path, &found))) break;
        if (found.size != expected[i].size)
            status = status_error(STATUS_BAD_INPUT, "%s: the file has %lld bytes, not the %lld that were saved", path,
                                  (long long)found.size, (long long)expected[i].size);
        else if (found.hash != expected[i].hash)
            status = status_error(STATUS_BAD_INPUT, "%s: the checksum does not agree: the file is damaged", path);
    }
    return status;
}

static Status open_checked(SafetensorsFile *file, const char *dir, FileId id, TensorList *list, const char *keys) {
    char path[PATH_SIZE];
    Status status = path_join(path, dir, file_names[id]);
    if (status.code || FAILED(status, safetensors_open(file, path))) return status;
    drop_unknown_shadows(file, list);
    return check_tensors(file, *list, keys);
}

static const char model_keys[] =
    "model.layers, heads, kv_heads, width, mlp_width, vocab, context, attention and preset";

static Status read_model(const SafetensorsFile *file, Gpt *gpt, TensorList model) {
    Status status = read_tensors(file, gpt->be, model);
    if (status.code) return status;
    params_refresh_work(gpt->be, &gpt->params);
    return backend_sync(gpt->be);
}

Status checkpoint_load(const char *dir, Gpt *gpt, CheckpointState *state, const NamedTensor *optimizer,
                       int64_t optimizer_count) {
    static const char optimizer_keys[] = "optimizer.matrices, optimizer.overrides and optimizer.muon.per_head";
    TensorList model = {0}, moments = {0};
    SafetensorsFile model_file = {0}, moments_file = {0};
    CheckpointState read;
    Status status;
    if (FAILED(status, checkpoint_verify(dir, &read))) return status;
    if (FAILED(status, list_model(&model, gpt))) goto done;
    if (FAILED(status, open_checked(&model_file, dir, FILE_MODEL, &model, model_keys))) goto done;
    if (optimizer) {
        if (FAILED(status, list_optimizer(&moments, optimizer, optimizer_count))) goto done;
        if (FAILED(status, open_checked(&moments_file, dir, FILE_OPTIMIZER, &moments, optimizer_keys))) goto done;
        if (FAILED(status, read_tensors(&moments_file, gpt->be, moments))) goto done;
    }
    if (FAILED(status, read_model(&model_file, gpt, model))) goto done;
    *state = read;
done:
    safetensors_close(&moments_file);
    safetensors_close(&model_file);
    free(moments.items);
    free(model.items);
    return status;
}

/* The folder that holds the weights, verified if it can be. */
static Status find_weights(const char *from, char *dir) {
    char path[PATH_SIZE];
    CheckpointState state;
    Status status = path_join(path, from, file_names[FILE_MODEL]);
    if (status.code) return status;
    if (!file_exists(path)) {
        status = path_join(path, from, CHECKPOINTS);
        if (status.code) return status;
        if (file_exists(path)) return checkpoint_find_newest_intact(from, dir, stderr);
        return status_error(STATUS_BAD_INPUT,
                            "train.init_from: %s is no run and no checkpoint: it holds no %s and no %s/", from,
                            file_names[FILE_MODEL], CHECKPOINTS);
    }
    snprintf(dir, PATH_SIZE, "%s", from);
    status = path_join(path, from, STATE_FILE);
    return status.code || !file_exists(path) ? status : checkpoint_verify(from, &state);
}

Status checkpoint_load_weights(const char *from, Gpt *gpt, char *dir) {
    char path[PATH_SIZE];
    TensorList model = {0};
    SafetensorsFile file = {0};
    Status status;
    if (FAILED(status, find_weights(from, dir))) return status;
    if (FAILED(status, path_join(path, dir, file_names[FILE_CONFIG]))) return status;
    if (FAILED(status, huggingface_check_config(&gpt->config, path))) return status;
    if (FAILED(status, list_model(&model, gpt))) goto done;
    if (FAILED(status, open_checked(&file, dir, FILE_MODEL, &model, model_keys))) goto done;
    status = read_model(&file, gpt, model);
done:
    safetensors_close(&file);
    free(model.items);
    return status;
}

/* ---- the checkpoints of a run ----------------------------------------------------------------------------------- */

enum { STEP_NAME_SIZE = 40 };

static void step_name(char *buffer, int64_t step) {
    snprintf(buffer, STEP_NAME_SIZE, "step_%08lld", (long long)step);
}

Status checkpoint_path(char *buffer, const char *run_dir, int64_t step) {
    char folder[PATH_SIZE], name[STEP_NAME_SIZE];
    step_name(name, step);
    Status status = path_join(folder, run_dir, CHECKPOINTS);
    return status.code ? status : path_join(buffer, folder, name);
}

/* The step of "step_00000500", or -1 for any other name. */
static int64_t step_of(const char *name) {
    char expected[STEP_NAME_SIZE];
    long long step = -1;
    if (sscanf(name, "step_%lld", &step) != 1 || step < 0) return -1;
    step_name(expected, step);
    return strcmp(name, expected) == 0 ? step : -1;
}

/* "step_00000500.tmp" */
static bool is_unfinished(const char *name) {
    size_t length = strlen(name);
    return strncmp(name, "step_", 5) == 0 && length > 4 && strcmp(name + length - 4, ".tmp") == 0;
}

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

typedef struct {
    int64_t *steps; /* newest first */
    int64_t count;
} StepList;

/* The steps of a run's checkpoints, broken ones too; the caller frees them. No folder: none. */
static Status list_steps(const char *run_dir, StepList *list) {
    char folder[PATH_SIZE];
    *list = (StepList){0};
    Status status = path_join(folder, run_dir, CHECKPOINTS);
    if (status.code) return status;
    DIR *entries = opendir(folder);
    if (!entries && errno == ENOENT) return status;
    if (!entries) return file_error(folder, "list");
    for (struct dirent *entry = readdir(entries); entry; entry = readdir(entries)) {
        int64_t step = step_of(entry->d_name);
        if (step < 0) continue;
        int64_t *steps = realloc(list->steps, (size_t)(list->count + 1) * sizeof *steps);
        if (!steps) {
            status = status_error(STATUS_OUT_OF_MEMORY, "%s: no memory to list it", folder);
            break;
        }
        list->steps = steps;
        list->steps[list->count++] = step;
    }
    closedir(entries);
    if (list->count > 0) qsort(list->steps, (size_t)list->count, sizeof *list->steps, newest_first);
    return status;
}

Status checkpoint_find_newest_intact(const char *run_dir, char *dir, FILE *notes) {
    StepList list;
    CheckpointState state;
    Status status = list_steps(run_dir, &list);
    for (int64_t i = 0; i < list.count && !status.code; i++) {
        char candidate[PATH_SIZE];
        if (FAILED(status, checkpoint_path(candidate, run_dir, list.steps[i]))) break;
        Status broken = checkpoint_verify(candidate, &state);
        if (!broken.code) {
            memcpy(dir, candidate, sizeof candidate);
            goto done;
        }
        if (notes) fprintf(notes, "passing over a broken checkpoint: %s\n", broken.message);
    }
    if (!status.code)
        status = status_error(STATUS_BAD_INPUT, "%s: there is no intact checkpoint under %s/ (%lld are broken)",
                              run_dir, CHECKPOINTS, (long long)list.count);
done:
    free(list.steps);
    return status;
}

static Status remove_unfinished(const char *run_dir) {
    char folder[PATH_SIZE], path[PATH_SIZE];
    Status status = path_join(folder, run_dir, CHECKPOINTS);
    if (status.code) return status;
    DIR *entries = opendir(folder);
    if (!entries) return file_error(folder, "list");
    for (struct dirent *entry = readdir(entries); entry && !status.code; entry = readdir(entries)) {
        if (!is_unfinished(entry->d_name)) continue;
        status = path_join(path, folder, entry->d_name);
        if (!status.code) status = folder_remove(path);
    }
    closedir(entries);
    return status;
}

Status checkpoint_prune(const char *run_dir, int64_t newest, int64_t keep) {
    StepList list;
    int64_t kept = 0;
    Status status = list_steps(run_dir, &list);
    for (int64_t i = 0; i < list.count && !status.code; i++) {
        char dir[PATH_SIZE];
        if (keep == 0 || (list.steps[i] <= newest && kept++ < keep)) continue;
        status = checkpoint_path(dir, run_dir, list.steps[i]);
        if (!status.code) status = folder_remove(dir);
    }
    free(list.steps);
    return status.code ? status : remove_unfinished(run_dir);
}
