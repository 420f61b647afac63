#include "bandwidth.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "arena.hpp"
#include "clones.hpp"
#include "pool.hpp"

namespace sprat::engine {

namespace {

using Vector = uint64_t __attribute__((vector_size(64)));

}  // namespace

SPRAT_CLONES static uint64_t read_all(const uint8_t* at, size_t bytes) {
    Vector sum[4] = {};
    for (size_t i = 0; i + 256 <= bytes; i += 256)
        for (size_t k = 0; k < 4; ++k) {
            Vector v;
            std::memcpy(&v, at + i + 64 * k, sizeof v);
            sum[k] |= v;
        }
    uint64_t all = 0;
    for (const Vector& s : sum)
        for (size_t i = 0; i < 8; ++i) all |= s[i];
    return all;
}

double read_bandwidth(size_t bytes, int threads, int rounds) {
    const size_t page = size_t{2} << 20, share = std::max<size_t>(1, bytes / page / static_cast<size_t>(threads)) * page;
    const size_t total = share * static_cast<size_t>(threads);
    Arena arena;
    uint8_t* const memory = arena.take(total);
    std::memset(memory, 1, total);
    Pool pool(threads);
    std::atomic<uint64_t> seen{0};  // so that the reads are used
    std::vector<double> rates;
    for (int round = 0; round < rounds; ++round) {
        const auto start = std::chrono::steady_clock::now();
        pool.run(threads, [&](int task, int) { seen |= read_all(memory + share * static_cast<size_t>(task), share); });
        const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
        rates.push_back(static_cast<double>(total) / time.count());
    }
    std::nth_element(rates.begin(), rates.begin() + rounds / 2, rates.end());
    return seen ? rates[static_cast<size_t>(rounds / 2)] : 0;
}

}  // namespace sprat::engine
