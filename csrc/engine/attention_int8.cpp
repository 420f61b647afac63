// Attention in integers: keys and values in a cache of int8 are matrices as the kernels take them, so its two products
// are the engine's own. Queries are rounded to int8 by 16 dimensions, as activations are; what each position counts
// (its share of the attention times the scale of its value) by 16 positions.
#include <cstring>
#include <numeric>

#include "attention.hpp"
#include "softmax.hpp"

namespace sprat::engine {

// s (span): products with int8 keys to shares of the attention, times the scales of the values.
SPRAT_CLONES static void weigh(float* s, int span, int first, int last, float scale, const float* key_scales,
                               const float* value_scales) {
    for (int i = 0; i < span; ++i) s[i] *= key_scales[i];
    softmax(s, span, first, last, scale);
    for (int i = 0; i < span; ++i) s[i] *= value_scales[i];
    // Where nothing is to be seen, nothing may come in: what lies there may be anything.
    for (int i = 0; i < first; ++i) s[i] = 0;
    for (int i = last; i < span; ++i) s[i] = 0;
}

void attend_int8(Cache& cache, int layer, int head, float scale, const Queries& queries, int begin, int span,
                 const Kernel& kernel, Scratch& scratch) {
    const auto count = static_cast<size_t>(queries.count), width = static_cast<size_t>(span);
    const auto padded = static_cast<size_t>(cache.padded()), dimension = static_cast<size_t>(cache.dimension());
    const size_t panels = padded / kPanel, stretches = width / kPanel, most = std::max(panels, stretches);
    if (scratch.panels.size() < most) {
        scratch.panels.resize(most);
        std::iota(scratch.panels.begin(), scratch.panels.end(), 0u);
        scratch.q.resize(most * kTokens * kPanel);
        scratch.scale.resize(most * kTokens);
        scratch.base.resize(most * kTokens);
    }
    // Kernels take queries by four: what the missing ones give has room and is not read.
    const int whole = (queries.count + 3) / 4 * 4;
    float *scores = scratch.scores.data(), *row = scores + kQueries * width;
    const auto rounded = [&](const float* x, size_t parts, size_t r) {
        kernel.quantize(x, parts, kTokens, scratch.q.data() + r * kPanel, scratch.scale.data() + r,
                        scratch.base.data() + r);
    };
    const auto product = [&](const uint8_t* matrix, size_t parts, float* y, size_t stride) {
        const Input in{kTokens, parts, kTokens, scratch.q.data(), scratch.scale.data(), scratch.base.data()};
        kernel.blocks(matrix, scratch.panels.data(), parts, in, 0, whole, y, stride);
    };

    for (size_t r = 0; r < count; ++r) {
        std::memcpy(row, queries.q[r], dimension * sizeof(float));
        std::fill(row + dimension, row + padded, 0.0f);
        spread_dimensions(row, padded);
        rounded(row, panels, r);
    }
    const uint8_t* keys = cache.keys<uint8_t>(layer, head) + static_cast<size_t>(begin) * padded;
    for (size_t at = 0; at < width; at += kGroup) product(keys + at * padded, panels, scores + at, width);

    const float *key_scales = cache.key_scales(layer, head) + begin, *value_scales = cache.value_scales(layer, head) + begin;
    for (size_t r = 0; r < count; ++r) {
        float* s = scores + r * width;
        const auto i = static_cast<int>(r);
        weigh(s, span, queries.first[i] - begin, queries.last[i] - begin, scale, key_scales, value_scales);
        rounded(s, stretches, r);
    }
    const uint8_t* values = cache.values<uint8_t>(layer, head) + static_cast<size_t>(begin) * kGroup;
    alignas(64) float mixed[kQueries * kGroup];
    for (size_t d = 0; d < padded; d += kGroup) {
        product(values + d * static_cast<size_t>(cache.rounded()), stretches, mixed, kGroup);
        const size_t left = std::min<size_t>(kGroup, dimension - d);
        for (size_t r = 0; r < count; ++r)
            std::memcpy(queries.out[r] + d, mixed + r * kGroup, left * sizeof(float));
    }
}

}  // namespace sprat::engine
