/* Opens backend "ref", and fills tables for those who start from it. */
#pragma once

#include "ops/backend.h"

Status ref_backend_open(Backend *be, BackendRequest request);

/* Every slot but those that the wrappers compose as well: linear_gelu and linear_gelu_grad. */
void ref_fill_ops(BackendOps *ops);
