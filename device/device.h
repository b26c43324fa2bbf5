/* Opens backends by name: the only place that knows all implementations. */
#pragma once

#include "ops/backend.h"

/* Opens the backend that `request` names; "auto" takes the fastest that works and puts into `note` (size bytes) why it
 * passed over a faster one, or "". Precision "auto" is bf16 where the processor multiplies bf16 natively, else fp32. A
 * backend that lacks a required slot (ops/ops.h) is not opened. */
Status device_open(Backend *be, BackendRequest request, char *note, int64_t size);
