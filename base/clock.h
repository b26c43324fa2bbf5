/* Time that only goes forward. */
#pragma once

/* Seconds since some fixed moment; differences are what it is for. */
double clock_seconds(void);
