/* What a token file holds: `./train_gpt inspect FILE`. */
#pragma once

#include <stdio.h>

#include "base/status.h"

/* Prints format, size, number of tokens, largest token, distinct tokens, unigram entropy (nats and bits), the most
 * frequent tokens and the first ones. Tokens are shown as text if a tokenizer.bin lies in the same folder, as numbers
 * otherwise. A file that is no token file, or a tokenizer.bin that is damaged, is the Status's message. */
Status inspect_token_file(const char *path, FILE *out);
