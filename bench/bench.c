/* bench: how fast train_gpt is on this machine, as ratios to what the machine can do.
 *
 *      bench [quick | ROW...] [--json FILE] [--check FILE | --store FILE] [--program TRAIN_GPT]
 *
 * Without a row it measures all but what needs a GPU; `quick` measures the part of each that fits into a minute.
 * docs/performance.md says what the rows mean. Exit codes: 0 done; 1 a stored ratio is not reached any more; 2
 * something failed.
 */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "bench/rows.h"
#include "base/clock.h"
#include "base/threads.h"

/* IN_QUICK: has cases in the quick set. */
typedef enum { IN_QUICK, IN_ALL, IF_NAMED } Membership;

typedef struct {
    const char *name;
    RowFunction *run;
    Membership membership;
    const char *what;
} Row;

static const Row rows[] = {
    {"memory", row_memory, IN_ALL, "peak memory of a process against its plan"},
    {"gemm", row_gemm, IN_QUICK, "the ceiling: large square matrix products"},
    {"bandwidth", row_bandwidth, IN_QUICK, "the other ceiling: STREAM triad; AdamW against it"},
    {"linear", row_linear, IN_QUICK, "op_linear and its gradients at the models' shapes"},
    {"baby", row_models, IN_QUICK, "training steps of a model of 11 M parameters"},
    {"gpt2", row_models, IN_QUICK, "training steps of GPT-2 124M"},
    {"muon", row_muon, IN_QUICK, "a Muon step against an AdamW step at 64k tokens"},
    {"newton-schulz", row_newton_schulz, IN_QUICK, "orthogonalization alone"},
    {"overhead", row_overhead, IN_QUICK, "MaxLogit, spectra, metrics, checkpoints"},
    {"width", row_models, IN_ALL, "training steps, widths 128 to 768"},
    {"depth", row_models, IN_ALL, "2 to 24 layers"},
    {"context", row_models, IN_ALL, "contexts of 64 to 2048 tokens, as many tokens a step"},
    {"batch", row_models, IN_ALL, "1 to 32 sequences"},
    {"threads", row_models, IN_ALL, "1 and 2"},
    {"vocabulary", row_models, IN_ALL, "256 to 50257 tokens"},
    {"gpu", row_gpu, IF_NAMED, "training steps on a GPU, beside their prediction"},
};
enum { ROWS = sizeof rows / sizeof rows[0] };

typedef struct {
    bool quick, wanted[ROWS];
    const char *json, *check, *store, *program;
} Arguments;

static void print_usage(void) {
    printf(
        "usage: bench [quick | ROW...] [--json FILE] [--check FILE | --store FILE] [--program TRAIN_GPT]\n\nrows:\n");
    static const char *const also[] = {"; also in quick", "", "; only if named"};
    for (int i = 0; i < ROWS; i++) printf("  %-14s %s%s\n", rows[i].name, rows[i].what, also[rows[i].membership]);
}

static int find_row(const char *name) {
    for (int i = 0; i < ROWS; i++)
        if (!strcmp(rows[i].name, name)) return i;
    return -1;
}

static bool parse_option(Arguments *a, const char *name, const char *value) {
    const char **place = !strcmp(name, "--json")      ? &a->json
                         : !strcmp(name, "--check")   ? &a->check
                         : !strcmp(name, "--store")   ? &a->store
                         : !strcmp(name, "--program") ? &a->program
                                                      : NULL;
    if (place) *place = value;
    return place && value;
}

static bool parse(Arguments *a, int argc, char **argv) {
    bool any = false;
    *a = (Arguments){.program = "./train_gpt"};
    for (int i = 1; i < argc; i++) {
        const int row = find_row(argv[i]);
        if (row >= 0)
            any = a->wanted[row] = true;
        else if (!strcmp(argv[i], "quick"))
            a->quick = true;
        else if (!parse_option(a, argv[i], argv[i + 1]))
            return false;
        else
            i++;
    }
    for (int i = 0; i < ROWS && !any; i++) a->wanted[i] = rows[i].membership <= (a->quick ? IN_QUICK : IN_ALL);
    return true;
}

/* ---- the machine ------------------------------------------------------------------------------------------------ */

static void name_processor(char *name, size_t size) {
    char line[256];
    snprintf(name, size, "unknown processor");
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && fgets(line, sizeof line, file)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon) continue;
        snprintf(name, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        break;
    }
    if (file) fclose(file);
}

static Status describe_machine(Table *table) {
    Backend be;
    char processor[128];
    double load = nan("");
    Status status = bench_open_backend(&be, "auto");
    if (status.code) return status;
    name_processor(processor, sizeof processor);
    if (getloadavg(&load, 1) != 1) load = nan("");
    table_describe_machine(table, processor, be.description, load);
    backend_close(&be);
    return status;
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

static Status make_folder(char *path) {
    const char *parent = getenv("TMPDIR");
    Status status = path_join(path, parent ? parent : "/tmp", "train_gpt-bench-XXXXXX");
    if (!status.code && !mkdtemp(path)) status = status_error(STATUS_IO, "no folder can be made at %s", path);
    return status;
}

static Status measure(Bench *b, const Arguments *a) {
    Status status = describe_machine(&b->table);
    const double start = clock_seconds();
    for (int i = 0; i < ROWS && !status.code; i++) {
        if (!a->wanted[i]) continue;
        b->row = rows[i].name;
        status = rows[i].run(b);
    }
    printf("%.0f s\n", clock_seconds() - start);
    return status;
}

static Status compare(const Table *table, const Arguments *a, int *regressions) {
    Status status = a->store ? table_store_ratios(table, a->store) : status_ok();
    if (!status.code && a->check) status = table_check_ratios(table, a->check, regressions);
    return status;
}

int main(int argc, char **argv) {
    threads_shorten_spinning(argv); /* as ./train_gpt does */
    static Bench bench;
    Arguments arguments;
    int regressions = 0;
    Status status;
    if (!parse(&arguments, argc, argv)) {
        print_usage();
        return 2;
    }
    bench.quick = arguments.quick;
    bench.program = arguments.program;
    if (FAILED(status, table_open(&bench.table, arguments.json))) goto done;
    if (FAILED(status, make_folder(bench.folder))) goto done;
    status = measure(&bench, &arguments);
    if (!status.code) status = compare(&bench.table, &arguments, &regressions);
    folder_remove(bench.folder);
done:
    table_close(&bench.table);
    if (status.code) fprintf(stderr, "bench: %s\n", status.message);
    return status.code ? 2 : regressions > 0;
}
