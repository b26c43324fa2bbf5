/* What a token file holds: `./train_gpt inspect FILE`. */
#pragma once

#include <stdio.h>

#include "base/status.h"

/* Prints format, size, number of tokens, largest token, distinct tokens, unigram entropy (nats and bits), the most
 * frequent tokens and the first ones. Tokens are shown as text if a tokenizer.bin lies in the same folder, as numbers
 * otherwise. The Status tells of a file that is not a token file, or of a damaged tokenizer.bin. */
Status inspect_token_file(const char *path, FILE *out);
