/* How threads of this process wait for each other. */
#pragma once

/* Call first in main. OpenMP's threads spin while they wait: libgomp for some milliseconds, libomp for 200. On cores
 * that other programs use too, a thread then burns the very time that the one it waits for is waiting for: with one
 * other busy process on two cores, training took more than four times as long. The runtimes read their settings before
 * main, so this sets short spins and starts the program again, once. Does nothing if the user has chosen a setting
 * (GOMP_SPINCOUNT, KMP_BLOCKTIME, OMP_WAIT_POLICY), or where the program cannot be started again. */
void threads_shorten_spinning(char **argv);
