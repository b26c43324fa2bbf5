/* safetensors files: named tensors behind a JSON header.
 *
 *      byte 0      u64, little-endian: length H of the header
 *           8      JSON, padded with spaces:
 *                      {"__metadata__": {"format": "pt"},
 *                       "wte": {"dtype": "F32", "shape": [50257, 768], "data_offsets": [0, b]}, ...}
 *       8 + H      the tensors' bytes, row-major, little-endian, without a hole; offsets count from here
 *
 * A file that was opened is sound: every entry's bytes lie inside the file, entries neither overlap nor leave a hole,
 * shapes agree with sizes, names are unique. Everything else is refused with file and reason.
 */
#pragma once

#include <stdio.h>

#include "base/file.h"

enum { SAFETENSORS_MAX_DIMS = 8 };

/* One row per dtype: identifier (its name in the file), bytes. */
/* clang-format off */
#define SAFETENSORS_DTYPES(X) \
    X(BOOL, 1) X(U8, 1) X(I8, 1) X(F8_E5M2, 1) X(F8_E4M3, 1) X(I16, 2) X(U16, 2) X(F16, 2) X(BF16, 2) \
    X(I32, 4) X(U32, 4) X(F32, 4) X(I64, 8) X(U64, 8) X(F64, 8)
/* clang-format on */

typedef enum {
#define X(ID, bytes) SAFETENSORS_##ID,
    SAFETENSORS_DTYPES(X)
#undef X
        SAFETENSORS_DTYPE_COUNT
} SafetensorsDType;

/* What a header says of one tensor; what the writer is told of it. The strings belong to whoever made the entry. */
typedef struct {
    const char *name;
    SafetensorsDType dtype;
    int ndim; /* 0: a scalar */
    int64_t shape[SAFETENSORS_MAX_DIMS];
    int64_t begin, end; /* bytes from the data's start; set by the reader, ignored by the writer */
} SafetensorsEntry;

int64_t safetensors_numel(const SafetensorsEntry *entry);
/* "F32 (4,8)" into a buffer of the caller, for messages. Returns the buffer. */
char *safetensors_describe(const SafetensorsEntry *entry, char *buffer, int64_t size);

/* ---- reading ---------------------------------------------------------------------------------------------------- */

typedef struct {
    char path[PATH_SIZE];
    void *map; /* the whole file, read-only; NULL when the bytes are the caller's */
    int64_t size;
    const unsigned char *data;
    int64_t count;
    SafetensorsEntry *entries; /* in the order of their bytes */
    SafetensorsEntry **by_name;
    void *header; /* the parsed JSON, which owns the names and the metadata */
} SafetensorsFile;

Status safetensors_open(SafetensorsFile *file, const char *path);
/* The same for bytes in memory, which must outlive `file`. `path` is for messages. */
Status safetensors_parse(SafetensorsFile *file, const char *path, const void *bytes, int64_t size);
void safetensors_close(SafetensorsFile *file);

const SafetensorsEntry *safetensors_find(const SafetensorsFile *file, const char *name); /* NULL: there is none */

/* out = elements [start, start+count) of an F32 or BF16 tensor, as fp32. Other dtypes are an error. */
Status safetensors_read_f32(const SafetensorsFile *file, const SafetensorsEntry *entry, int64_t start, int64_t count,
                            float *out);

/* ---- writing ---------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *key, *value;
} SafetensorsMetadata;

typedef struct {
    FileWriter out;
    int64_t remaining; /* bytes of data that are still to come */
    int64_t size;      /* of what was written, header included */
    uint64_t hash;     /* file_hash of the same */
} SafetensorsWriter;

/* Begins path.tmp with the header of these tensors, in this order; data starts at a multiple of 8. Names are unique.
 * After an error, here or later, nothing is left of the temporary file, and finish and abandon need not be called. */
Status safetensors_writer_open(SafetensorsWriter *w, const char *path, const SafetensorsEntry *entries, int64_t count,
                               const SafetensorsMetadata *metadata, int64_t metadata_count);
/* The tensors' bytes, one after the other, in pieces of any size. */
Status safetensors_writer_append(SafetensorsWriter *w, const void *bytes, int64_t size);
/* After the last byte: to the disk, and under its name. */
Status safetensors_writer_finish(SafetensorsWriter *w);
void safetensors_writer_abandon(SafetensorsWriter *w); /* removes the temporary file; after finish: does nothing */
