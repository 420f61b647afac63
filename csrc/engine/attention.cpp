#include "attention.hpp"

#include <cstring>

#include "softmax.hpp"

namespace sprat::engine {

namespace {

using Vector = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));

}  // namespace

// 32 numbers of the cache: a and b, 16 each. The helpers take part in each clone of the functions below, so they must
// be inlined, and vectors cannot be returned from what is not.
template <class C>
[[gnu::always_inline]] inline void load(const C* from, Vector& a, Vector& b) {
    if constexpr (sizeof(C) == 2) {
        Words words;
        std::memcpy(&words, from, sizeof words);
        const Words low = words << 16, high = words & 0xffff0000u;
        std::memcpy(&a, &low, sizeof a);
        std::memcpy(&b, &high, sizeof b);
    } else {
        std::memcpy(&a, from, sizeof a);
        std::memcpy(&b, from + 16, sizeof b);
    }
}

// scores[r * span + ...] = q[r] . keys of the positions [begin, begin + span), both multiples of 32.
template <class C, int N>
[[gnu::always_inline]] inline void score(const C* keys, const float* const* q, int padded, int dimension, int begin,
                                         int span, float* scores) {
    for (int at = 0; at < span; at += kGroup) {
        const C* k = keys + static_cast<size_t>(begin + at) * static_cast<size_t>(padded);
        Vector first[N], second[N];
        for (int r = 0; r < N; ++r) first[r] = second[r] = Vector{};
        for (int d = 0; d < dimension; ++d, k += kGroup) {
            Vector a, b;
            load(k, a, b);
            for (int r = 0; r < N; ++r) {
                first[r] += q[r][d] * a;
                second[r] += q[r][d] * b;
            }
        }
        for (int r = 0; r < N; ++r) {
            std::memcpy(scores + r * span + at, &first[r], sizeof(Vector));
            std::memcpy(scores + r * span + at + 16, &second[r], sizeof(Vector));
        }
    }
}

// out[r][d ..] = sum over positions of scores[r][position] * values[position][d ..], W groups of 32 dimensions.
template <class C, int N, int W>
[[gnu::always_inline]] inline void mix_columns(const C* values, const float* scores, int padded, int left, int begin,
                                               int span, int used, float* const* out, int d) {
    Vector sum[N * 2 * W];
    for (Vector& s : sum) s = Vector{};
    const C* v = values + static_cast<size_t>(begin) * static_cast<size_t>(padded);
    for (int at = 0; at < used; ++at, v += padded)
        for (int w = 0; w < W; ++w) {
            Vector a, b;
            load(v + kGroup * w, a, b);
            for (int r = 0; r < N; ++r) {
                sum[(r * W + w) * 2] += scores[r * span + at] * a;
                sum[(r * W + w) * 2 + 1] += scores[r * span + at] * b;
            }
        }
    for (int r = 0; r < N; ++r)
        for (int w = 0; w < 2 * W && 16 * w < left; ++w)
            std::memcpy(out[r] + d + 16 * w, &sum[r * 2 * W + w],
                        static_cast<size_t>(std::min(16, left - 16 * w)) * sizeof(float));
}

template <class C, int N>
[[gnu::always_inline]] inline void mix(const C* values, const float* scores, int padded, int dimension, int begin,
                                       int span, int used, float* const* out) {
    int d = 0;
    // Whole cache lines of a row at once where the registers hold their sums.
    for (constexpr int W = 8 / N; d + kGroup * W <= padded; d += kGroup * W)
        mix_columns<C, N, W>(values + d, scores, padded, dimension - d, begin, span, used, out, d);
    for (; d < padded; d += kGroup)
        mix_columns<C, N, 1>(values + d, scores, padded, dimension - d, begin, span, used, out, d);
}

template <class C>
[[gnu::always_inline]] inline void attend_with(const C* keys, const C* values, int padded, int dimension, float scale,
                                               const Queries& queries, int begin, int span, float* scores) {
    int r = 0;
    for (; r + 4 < queries.count; r += 8)
        score<C, 8>(keys, queries.q + r, padded, dimension, begin, span, scores + r * span);
    for (; r < queries.count; r += 4)
        score<C, 4>(keys, queries.q + r, padded, dimension, begin, span, scores + r * span);
    for (r = 0; r < queries.count; ++r) {
        softmax(scores + r * span, span, queries.first[r] - begin, queries.last[r] - begin, scale);
    }
    // Only positions that some query sees: what lies behind the last may never have been written.
    int used = 0;
    for (r = 0; r < queries.count; ++r) used = std::max(used, queries.last[r] - begin);
    for (r = 0; r + 4 < queries.count; r += 8)
        mix<C, 8>(values, scores + r * span, padded, dimension, begin, span, used, queries.out + r);
    for (; r < queries.count; r += 4)
        mix<C, 4>(values, scores + r * span, padded, dimension, begin, span, used, queries.out + r);
}

SPRAT_CLONES static void attend_bf16(const Bf16* keys, const Bf16* values, int padded, int dimension, float scale,
                                     const Queries& queries, int begin, int span, float* scores) {
    attend_with(keys, values, padded, dimension, scale, queries, begin, span, scores);
}

SPRAT_CLONES static void attend_float(const float* keys, const float* values, int padded, int dimension, float scale,
                                      const Queries& queries, int begin, int span, float* scores) {
    attend_with(keys, values, padded, dimension, scale, queries, begin, span, scores);
}

void attend(Cache& cache, int layer, int head, float scale, const Queries& queries, const Kernel& kernel,
            Scratch& scratch) {
    int begin = queries.first[0], end = queries.last[0];
    for (int r = 1; r < queries.count; ++r) {
        begin = std::min(begin, queries.first[r]);
        end = std::max(end, queries.last[r]);
    }
    begin = begin / kGroup * kGroup;
    const int span = (end - begin + kGroup - 1) / kGroup * kGroup;
    const auto most = static_cast<size_t>(kQueries) * static_cast<size_t>(span);
    const size_t needed = most + static_cast<size_t>(cache.padded());
    if (scratch.scores.size() < needed) scratch.scores.resize(needed);
    if (cache.precision() == Precision::kInt8)
        return attend_int8(cache, layer, head, scale, queries, begin, span, kernel, scratch);
    // Rounded up to whole groups of four queries, the first one repeated into a place that nobody reads.
    Queries whole = queries;
    whole.count = queries.count > 4 ? 8 : 4;
    for (int r = queries.count; r < whole.count; ++r) {
        whole.q[r] = queries.q[0];
        whole.first[r] = queries.first[0];
        whole.last[r] = queries.last[0];
        whole.out[r] = scratch.scores.data() + most;
    }
    const int padded = cache.padded(), dimension = cache.dimension();
    if (cache.precision() == Precision::kFloat32)
        attend_float(cache.keys<float>(layer, head), cache.values<float>(layer, head), padded, dimension, scale, whole,
                     begin, span, scratch.scores.data());
    else
        attend_bf16(cache.keys<Bf16>(layer, head), cache.values<Bf16>(layer, head), padded, dimension, scale, whole,
                    begin, span, scratch.scores.data());
}

}  // namespace sprat::engine
