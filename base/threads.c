/* Short spins; see threads.h. */
#include "base/threads.h"

#include <stdlib.h>
#include <unistd.h>

void threads_shorten_spinning(char **argv) {
    if (getenv("GOMP_SPINCOUNT") || getenv("KMP_BLOCKTIME") || getenv("OMP_WAIT_POLICY")) return;
    setenv("GOMP_SPINCOUNT", "20000", 1); /* some tenths of a millisecond: longer than the gaps between a step's ops */
    setenv("KMP_BLOCKTIME", "1", 1);      /* ms */
    execv("/proc/self/exe", argv);        /* on failure: go on with long spins */
}
