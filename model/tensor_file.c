/* Tensors to and from a safetensors file; see tensor_file.h. Each has a copy on the host meanwhile, since device memory
 * is never assumed to be readable, and goes line by line from there.
 */
#include "model/tensor_file.h"

#include <stdlib.h>
#include <string.h>

#include "base/integer.h"

Status tensor_list_allocate(TensorList *list, int64_t count) {
    *list = (TensorList){.items = calloc((size_t)count + 1, sizeof *list->items), .count = count};
    if (list->items) return status_ok();
    return NO_MEMORY("no memory to name %lld tensors", (long long)count);
}

/* ---- tensor by tensor ------------------------------------------------------------------------------------------- */

/* How the file's tensor lies in memory: as lines of `length` elements, `stride` apart. */
typedef struct {
    int64_t lines, length, stride;
} Lines;

static Lines lines_of(const FileTensor *t) {
    const int64_t rows = t->tensor.shape[0], columns = t->tensor.shape[1];
    if (t->tensor.ndim != 2) return (Lines){1, tensor_numel(t->tensor), 1};
    return t->transposed ? (Lines){columns, rows, columns} : (Lines){rows, columns, 1};
}

/* Host memory for one tensor after another. */
typedef struct {
    float *tensor; /* as it is here */
    float *line;   /* of the tensor in the file */
} Staging;

static Status staging_create(Staging *staging, TensorList list) {
    int64_t elements = 1, longest = 1;
    for (int64_t i = 0; i < list.count; i++) {
        elements = larger(elements, tensor_numel(list.items[i].tensor));
        longest = larger(longest, lines_of(&list.items[i]).length);
    }
    const size_t size = sizeof(float);
    *staging = (Staging){.tensor = malloc((size_t)elements * size), .line = malloc((size_t)longest * size)};
    if (staging->tensor && staging->line) return status_ok();
    return NO_MEMORY("no memory to stage tensors: %lld bytes", (long long)((elements + longest) * (int64_t)size));
}

static void staging_free(Staging *staging) {
    free(staging->tensor);
    free(staging->line);
}

/* The first element of a line. */
static int64_t line_start(const FileTensor *t, const Lines *l, int64_t line) {
    if (t->transposed) return line;
    if (!t->heads) return line * l->length;
    const int64_t rows = l->lines / t->heads, head = line / rows, row = line % rows, others = rows - t->first_rows;
    const bool first = row < t->first_rows;
    return l->length *
           (first ? head * t->first_rows + row : t->heads * t->first_rows + head * others + row - t->first_rows);
}

static Status write_tensor(Backend *be, SafetensorsWriter *w, const FileTensor *t, const Staging *staging) {
    const Lines l = lines_of(t);
    Status status = status_ok();
    backend_to_host(be, staging->tensor, t->tensor);
    for (int64_t line = 0; line < l.lines && !status.code; line++) {
        const float *start = staging->tensor + line_start(t, &l, line);
        for (int64_t i = 0; i < l.length; i++) staging->line[i] = start[i * l.stride];
        status = safetensors_writer_append(w, staging->line, l.length * (int64_t)sizeof(float));
    }
    return status;
}

static Status read_tensor(Backend *be, const SafetensorsFile *file, const FileTensor *t, const Staging *staging) {
    const SafetensorsEntry *entry = safetensors_find(file, t->name);
    const Lines l = lines_of(t);
    Status status = status_ok();
    for (int64_t line = 0; line < l.lines && !status.code; line++) {
        float *start = staging->tensor + line_start(t, &l, line);
        status = safetensors_read_f32(file, entry, line * l.length, l.length, staging->line);
        for (int64_t i = 0; i < l.length; i++) start[i * l.stride] = staging->line[i];
    }
    backend_from_host(be, t->tensor, staging->tensor);
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
    if (!entries) return NO_MEMORY("%s: no memory for its header", path);
    for (int64_t i = 0; i < list.count; i++) entries[i] = entry_of(&list.items[i]);
    if (FAILED(status, staging_create(&staging, list))) goto done;
    if (FAILED(status, safetensors_writer_open(&w, path, entries, list.count, metadata, 1))) goto done;
    for (int64_t i = 0; i < list.count; i++)
        if (FAILED(status, write_tensor(be, &w, &list.items[i], &staging))) goto done;
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
            return BAD_INPUT("%s: there is no tensor \"%s\"; compare %s with the run's config.json", file->path, name,
                             keys);
        if (!same_entry(found, &expected))
            return BAD_INPUT("%s: tensor \"%s\" is %s, but this run needs %s; compare %s with the run's config.json",
                             file->path, name, safetensors_describe(found, found_text, sizeof found_text),
                             safetensors_describe(&expected, expected_text, sizeof expected_text), keys);
    }
    int64_t file_count = file->count - others, list_count = 0;
    for (int64_t i = 0; i < list.count; i++) list_count += list.items[i].optional ? 0 : 1;
    if (file_count != list_count)
        return BAD_INPUT("%s: there are %lld tensors, but this run has %lld; compare %s with the run's config.json",
                         file->path, (long long)file_count, (long long)list_count, keys);
    return status_ok();
}

Status tensor_file_read(const SafetensorsFile *file, Backend *be, TensorList list) {
    Staging staging = {0};
    Status status = staging_create(&staging, list);
    for (int64_t i = 0; i < list.count && !status.code; i++) status = read_tensor(be, file, &list.items[i], &staging);
    staging_free(&staging);
    return status;
}
