/* What checkpoint.c, checkpoint_state.c and run_checkpoints.c share. Private to model/. */
#pragma once

#include "model/checkpoint.h"
#include "model/tensor_file.h"

/* The files whose sums state.json keeps. */
typedef enum { FILE_MODEL, FILE_CONFIG, FILE_OPTIMIZER, FILE_COUNT } FileId;

extern const char *const checkpoint_files[FILE_COUNT];
extern const char checkpoint_state_file[];

Status checkpoint_state_write(const char *dir, const Gpt *gpt, const CheckpointState *state, const FileSum *sums);
Status checkpoint_state_read(const char *dir, CheckpointState *state, FileSum *sums);

/* The folder that holds the weights of `from`, a run, a checkpoint or a model's folder, into a buffer of PATH_SIZE;
 * verified if it can be. */
Status checkpoint_find_weights(const char *from, char *dir);
