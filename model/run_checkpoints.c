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
        status = status_error(STATUS_BAD_INPUT, "%s: there is no intact checkpoint under %s/ (broken ones: %lld)",
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

Status checkpoint_find_weights(const char *from, char *dir) {
    char path[PATH_SIZE];
    CheckpointState state;
    Status status = path_join(path, from, checkpoint_files[FILE_MODEL]);
    if (status.code) return status;
    if (!file_exists(path)) {
        status = path_join(path, from, CHECKPOINTS);
        if (status.code) return status;
        if (file_exists(path)) return checkpoint_find_newest_intact(from, dir, stderr);
        return status_error(STATUS_BAD_INPUT,
                            "train.init_from: %s is neither a run nor a checkpoint: it holds neither %s nor %s/", from,
                            checkpoint_files[FILE_MODEL], CHECKPOINTS);
    }
    snprintf(dir, PATH_SIZE, "%s", from);
    status = path_join(path, from, checkpoint_state_file);
    return status.code || !file_exists(path) ? status : checkpoint_verify(from, &state);
}
