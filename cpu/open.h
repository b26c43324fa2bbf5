/* Opens backend "cpu" over a table that ref_fill_ops has filled: what it does not override stays. */
#pragma once

#include "ops/backend.h"

Status cpu_backend_open(Backend *be, BackendRequest request);
