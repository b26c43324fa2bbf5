/* Saving and loading of checkpoints; see checkpoint.h. */
#include "model/checkpoint_files.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "model/huggingface.h"

/* ---- lists of tensors ------------------------------------------------------------------------------------------- */

/* The model's tensors; the caller frees list->items. */
static Status list_model(TensorList *list, const Gpt *gpt) {
    Status status = tensor_list_allocate(list, huggingface_tensors(gpt, NULL));
    if (!status.code) huggingface_tensors(gpt, list->items);
    return status;
}

/* Whether a tensor's name begins with a block's: "layers.3.q.m", "embed.m". Every other is of a measurement. */
static bool is_of_block(const ParamTable *params, const char *name) {
    char first[FILE_TENSOR_NAME_SIZE];
    snprintf(first, sizeof first, "%.*s", (int)strcspn(name, "."), name);
    return strcmp(first, "layers") == 0 || params_find_kind(params, first) >= 0;
}

static Status list_optimizer(TensorList *list, const ParamTable *params, const NamedTensor *tensors, int64_t count) {
    Status status = tensor_list_allocate(list, count);
    for (int64_t i = 0; i < count && !status.code; i++) {
        const Tensor t = tensors[i].tensor;
        CHECK(t.dtype == DTYPE_F32 && tensor_is_contiguous(t), "tensor %s", tensors[i].name);
        CHECK(tensors[i].optional != is_of_block(params, tensors[i].name), "tensor %s", tensors[i].name);
        list->items[i].tensor = t;
        list->items[i].optional = tensors[i].optional;
        snprintf(list->items[i].name, sizeof list->items[i].name, "%s", tensors[i].name);
    }
    return status;
}

/* ---- saving ----------------------------------------------------------------------------------------------------- */

static Status write_config(const char *path, const Gpt *gpt, FileSum *sum) {
    char *text = huggingface_config(&gpt->config);
    if (!text) return NO_MEMORY("%s: no memory to write it", path);
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
        if (FAILED(status, path_join(paths[i], dir, checkpoint_files[i]))) return status;
    status = tensor_file_write(paths[FILE_MODEL], gpt->be, model, &sums[FILE_MODEL]);
    if (!status.code) status = write_config(paths[FILE_CONFIG], gpt, &sums[FILE_CONFIG]);
    if (!status.code) status = tensor_file_write(paths[FILE_OPTIMIZER], gpt->be, optimizer, &sums[FILE_OPTIMIZER]);
    if (!status.code) status = checkpoint_state_write(dir, gpt, state, sums);
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
    return folder_sync(dirname(parent));
}

Status checkpoint_save(const char *dir, const Gpt *gpt, const CheckpointState *state, const NamedTensor *optimizer,
                       int64_t optimizer_count) {
    char temporary[PATH_SIZE];
    TensorList model = {0}, moments = {0};
    Status status;
    if (snprintf(temporary, sizeof temporary, "%s.tmp", dir) >= (int)sizeof temporary)
        return BAD_INPUT("%s: the path is too long", dir);
    if (FAILED(status, list_model(&model, gpt))) goto done;
    if (FAILED(status, list_optimizer(&moments, &gpt->params, optimizer, optimizer_count))) goto done;
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

/* ---- loading ---------------------------------------------------------------------------------------------------- */

static Status open_file(SafetensorsFile *file, const char *dir, FileId id) {
    char path[PATH_SIZE];
    Status status = path_join(path, dir, checkpoint_files[id]);
    return status.code ? status : safetensors_open(file, path);
}

static Status open_model(SafetensorsFile *file, const char *dir, TensorList list) {
    static const char keys[] = "model.layers, heads, kv_heads, width, mlp_width, vocab, context, attention and preset";
    Status status = open_file(file, dir, FILE_MODEL);
    return status.code ? status : tensor_file_check(file, list, 0, keys);
}

static Status open_optimizer(SafetensorsFile *file, const char *dir, const ParamTable *params, TensorList *list) {
    static const char keys[] = "optimizer.matrices, optimizer.overrides and optimizer.muon.per_head";
    int64_t measurements = 0;
    Status status = open_file(file, dir, FILE_OPTIMIZER);
    if (status.code) return status;
    for (int64_t i = 0; i < file->count; i++) measurements += is_of_block(params, file->entries[i].name) ? 0 : 1;
    tensor_list_drop_missing(list, file);
    return tensor_file_check(file, *list, measurements, keys);
}

static Status read_model(const SafetensorsFile *file, Gpt *gpt, TensorList model) {
    Status status = tensor_file_read(file, gpt->be, model);
    if (status.code) return status;
    params_refresh_work(gpt->be, &gpt->params);
    return backend_sync(gpt->be);
}

Status checkpoint_load(const char *dir, Gpt *gpt, CheckpointState *state, const NamedTensor *optimizer,
                       int64_t optimizer_count) {
    TensorList model = {0}, moments = {0};
    SafetensorsFile model_file = {0}, moments_file = {0};
    CheckpointState read;
    Status status;
    if (FAILED(status, checkpoint_verify(dir, &read))) return status;
    if (FAILED(status, list_model(&model, gpt))) goto done;
    if (FAILED(status, open_model(&model_file, dir, model))) goto done;
    if (optimizer) {
        if (FAILED(status, list_optimizer(&moments, &gpt->params, optimizer, optimizer_count))) goto done;
        if (FAILED(status, open_optimizer(&moments_file, dir, &gpt->params, &moments))) goto done;
        if (FAILED(status, tensor_file_read(&moments_file, gpt->be, moments))) goto done;
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

Status checkpoint_load_weights(const char *from, Gpt *gpt, char *dir) {
    char path[PATH_SIZE];
    TensorList model = {0};
    SafetensorsFile file = {0};
    Status status;
    if (FAILED(status, checkpoint_find_weights(from, dir))) return status;
    if (FAILED(status, path_join(path, dir, checkpoint_files[FILE_CONFIG]))) return status;
    if (FAILED(status, huggingface_check_config(&gpt->config, path))) return status;
    if (FAILED(status, list_model(&model, gpt))) goto done;
    if (FAILED(status, open_model(&file, dir, model))) goto done;
    status = read_model(&file, gpt, model);
done:
    safetensors_close(&file);
    free(model.items);
    return status;
}
