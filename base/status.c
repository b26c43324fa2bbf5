/* Status values and failed checks; see status.h. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

Status status_ok(void) {
    return (Status){.code = STATUS_OK};
}

Status status_error(StatusCode code, const char *format, ...) {
    Status status = {.code = code};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(status.message, sizeof status.message, format, arguments);
    va_end(arguments);
    return status;
}

void check_failed(const char *file, int line, const char *condition, const char *format, ...) {
    fprintf(stderr, "%s:%d: check failed: %s: ", file, line, condition);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    abort();
}
