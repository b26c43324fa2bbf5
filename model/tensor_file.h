/* Named tensors of a backend to and from a safetensors file, whatever they mean. Private to model/.
 *
 * In the file a tensor may be transposed, or its rows may follow each other in another order: here all heads' first
 * rows come first, there each head's lie together.
 *
 *      here    | head 0's first_rows | head 1's | ... | head 0's other rows | head 1's | ... |
 *      there   | head 0's first_rows | head 0's others | head 1's first_rows | head 1's others | ... |
 */
#pragma once

#include "model/safetensors.h"
#include "ops/backend.h"

enum { FILE_TENSOR_NAME_SIZE = 96 };

typedef struct {
    char name[FILE_TENSOR_NAME_SIZE];
    Tensor tensor;      /* (rows, columns) or (rows), f32, contiguous, in the backend's memory */
    bool transposed;    /* the file holds (columns, rows) */
    int64_t heads;      /* 0: the file's rows are in this order */
    int64_t first_rows; /* of each head */
    bool optional;      /* a file may lack it, and then lacks its group: the names that agree up to the first dot */
} FileTensor;

typedef struct {
    FileTensor *items; /* the caller frees them */
    int64_t count;
} TensorList;

typedef struct {
    int64_t size;
    uint64_t hash; /* file_hash of all bytes */
} FileSum;

Status tensor_list_allocate(TensorList *list, int64_t count);

Status tensor_file_write(const char *path, Backend *be, TensorList list, FileSum *sum);

/* Takes groups of optional tensors off the list unless the file has the whole group in these shapes. */
void tensor_list_drop_missing(TensorList *list, const SafetensorsFile *file);

/* The file has every tensor of the list in its shape and, beside the optional ones, no more but `others`. An error
 * names the first that differs and `keys`, where in the configuration shapes come from. */
Status tensor_file_check(const SafetensorsFile *file, TensorList list, int64_t others, const char *keys);

/* After the check. */
Status tensor_file_read(const SafetensorsFile *file, Backend *be, TensorList list);
