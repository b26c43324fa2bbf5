/* How train_gpt reports what goes wrong.
 *
 * Status is for the world: files, memory, configuration, data. A function that can fail because of them returns a
 * Status, changes nothing that its caller sees until everything that can fail has succeeded, and unwinds with goto.
 * Its message is one sentence that says what was wrong, where (file, key, line or byte offset) and what to do.
 * Only train_gpt.c prints it and exits.
 *
 * CHECK is for the programmer: a broken contract between functions of this project. It is always on and aborts.
 */
#pragma once

#include <stdint.h>

typedef enum {
    STATUS_OK = 0,
    STATUS_BAD_INPUT,     /* configuration, command line, token file, checkpoint: the user can repair it (exit 2) */
    STATUS_IO,            /* the operating system refused (exit 2) */
    STATUS_OUT_OF_MEMORY, /* (exit 2) */
    STATUS_DEVICE,        /* a backend failed (exit 2) */
    STATUS_DIVERGED,      /* the loss or the gradient is not finite and on_nonfinite is "stop" (exit 3) */
} StatusCode;

typedef struct {
    StatusCode code;
    char message[1400]; /* a path of PATH_SIZE, and a sentence around it */
} Status;

Status status_ok(void);
Status status_error(StatusCode code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What most failures are. */
#define BAD_INPUT(...) status_error(STATUS_BAD_INPUT, __VA_ARGS__)
#define NO_MEMORY(...) status_error(STATUS_OUT_OF_MEMORY, __VA_ARGS__)

/* Evaluates to true on failure, and keeps the failure in `status`:   if (FAILED(status, f(x))) goto done; */
#define FAILED(status, call) (((status) = (call)).code != STATUS_OK)

void check_failed(const char *file, int line, const char *condition, const char *format, ...)
    __attribute__((noreturn, format(printf, 4, 5)));

/* CHECK(n > 0, "n is %d", n): the condition, the values, file and line, then abort(). */
#define CHECK(condition, ...) ((condition) ? (void)0 : check_failed(__FILE__, __LINE__, #condition, __VA_ARGS__))
