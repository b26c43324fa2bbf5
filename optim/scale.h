/* How large updates are. Private to optim/. */
#pragma once

#include "optim/optimizer.h"

/* s of W <- (1 - lr wd) W - lr s U for U of n rows and m columns, a block's or one head's, with muP's factor. */
double update_scale(const Optimizer *opt, const BlockKind *block, OptimizerKind optimizer, double n, double m);
