// Reads random ranges of a file with disk_reader into memory of reserved_memory, and compares them
// with what stdio reads. disk_test FILE: the last line is "ok" and how the file was read.
#include "hot/disk.h"
#include "hot/reserve.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <random>

using namespace hot;

static int fail(const char * what, const std::string & why) {
    printf("%s: %s\n", what, why.c_str());
    return 1;
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        return fail("usage", "disk_test FILE");
    }
    FILE * file = fopen(argv[1], "rb");
    std::vector<char> bytes;
    for (int c; file != nullptr && (c = getc(file)) != EOF;) {
        bytes.push_back(char(c));
    }
    disk_reader       reader;
    const std::string missing = std::string(argv[1]) + ".none";
    if (reader.add_file(missing.c_str()).find(missing) != 0) {
        return fail("a missing file", "is not refused");
    }
    std::string problem = reader.add_file(argv[1]);
    if (!problem.empty() || reader.size(0) != bytes.size() || bytes.empty()) {
        return fail("the file", problem);
    }
    constexpr int    N     = 200;
    const size_t     most  = size_t(5) << 20;
    const size_t     place = most + 2 * DISK_BLOCK;
    reserved_memory  memory;
    char *           base = memory.reserve(N * place);
    std::mt19937_64  random(1);
    std::atomic<int> n_left{ N };
    std::atomic<int> n_failed{ 0 };
    struct range {
        size_t offset, nbytes, shift;
    };
    std::vector<range> ranges;
    for (int i = 0; i < N; i++) {
        const size_t offset = random() % bytes.size();
        const size_t nbytes = 1 + random() % std::min(most, bytes.size() - offset);
        const size_t shift  = i % 2 == 0 ? offset % DISK_BLOCK : random() % DISK_BLOCK;
        ranges.push_back({ offset, nbytes, shift });
        if (base == nullptr || !memory.use(base + i * place, place)) {
            return fail("memory", "there is none");
        }
        disk_read wanted;
        wanted.offset    = offset;
        wanted.nbytes    = nbytes;
        wanted.to        = base + i * place + shift;
        wanted.tag       = uint64_t(i);
        wanted.may_spill = i % 2 == 0;
        wanted.done      = [&](const std::string & why) {
            n_failed += !why.empty();
            n_left--;
        };
        if (!reader.read(std::move(wanted), i % 3 == 0)) {
            return fail("threads", "there are none");
        }
    }
    reader.hurry(199);
    while (n_left > 0) {
        std::this_thread::yield();
    }
    for (int i = 0; i < N; i++) {
        const range & at = ranges[i];
        if (n_failed > 0 || memcmp(base + i * place + at.shift, bytes.data() + at.offset, at.nbytes) != 0) {
            return fail("read", "other bytes at " + std::to_string(at.offset));
        }
        memory.give_back(base + i * place, place / DISK_BLOCK * DISK_BLOCK);
    }
    if (!memory.use(base, DISK_BLOCK) || base[0] != 0) {
        return fail("memory that was given back", "is not empty");
    }
    printf("ok, %s\n", reader.direct() ? "direct" : "buffered");
    return 0;
}
