/* What QK-Clip has done to each head since the run began: the memory that single "clipped" records lack.
 *
 * gamma is the product of all factors gamma_t = tau / S_t of the head (Kimi K2 report 2025, algorithm 1), in fp64: how
 * much smaller q·k is for all the clipping, had the optimizer not worked against it.
 *
 * A run that goes on from a checkpoint reads its own "clipped" records again: the ledger is then what an uninterrupted
 * run has, to the bit, since factors are written with the digits that read back.
 */
#pragma once

#include <cjson/cJSON.h>
#include <stdint.h>

#include "base/status.h"

typedef struct {
    int64_t first, last; /* steps that clipped the head */
    int64_t times;       /* 0: it never was, and the rest is 0 but gamma, which is 1 */
    double gamma;
} ClipEntry;

typedef struct {
    int64_t layers, heads;
    ClipEntry *entries; /* (layers, heads) */
} ClipLedger;

Status clip_ledger_init(ClipLedger *ledger, int64_t layers, int64_t heads);
void clip_ledger_free(ClipLedger *ledger);
int64_t clip_ledger_bytes(const ClipLedger *ledger);

/* Steps come in their order. */
void clip_ledger_note(ClipLedger *ledger, int64_t step, int64_t layer, int64_t head, float gamma);
/* What a line of metrics.jsonl says of clipping; a record that is not understood, or of another model, is passed over.
 * A MetricsReader (base/metrics.h). */
void clip_ledger_read_line(void *ledger, const cJSON *line);

double clip_ledger_share(const ClipLedger *ledger); /* of heads that have ever been clipped */
