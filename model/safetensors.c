/* Reading and writing of safetensors files; see safetensors.h.
 *
 * The reader trusts nothing: the header is parsed within its length, each entry is checked by itself, then all of them
 * together, sorted once by offset (holes, overlaps) and once by name (duplicates).
 */
#include "model/safetensors.h"

#include <endian.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/config_json.h"
#include "ops/tensor.h"

enum { PREFIX = 8, ALIGNMENT = 8 };
static const int64_t HEADER_LIMIT = 100 << 20; /* the reference implementation's own */
static const char METADATA[] = "__metadata__";

typedef struct {
    const char *name;
    int64_t size;
} DTypeRow;

static const DTypeRow dtypes[SAFETENSORS_DTYPE_COUNT] = {
#define X(ID, bytes) [SAFETENSORS_##ID] = {#ID, bytes},
    SAFETENSORS_DTYPES(X)
#undef X
};

int64_t safetensors_numel(const SafetensorsEntry *entry) {
    int64_t n = 1;
    for (int i = 0; i < entry->ndim; i++) n *= entry->shape[i];
    return n;
}

char *safetensors_describe(const SafetensorsEntry *entry, char *buffer, int64_t size) {
    int used = snprintf(buffer, (size_t)size, "%s (", dtypes[entry->dtype].name);
    for (int i = 0; i < entry->ndim && used < size; i++)
        used += snprintf(buffer + used, (size_t)(size - used), "%s%lld", i ? "," : "", (long long)entry->shape[i]);
    if (used < size) snprintf(buffer + used, (size_t)(size - used), ")");
    return buffer;
}

/* ---- one entry of the header ------------------------------------------------------------------------------------ */

static Status refuse(const SafetensorsFile *file, const char *tensor, const char *reason) {
    return BAD_INPUT("%s: tensor \"%.200s\" %s", file->path, tensor, reason);
}

/* -1: there is none. */
static int find_dtype(const char *name) {
    for (int i = 0; i < SAFETENSORS_DTYPE_COUNT; i++)
        if (strcmp(dtypes[i].name, name) == 0) return i;
    return -1;
}

static Status read_shape(SafetensorsFile *file, const cJSON *item, const cJSON *shape, SafetensorsEntry *entry) {
    if (!cJSON_IsArray(shape)) return refuse(file, item->string, "has no array \"shape\"");
    const cJSON *dimension;
    cJSON_ArrayForEach(dimension, shape) {
        if (entry->ndim == SAFETENSORS_MAX_DIMS) return refuse(file, item->string, "has more than 8 dimensions");
        if (!json_get_count(dimension, &entry->shape[entry->ndim++]))
            return refuse(file, item->string, "has a dimension that is not an integer >= 0");
    }
    return status_ok();
}

/* numel * element size == end - begin, without overflow on the way. */
static bool shape_matches_bytes(const SafetensorsEntry *entry) {
    int64_t bytes = dtypes[entry->dtype].size;
    for (int i = 0; i < entry->ndim; i++)
        if (__builtin_mul_overflow(bytes, entry->shape[i], &bytes)) return false;
    return bytes == entry->end - entry->begin;
}

static Status read_entry(SafetensorsFile *file, const cJSON *item, int64_t data_size, SafetensorsEntry *entry) {
    *entry = (SafetensorsEntry){.name = item->string};
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(item, "dtype");
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(item, "shape");
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(item, "data_offsets");
    /* three fields that are all found by name are three different ones: no field comes twice */
    if (!cJSON_IsObject(item) || cJSON_GetArraySize(item) != 3 || !dtype || !shape || !offsets)
        return refuse(file, item->string, "does not have exactly the fields dtype, shape and data_offsets");
    const int known = cJSON_IsString(dtype) ? find_dtype(dtype->valuestring) : -1;
    if (known < 0) return refuse(file, item->string, "has an unknown dtype");
    entry->dtype = (SafetensorsDType)known;
    Status status = read_shape(file, item, shape, entry);
    if (status.code) return status;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !json_get_count(cJSON_GetArrayItem(offsets, 0), &entry->begin) ||
        !json_get_count(cJSON_GetArrayItem(offsets, 1), &entry->end) || entry->begin > entry->end)
        return refuse(file, item->string, "has data_offsets that are not a pair of integers begin <= end");
    if (entry->end > data_size)
        return BAD_INPUT("%s: tensor \"%.200s\" ends at data byte %lld, but the file holds %lld: it is cut short",
                         file->path, item->string, (long long)entry->end, (long long)data_size);
    if (!shape_matches_bytes(entry)) return refuse(file, item->string, "has a shape that does not match its bytes");
    return status;
}

/* ---- all entries together --------------------------------------------------------------------------------------- */

static int compare_offsets(const void *a, const void *b) {
    const SafetensorsEntry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static int compare_names(const void *a, const void *b) {
    return strcmp((*(SafetensorsEntry *const *)a)->name, (*(SafetensorsEntry *const *)b)->name);
}

static Status check_layout(SafetensorsFile *file, int64_t data_size) {
    int64_t expected = 0;
    qsort(file->entries, (size_t)file->count, sizeof *file->entries, compare_offsets);
    for (int64_t i = 0; i < file->count; i++) {
        const SafetensorsEntry *entry = &file->entries[i];
        if (entry->begin < expected) return refuse(file, entry->name, "overlaps the tensor before it");
        if (entry->begin > expected) return refuse(file, entry->name, "leaves a hole before it");
        expected = entry->end;
    }
    if (expected != data_size)
        return BAD_INPUT("%s: the tensors end at data byte %lld, but the file goes on to %lld", file->path,
                         (long long)expected, (long long)data_size);
    return status_ok();
}

static Status check_names(SafetensorsFile *file) {
    for (int64_t i = 0; i < file->count; i++) file->by_name[i] = &file->entries[i];
    qsort(file->by_name, (size_t)file->count, sizeof *file->by_name, compare_names);
    for (int64_t i = 1; i < file->count; i++)
        if (compare_names(&file->by_name[i - 1], &file->by_name[i]) == 0)
            return refuse(file, file->by_name[i]->name, "is there twice");
    return status_ok();
}

/* All values are strings, and there is one such object at most. */
static Status check_metadata(SafetensorsFile *file, const cJSON *header) {
    const cJSON *item, *value;
    int seen = 0;
    cJSON_ArrayForEach(item, header) {
        if (strcmp(item->string, METADATA) != 0) continue;
        if (seen++ || !cJSON_IsObject(item)) return BAD_INPUT("%s: __metadata__ is not one object", file->path);
        cJSON_ArrayForEach(value, item) {
            if (!cJSON_IsString(value))
                return BAD_INPUT("%s: __metadata__ holds \"%.200s\", which is not a string", file->path, value->string);
        }
    }
    return status_ok();
}

static Status read_entries(SafetensorsFile *file, const cJSON *header, int64_t data_size) {
    int64_t items = cJSON_GetArraySize(header);
    file->entries = calloc((size_t)items + 1, sizeof *file->entries);
    file->by_name = calloc((size_t)items + 1, sizeof *file->by_name);
    if (!file->entries || !file->by_name)
        return NO_MEMORY("%s: no memory for %lld tensors", file->path, (long long)items);
    const cJSON *item;
    Status status = check_metadata(file, header);
    cJSON_ArrayForEach(item, header) {
        if (status.code) return status;
        if (strcmp(item->string, METADATA) != 0)
            status = read_entry(file, item, data_size, &file->entries[file->count++]);
    }
    if (!status.code) status = check_layout(file, data_size);
    if (!status.code) status = check_names(file);
    return status;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

/* The header's JSON object; NULL with a reason in `status`. */
static cJSON *parse_header(const SafetensorsFile *file, const char *text, int64_t length, Status *status) {
    const char *end = NULL;
    cJSON *header = cJSON_ParseWithLengthOpts(text, (size_t)length, &end, false);
    int64_t used = end ? end - text : 0;
    while (header && used < length && text[used] == ' ') used++;
    if (cJSON_IsObject(header) && used == length) return header;
    *status = BAD_INPUT("%s: the header is not one JSON object; it goes wrong near byte %lld", file->path,
                        (long long)(PREFIX + used));
    cJSON_Delete(header);
    return NULL;
}

Status safetensors_parse(SafetensorsFile *file, const char *path, const void *bytes, int64_t size) {
    *file = (SafetensorsFile){.size = size};
    snprintf(file->path, sizeof file->path, "%s", path);
    if (size < PREFIX) return BAD_INPUT("%s: %lld bytes are too few for a safetensors file", path, (long long)size);
    uint64_t length;
    memcpy(&length, bytes, PREFIX);
    length = le64toh(length);
    if (length > (uint64_t)HEADER_LIMIT || length > (uint64_t)(size - PREFIX))
        return BAD_INPUT("%s: the header would have %llu bytes; the file has %lld, and 100 MiB is the limit", path,
                         (unsigned long long)length, (long long)size);
    Status status = status_ok();
    const char *text = (const char *)bytes + PREFIX;
    cJSON *header = parse_header(file, text, (int64_t)length, &status);
    if (!header) return status;
    file->header = header;
    file->data = (const unsigned char *)text + length;
    status = read_entries(file, header, size - PREFIX - (int64_t)length);
    if (status.code) safetensors_close(file);
    return status;
}

static Status map_file(const char *path, void **map, int64_t *size) {
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return file_error(path, "open");
    Status status = status_ok();
    if (fstat(fd, &info) < 0) {
        status = file_error(path, "read");
    } else if (!S_ISREG(info.st_mode) || info.st_size < PREFIX) {
        status = BAD_INPUT("%s: not a safetensors file: too short, or not a regular file", path);
    } else {
        *size = info.st_size;
        *map = mmap(NULL, (size_t)*size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (*map == MAP_FAILED) status = file_error(path, "map");
    }
    close(fd);
    return status;
}

Status safetensors_open(SafetensorsFile *file, const char *path) {
    void *map = NULL;
    int64_t size = 0;
    Status status = map_file(path, &map, &size);
    if (status.code) return status;
    if (FAILED(status, safetensors_parse(file, path, map, size)))
        munmap(map, (size_t)size);
    else
        file->map = map;
    return status;
}

void safetensors_close(SafetensorsFile *file) {
    if (file->map) munmap(file->map, (size_t)file->size);
    cJSON_Delete(file->header);
    free(file->by_name);
    free(file->entries);
    *file = (SafetensorsFile){0};
}

const SafetensorsEntry *safetensors_find(const SafetensorsFile *file, const char *name) {
    SafetensorsEntry key = {.name = name}, *wanted = &key;
    if (file->count == 0) return NULL;
    SafetensorsEntry **found = bsearch(&wanted, file->by_name, (size_t)file->count, sizeof *found, compare_names);
    return found ? *found : NULL;
}

Status safetensors_read_f32(const SafetensorsFile *file, const SafetensorsEntry *entry, int64_t start, int64_t count,
                            float *out) {
    CHECK(start >= 0 && count >= 0 && start + count <= safetensors_numel(entry), "[%lld, +%lld) of \"%s\"",
          (long long)start, (long long)count, entry->name);
    /* memcpy: a foreign file's data may lie at any byte */
    const unsigned char *source = file->data + entry->begin + start * dtypes[entry->dtype].size;
    if (entry->dtype == SAFETENSORS_F32) {
        memcpy(out, source, (size_t)count * sizeof *out);
        return status_ok();
    }
    if (entry->dtype != SAFETENSORS_BF16)
        return BAD_INPUT("%s: tensor \"%.200s\" is %s; only F32 and BF16 can be read", file->path, entry->name,
                         dtypes[entry->dtype].name);
    for (int64_t i = 0; i < count; i++) {
        bf16 half;
        memcpy(&half, source + i * (int64_t)sizeof half, sizeof half);
        out[i] = bf16_to_f32(half);
    }
    return status_ok();
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static Status put(SafetensorsWriter *w, const void *bytes, int64_t size) {
    w->hash = file_hash(w->hash, bytes, size);
    w->size += size;
    return file_writer_put(&w->out, bytes, size);
}

/* Adds what `entry` says, with its bytes from `begin` on, to the header. Returns where they end. */
static int64_t describe_entry(cJSON *header, const SafetensorsEntry *entry, int64_t begin) {
    int64_t end = begin + safetensors_numel(entry) * dtypes[entry->dtype].size;
    cJSON *item = cJSON_AddObjectToObject(header, entry->name);
    cJSON_AddStringToObject(item, "dtype", dtypes[entry->dtype].name);
    cJSON *shape = cJSON_AddArrayToObject(item, "shape");
    for (int i = 0; i < entry->ndim; i++) cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)entry->shape[i]));
    cJSON *offsets = cJSON_AddArrayToObject(item, "data_offsets");
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)begin));
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)end));
    return end;
}

/* The header's text, NUL-terminated; NULL without memory. */
static char *header_text(const SafetensorsEntry *entries, int64_t count, const SafetensorsMetadata *metadata,
                         int64_t metadata_count, int64_t *data_size) {
    cJSON *header = cJSON_CreateObject();
    cJSON *strings = metadata_count > 0 ? cJSON_AddObjectToObject(header, METADATA) : NULL;
    for (int64_t i = 0; i < metadata_count; i++) cJSON_AddStringToObject(strings, metadata[i].key, metadata[i].value);
    *data_size = 0;
    for (int64_t i = 0; i < count; i++) *data_size = describe_entry(header, &entries[i], *data_size);
    char *text = cJSON_PrintUnformatted(header);
    cJSON_Delete(header);
    return text;
}

static Status put_header(SafetensorsWriter *w, const char *text) {
    static const char spaces[ALIGNMENT] = "        ";
    int64_t length = (int64_t)strlen(text), padding = (ALIGNMENT - (PREFIX + length) % ALIGNMENT) % ALIGNMENT;
    const uint64_t prefix = htole64((uint64_t)(length + padding));
    Status status = put(w, &prefix, PREFIX);
    if (!status.code) status = put(w, text, length);
    if (!status.code) status = put(w, spaces, padding);
    return status;
}

Status safetensors_writer_open(SafetensorsWriter *w, const char *path, const SafetensorsEntry *entries, int64_t count,
                               const SafetensorsMetadata *metadata, int64_t metadata_count) {
    *w = (SafetensorsWriter){.hash = FILE_HASH_START};
    char *text = header_text(entries, count, metadata, metadata_count, &w->remaining);
    if (!text) return NO_MEMORY("%s: no memory for its header", path);
    Status status = file_writer_open(&w->out, path);
    if (!status.code) status = put_header(w, text);
    cJSON_free(text);
    return status;
}

Status safetensors_writer_append(SafetensorsWriter *w, const void *bytes, int64_t size) {
    CHECK(size >= 0 && size <= w->remaining, "%lld bytes, where %lld are still to come", (long long)size,
          (long long)w->remaining);
    w->remaining -= size;
    return put(w, bytes, size);
}

Status safetensors_writer_finish(SafetensorsWriter *w) {
    CHECK(w->remaining == 0, "%lld bytes of %s are still to come", (long long)w->remaining, w->out.path);
    return file_writer_finish(&w->out);
}

void safetensors_writer_abandon(SafetensorsWriter *w) {
    file_writer_abandon(&w->out);
}
