/* Tensors to and from a safetensors file; see tensor_file.h.
 *
 * They travel through one host buffer of a few MiB: device memory is never assumed to be readable. A transposed tensor
 * is the exception that needs its whole matrix on the host.
 */
#include "model/tensor_file.h"

#include <stdlib.h>
#include <string.h>

#include "base/integer.h"

Status tensor_list_allocate(TensorList *list, int64_t count) {
    *list = (TensorList){.items = calloc((size_t)count + 1, sizeof *list->items), .count = count};
    if (list->items) return status_ok();
    return status_error(STATUS_OUT_OF_MEMORY, "no memory to name %lld tensors", (long long)count);
}

/* ---- tensor by tensor ------------------------------------------------------------------------------------------- */

enum { PIECE = 1 << 20 }; /* elements that travel at a time */

/* Host memory for one tensor after another. */
typedef struct {
    float *piece; /* PIECE elements, or the largest transposed matrix */
    float *row;   /* one row of that matrix as the file has it */
} Staging;

static Status staging_create(Staging *staging, TensorList list) {
    int64_t piece = PIECE, row = 1;
    for (int64_t i = 0; i < list.count; i++) {
        if (!list.items[i].transposed) continue;
        piece = larger(piece, tensor_numel(list.items[i].tensor));
        row = larger(row, list.items[i].tensor.shape[0]);
    }
    *staging = (Staging){.piece = malloc((size_t)piece * sizeof(float)), .row = malloc((size_t)row * sizeof(float))};
    if (staging->piece && staging->row) return status_ok();
    return status_error(STATUS_OUT_OF_MEMORY, "no memory to stage tensors: %lld bytes",
                        (long long)((piece + row) * (int64_t)sizeof(float)));
}

static void staging_free(Staging *staging) {
    free(staging->piece);
    free(staging->row);
}

static Tensor flat(Tensor t) {
    return tensor_reshape(t, 1, (int64_t[]){tensor_numel(t)});
}

/* The tensor in the file's order: contiguous stretches, one after another. Not of a transposed one. */
static int64_t file_stretches(const FileTensor *t) {
    return t->heads ? 2 * t->heads : 1;
}

static Tensor file_stretch(const FileTensor *t, int64_t i) {
    if (!t->heads) return t->tensor;
    const int64_t head = i / 2, firsts = t->heads * t->first_rows;
    const int64_t second_rows = (t->tensor.shape[0] - firsts) / t->heads;
    return i % 2 ? tensor_slice(t->tensor, 0, firsts + head * second_rows, second_rows)
                 : tensor_slice(t->tensor, 0, head * t->first_rows, t->first_rows);
}

static Status write_stretch(Backend *be, SafetensorsWriter *w, Tensor t, const Staging *staging) {
    int64_t count = tensor_numel(t);
    Status status = status_ok();
    for (int64_t start = 0; start < count && !status.code; start += PIECE) {
        int64_t n = smaller(count - start, PIECE);
        backend_to_host(be, staging->piece, tensor_slice(flat(t), 0, start, n));
        status = safetensors_writer_append(w, staging->piece, n * (int64_t)sizeof(float));
    }
    return status;
}

static Status write_tensor(Backend *be, SafetensorsWriter *w, const FileTensor *t, const Staging *staging) {
    Status status = status_ok();
    for (int64_t i = 0; i < file_stretches(t) && !status.code; i++)
        status = write_stretch(be, w, file_stretch(t, i), staging);
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
        int64_t n = smaller(count - start, PIECE);
        status = safetensors_read_f32(file, entry, first + start, n, staging->piece);
        backend_from_host(be, tensor_slice(flat(t), 0, start, n), staging->piece);
    }
    return status;
}

static Status read_tensor(Backend *be, const SafetensorsFile *file, const FileTensor *t, const Staging *staging) {
    const SafetensorsEntry *entry = safetensors_find(file, t->name);
    int64_t first = 0;
    Status status = status_ok();
    for (int64_t i = 0; i < file_stretches(t) && !status.code; i++) {
        Tensor stretch = file_stretch(t, i);
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

/* ---- files ------------------------------------------------------------------------------------------------------ */

Status tensor_file_write(const char *path, Backend *be, TensorList list, FileSum *sum) {
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

static bool same_entry(const SafetensorsEntry *a, const SafetensorsEntry *b) {
    return a->dtype == b->dtype && a->ndim == b->ndim && memcmp(a->shape, b->shape, sizeof a->shape) == 0;
}

/* The first optional tensor that the file lacks or has in another shape. */
static const FileTensor *find_missing(const SafetensorsFile *file, const TensorList *list) {
    for (int64_t i = 0; i < list->count; i++) {
        if (!list->items[i].optional) continue;
        const SafetensorsEntry expected = entry_of(&list->items[i]);
        const SafetensorsEntry *found = safetensors_find(file, expected.name);
        if (!found || !same_entry(found, &expected)) return &list->items[i];
    }
    return NULL;
}

static bool same_group(const char *a, const char *b) {
    const size_t length = strcspn(a, ".");
    return strcspn(b, ".") == length && strncmp(a, b, length) == 0;
}

void tensor_list_drop_missing(TensorList *list, const SafetensorsFile *file) {
    for (const FileTensor *missing; (missing = find_missing(file, list));) {
        const FileTensor group = *missing;
        int64_t kept = 0;
        for (int64_t i = 0; i < list->count; i++)
            if (!list->items[i].optional || !same_group(list->items[i].name, group.name))
                list->items[kept++] = list->items[i];
        list->count = kept;
    }
}

Status tensor_file_check(const SafetensorsFile *file, TensorList list, int64_t others, const char *keys) {
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
    int64_t file_count = file->count - others, list_count = 0;
    for (int64_t i = 0; i < list.count; i++) list_count += list.items[i].optional ? 0 : 1;
    if (file_count != list_count)
        return status_error(STATUS_BAD_INPUT,
                            "%s: there are %lld tensors, but this run has %lld; compare %s with the run's config.json",
                            file->path, (long long)file_count, (long long)list_count, keys);
    return status_ok();
}

Status tensor_file_read(const SafetensorsFile *file, Backend *be, TensorList list) {
    Staging staging = {0};
    Status status = staging_create(&staging, list);
    for (int64_t i = 0; i < list.count && !status.code; i++) {
        const FileTensor *t = &list.items[i];
        status = t->transposed ? read_transposed(be, file, t, &staging) : read_tensor(be, file, t, &staging);
    }
    staging_free(&staging);
    return status;
}
