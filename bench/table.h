/* The table of results: lines on stdout as they come, JSON lines, and the comparison with stored ratios. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

enum { INFO_MAX = 8, RESULTS_MAX = 160 };

/* Which way a ratio is good; NOT_COMPARED is for ratios that describe the machine. */
typedef enum { NOT_COMPARED, AT_LEAST, AT_MOST } GoalKind;

typedef struct {
    GoalKind kind;
    double value; /* NaN: none is set */
} Goal;

/* An absolute number beside the ratio: information, never compared. */
typedef struct {
    const char *name; /* with its unit: "tokens/s" */
    double value;
} Info;

typedef struct {
    const char *row;
    char name[40];        /* of the case, unique in its row */
    double ratio, spread; /* NaN: there is none */
    const char *of;       /* what the ratio is of */
    Goal goal;
    Info info[INFO_MAX]; /* up to the first without a name */
} Result;

typedef struct {
    FILE *json; /* NULL: none */
    int count;
    Result results[RESULTS_MAX];
} Table;

Status table_open(Table *table, const char *json_path); /* NULL: no JSON lines */
void table_close(Table *table);
void table_describe_machine(Table *table, const char *processor, const char *backend, double load);
void table_add(Table *table, Result result);

/* ratios.json: for each stored ratio the bound whose crossing is a regression, `at_least` or `at_most`.
 * Storing writes every result that has a ratio and a direction, with the default tolerance. */
Status table_store_ratios(const Table *table, const char *path);
/* Prints a line for each stored ratio; *regressions counts those beyond their bound or not measured. */
Status table_check_ratios(const Table *table, const char *path, int *regressions);
