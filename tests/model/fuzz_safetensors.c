/* libFuzzer: whatever the bytes, opening a safetensors file refuses them or yields entries that can all be read.
 *
 *      clang -g -O1 -fsanitize=fuzzer,address,undefined -I. -D_GNU_SOURCE tests/model/fuzz_safetensors.c
 * model/safetensors.c \ base/file.c base/status.c ops/tensor.c -lcjson -o fuzz_safetensors && ./fuzz_safetensors
 * -max_total_time=60
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "tests/model/metadata.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void read_all(const SafetensorsFile *file) {
    for (int64_t i = 0; i < file->count; i++) {
        const SafetensorsEntry *entry = &file->entries[i];
        int64_t count = safetensors_numel(entry);
        float *values = calloc((size_t)count + 1, sizeof *values);
        char text[64];
        safetensors_describe(entry, text, sizeof text);
        CHECK(safetensors_find(file, entry->name) == entry, "\"%s\" is not found", entry->name);
        CHECK(values, "no memory for %lld values", (long long)count);
        (void)safetensors_read_f32(file, entry, 0, count, values);
        free(values);
    }
    (void)metadata_of(file, "format");
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    SafetensorsFile file;
    if (safetensors_parse(&file, "fuzz", bytes, (int64_t)size).code) return 0;
    read_all(&file);
    safetensors_close(&file);
    return 0;
}
