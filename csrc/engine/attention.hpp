// Attention over a session's keys and values.
#pragma once

#include <vector>

#include "cache.hpp"
#include "kernels.hpp"

namespace sprat::engine {

constexpr int kQueries = 8;

// Some queries (count <= kQueries) of heads that share a key-value head. Query i sees the positions
// [first[i], last[i]).
struct Queries {
    int count = 0;
    const float* q[kQueries];
    float* out[kQueries];
    int first[kQueries], last[kQueries];
};

struct Scratch {  // of a thread; grows
    std::vector<float> scores, scale;
    std::vector<int8_t> q;
    std::vector<int32_t> base;
    std::vector<uint32_t> panels;  // 0, 1, 2, ...
};

// The kernel computes where the cache is int8: all of them give the same bits.
void attend(Cache& cache, int layer, int head, float scale, const Queries& queries, const Kernel& kernel,
            Scratch& scratch);

// For `attend`: span positions from `begin` on, both multiples of 32; scratch.scores has room for kQueries * span.
void attend_int8(Cache& cache, int layer, int head, float scale, const Queries& queries, int begin, int span,
                 const Kernel& kernel, Scratch& scratch);

}  // namespace sprat::engine
