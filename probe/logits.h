/* The census of a step's attention logits: of each head the largest logit and the largest magnitude, between which two
 * tokens of which sequence they are, and how many logits are beyond a threshold. op_logit_census over layers and
 * micro-batches; running results stay with the backend until they are read.
 */
#pragma once

#include "ops/backend.h"

typedef struct {
    float value;             /* NaN if some logit is; -infinity: none was seen */
    int64_t row, query, key; /* sequence within the step, positions in it; -1: nowhere */
} LogitPeak;

typedef struct {
    int64_t layer, head;
    LogitPeak peak[PEAKS];
    double above; /* logits beyond the threshold */
} LogitRecord;

typedef struct LogitProbe LogitProbe;
Status logit_probe_create(LogitProbe **probe, int64_t layers, int64_t heads, Backend *be);
void logit_probe_free(LogitProbe *probe);           /* NULL is fine */
int64_t logit_probe_bytes(const LogitProbe *probe); /* all that create took, for the plan */

void logit_probe_begin(LogitProbe *probe); /* of a step: nothing seen */
/* A layer's q (B,T,H,D) and k (B,T,K,D), as op_logit_census takes them. */
void logit_probe_add(LogitProbe *probe, int64_t layer, Tensor q, Tensor k, CensusParams p);
void logit_probe_read(LogitProbe *probe);                                        /* waits */
const LogitRecord *logit_probe_records(const LogitProbe *probe, int64_t *count); /* by layer and head */
