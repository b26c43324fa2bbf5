/* Fuzz target: any bytes as a token file and as a tokenizer file. They are refused with a Status or can be read whole.
 *
 *      clang -I. -D_GNU_SOURCE -g -O1 -fopenmp -fsanitize=fuzzer,address,undefined -o fuzz_shard
 * tests/data/fuzz_shard.c \ data/shard.c data/tokenizer.c base/file.c base/status.c
 *      ./fuzz_shard -max_len=4096 -max_total_time=60
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "data/shard.h"
#include "data/tokenizer.h"

enum { VOCAB = 256, PIECE = 512 };

static void read_as_shard(const char *path) {
    Shard shard;
    int32_t tokens[PIECE];
    if (shard_open(&shard, path).code) return;
    for (int64_t first = 0; first < shard.count; first += PIECE) {
        int64_t length = shard.count - first < PIECE ? shard.count - first : PIECE;
        if (shard_read(&shard, first, length, VOCAB, tokens).code) continue;
        for (int64_t i = 0; i < length; i++) CHECK(tokens[i] >= 0 && tokens[i] < VOCAB, "token %d", tokens[i]);
    }
    bool all = shard_check_tokens(&shard, VOCAB).code == STATUS_OK;
    CHECK(all == (shard_largest_token(&shard) < VOCAB), "a check that disagrees with the largest token");
    shard_hash(&shard, FILE_HASH_START);
    shard_close(&shard);
}

static void read_as_tokenizer(const char *path) {
    Tokenizer tokenizer;
    if (tokenizer_read(&tokenizer, path).code) return;
    int64_t total = 0, length = 0;
    for (int64_t t = -1; t <= tokenizer.count; t++) {
        const uint8_t *bytes = tokenizer_decode(&tokenizer, t, &length);
        for (int64_t i = 0; i < length; i++) total += bytes[i];
    }
    CHECK(total >= 0, "%lld", (long long)total);
    tokenizer_free(&tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    int file = memfd_create("fuzz", MFD_CLOEXEC);
    CHECK(file >= 0 && write(file, data, size) == (ssize_t)size, "no memory file of %zu bytes", size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    read_as_shard(path);
    read_as_tokenizer(path);
    close(file);
    return 0;
}
