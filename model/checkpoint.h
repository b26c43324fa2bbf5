/* Checkpoints: a model, its optimizer's state and the run's position, in a folder that Hugging Face transformers loads.
 *
 *      RUN_DIR/checkpoints/step_00000500/
 *          model.safetensors        master weights, F32, with transformers' names      (huggingface.h)
 *          config.json              transformers' description of the model
 *          optimizer.safetensors    the optimizer's tensors, by the names that it gives them
 *          state.json               position, the run's configuration, size and checksum of each file above and, in its
 *                                   last line, of itself
 *
 * A checkpoint is written as step_00000500.tmp, synced, and renamed: under its name it is whole, whenever the machine
 * stops. A checkpoint is *intact* if every size and checksum (FNV-1a, 64 bit) agrees; only intact ones are loaded.
 */
#pragma once

#include <stdio.h>

#include "model/gpt.h"

typedef struct {
    int64_t step;                    /* finished */
    int64_t updates;                 /* steps that changed the weights */
    int64_t samples, tokens;         /* seen */
    uint64_t data_fingerprint;       /* dataset_fingerprint of the training data */
    const char *config_json;         /* of the run. Input of checkpoint_save; NULL in a state that was read */
    char backend[16], precision[16]; /* of the run. Set in a state that was read; checkpoint_save asks the model */
} CheckpointState;

/* RUN_DIR/checkpoints/step_00000500 into a buffer of PATH_SIZE. */
Status checkpoint_path(char *buffer, const char *run_dir, int64_t step);

/* Writes the checkpoint `dir`, with its parents; one that is there already is replaced. After a failure whatever was
 * there before is still there, but for a file system that cannot swap two folders and fails between removing the old
 * one and renaming the new. optimizer: f32, contiguous, in the backend's memory, uniquely named: the optimizer's after
 * a block ("layers.3.q.m", "embed.m"), optional ones of measurements after their group ("shadow.updates"), which is no
 * block's name. */
Status checkpoint_save(const char *dir, const Gpt *gpt, const CheckpointState *state, const NamedTensor *optimizer,
                       int64_t optimizer_count);

/* Sizes and checksums of all files, and the state. An error names the file that is broken. */
Status checkpoint_verify(const char *dir, CheckpointState *state);

/* Path of the intact checkpoint with the highest step, into a buffer of PATH_SIZE. Each broken one passed over is a
 * line in `notes`, unless that is NULL. */
Status checkpoint_find_newest_intact(const char *run_dir, char *dir, FILE *notes);

/* Master weights and working copies, and the optimizer's tensors; optimizer NULL: the weights alone. Verifies the
 * files, then every name and shape, before the first weight changes: the file has every tensor asked for, and none of a
 * block that is not. A group of optional tensors is loaded if the file has all of it in these shapes, and left alone
 * otherwise; the file's own groups that nobody asks for are passed over. */
Status checkpoint_load(const char *dir, Gpt *gpt, CheckpointState *state, const NamedTensor *optimizer,
                       int64_t optimizer_count);

/* The weights alone, for a new run with an optimizer and data of its own. from: a run (its newest intact checkpoint is
 * taken), a checkpoint, or any folder with transformers' config.json and a model.safetensors in F32; files that come
 * with checksums are verified. Refuses another model by the key that differs, before the first weight changes; with
 * another context it is the same model where positions are rotary. Writes the folder taken into dir (PATH_SIZE). */
Status checkpoint_load_weights(const char *from, Gpt *gpt, char *dir);

/* After a checkpoint of step `newest` was written: removes what interrupted writing left, and, unless `keep` is 0, all
 * but the `keep` newest up to that step. Checkpoints of later steps go too: they are broken, or the run would have been
 * resumed from them, and must not take an intact one's place. */
Status checkpoint_prune(const char *run_dir, int64_t newest, int64_t keep);
