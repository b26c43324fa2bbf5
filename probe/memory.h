/* The memory of a probe: two arenas, which its layout function measures and then places (ops/arena.h). */
#pragma once

#include "ops/arena.h"

typedef struct {
    Arena device; /* tensors of the backend */
    Arena host;   /* arena_take_host */
} ProbeMemory;
