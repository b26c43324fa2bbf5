/* What a safetensors file's own strings say. */
#pragma once

#include <cjson/cJSON.h>

#include "model/safetensors.h"

/* NULL: there is none. */
static inline const char *metadata_of(const SafetensorsFile *file, const char *key) {
    const cJSON *strings = cJSON_GetObjectItemCaseSensitive(file->header, "__metadata__");
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(strings, key));
}
