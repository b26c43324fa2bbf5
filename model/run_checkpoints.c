/* The checkpoints of a run: RUN_DIR/checkpoints/step_00000500, found and pruned; see checkpoint.h. */
#include "model/checkpoint_files.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

static const char CHECKPOINTS[] = "checkpoints";

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

typedef struct {
    char folder[PATH_SIZE];
    struct dirent **entries;
    int64_t count;
} Listing;

typedef int Filter(const struct dirent *entry);

static int is_checkpoint(const struct dirent *entry) {
    return step_of(entry->d_name) >= 0;
}

/* "step_00000500.tmp" */
static int is_unfinished(const struct dirent *entry) {
    const char *end = strrchr(entry->d_name, '.');
    return strncmp(entry->d_name, "step_", 5) == 0 && end && strcmp(end, ".tmp") == 0;
}

static int newest_first(const struct dirent **a, const struct dirent **b) {
    const int64_t x = step_of((*a)->d_name), y = step_of((*b)->d_name);
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Entries of the folder of a run's checkpoints, broken ones too, by step; the caller frees them. No folder: none. */
static Status list_entries(Listing *list, const char *run_dir, Filter *filter) {
    *list = (Listing){0};
    Status status = path_join(list->folder, run_dir, CHECKPOINTS);
    if (status.code) return status;
    const int count = scandir(list->folder, &list->entries, filter, newest_first);
    if (count < 0) return errno == ENOENT ? status : file_error(list->folder, "list");
    list->count = count;
    return status;
}

static void free_entries(Listing *list) {
    for (int64_t i = 0; i < list->count; i++) free(list->entries[i]);
    free(list->entries);
}

Status checkpoint_find_newest_intact(const char *run_dir, char *dir, FILE *notes) {
    Listing list;
    CheckpointState state;
    Status status = list_entries(&list, run_dir, is_checkpoint);
    for (int64_t i = 0; i < list.count && !status.code; i++) {
        char candidate[PATH_SIZE];
        if (FAILED(status, path_join(candidate, list.folder, list.entries[i]->d_name))) break;
        Status broken = checkpoint_verify(candidate, &state);
        if (!broken.code) {
            memcpy(dir, candidate, sizeof candidate);
            goto done;
        }
        if (notes) fprintf(notes, "passing over a broken checkpoint: %s\n", broken.message);
    }
    if (!status.code)
        status = BAD_INPUT("%s: there is no intact checkpoint under %s/ (broken ones: %lld)", run_dir, CHECKPOINTS,
                           (long long)list.count);
done:
    free_entries(&list);
    return status;
}

/* All but the `keep` newest of those up to step `newest`. */
static Status remove_entries(const char *run_dir, Filter *filter, int64_t newest, int64_t keep) {
    Listing list;
    int64_t kept = 0;
    Status status = list_entries(&list, run_dir, filter);
    for (int64_t i = 0; i < list.count && !status.code; i++) {
        char path[PATH_SIZE];
        if (step_of(list.entries[i]->d_name) <= newest && kept++ < keep) continue;
        status = path_join(path, list.folder, list.entries[i]->d_name);
        if (!status.code) status = folder_remove(path);
    }
    free_entries(&list);
    return status;
}

Status checkpoint_prune(const char *run_dir, int64_t newest, int64_t keep) {
    Status status = keep == 0 ? status_ok() : remove_entries(run_dir, is_checkpoint, newest, keep);
    return status.code ? status : remove_entries(run_dir, is_unfinished, 0, 0);
}

Status checkpoint_find_weights(const char *from, char *dir) {
    char path[PATH_SIZE];
    CheckpointState state;
    Status status = path_join(path, from, checkpoint_files[FILE_MODEL]);
    if (status.code) return status;
    if (!file_exists(path)) {
        status = path_join(path, from, CHECKPOINTS);
        if (status.code) return status;
        if (file_exists(path)) return checkpoint_find_newest_intact(from, dir, stderr);
        return BAD_INPUT("train.init_from: %s is neither a run nor a checkpoint: it holds neither %s nor %s/", from,
                         checkpoint_files[FILE_MODEL], CHECKPOINTS);
    }
    snprintf(dir, PATH_SIZE, "%s", from);
    status = path_join(path, from, checkpoint_state_file);
    return status.code || !file_exists(path) ? status : checkpoint_verify(from, &state);
}
