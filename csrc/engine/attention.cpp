#include "attention.hpp"

#include <cstring>

#include "clones.hpp"

namespace sprat::engine {

namespace {

using Vector = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));

Bf16 to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<Bf16>(bits >> 16 | 0x40);
    return static_cast<Bf16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

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

// s (span, a multiple of 32) = e^(scale s) within [first, last), in shares of their sum; elsewhere less than 1e-37.
[[gnu::always_inline]] inline void softmax(float* s, int span, int first, int last, float scale) {
    for (int i = 0; i < first; ++i) s[i] = -1e30f;
    for (int i = last; i < span; ++i) s[i] = -1e30f;
    float most = -1e30f, sum = 0;
#pragma omp simd reduction(max : most)
    for (int i = 0; i < span; ++i) most = s[i] > most ? s[i] : most;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < span; ++i) {
        s[i] = exp_of((s[i] - most) * scale);
        sum += s[i];
    }
    const float inverse = 1.0f / sum;
    for (int i = 0; i < span; ++i) s[i] *= inverse;
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

void attend(Cache& cache, int layer, int head, int dimension, float scale, const Queries& queries,
            std::vector<float>& scores) {
    // Rounded up to whole groups of four queries, the last one repeated into a place that nobody reads.
    Queries whole = queries;
    const int count = queries.count > 4 ? 8 : 4;
    std::vector<float>& room = scores;
    int begin = queries.first[0], end = queries.last[0];
    for (int r = 1; r < queries.count; ++r) {
        begin = std::min(begin, queries.first[r]);
        end = std::max(end, queries.last[r]);
    }
    begin = begin / kGroup * kGroup;
    const int span = (end - begin + kGroup - 1) / kGroup * kGroup;
    const size_t needed = static_cast<size_t>(count) * static_cast<size_t>(span) + static_cast<size_t>(dimension);
    if (room.size() < needed) room.resize(needed);
    for (int r = queries.count; r < count; ++r) {
        whole.q[r] = queries.q[0];
        whole.first[r] = queries.first[0];
        whole.last[r] = queries.last[0];
        whole.out[r] = room.data() + static_cast<size_t>(count) * static_cast<size_t>(span);
    }
    whole.count = count;
    const int padded = cache.padded();
    if (cache.exact())
        attend_float(cache.keys<float>(layer, head), cache.values<float>(layer, head), padded, dimension, scale, whole,
                     begin, span, room.data());
    else
        attend_bf16(cache.keys<Bf16>(layer, head), cache.values<Bf16>(layer, head), padded, dimension, scale, whole,
                    begin, span, room.data());
}

Cache::Cache(int layers, int heads, int dimension, int capacity, bool exact)
    : heads_(heads),
      dimension_(dimension),
      padded_((dimension + kGroup - 1) / kGroup * kGroup),
      capacity_(capacity),
      rounded_((capacity + kGroup - 1) / kGroup * kGroup),
      exact_(exact) {
    const size_t bytes = 2 * static_cast<size_t>(heads) * head_values() * (exact ? sizeof(float) : sizeof(Bf16));
    for (int l = 0; l < layers; ++l) {
        // calloc: pages of a large block are zero and unclaimed until they are written.
        auto* block = static_cast<uint8_t*>(std::calloc(bytes + 64, 1));
        if (!block) throw std::bad_alloc();
        layers_.emplace_back(block);
    }
}

size_t Cache::bytes() const {
    return layers_.size() * 2 * static_cast<size_t>(heads_) * static_cast<size_t>(padded_) *
           static_cast<size_t>(length) * (exact_ ? sizeof(float) : sizeof(Bf16));
}

void Cache::put(int layer, int head, int position, const float* key, const float* value) {
    const auto at = static_cast<size_t>(position), width = static_cast<size_t>(padded_);
    // Of 32 numbers, the i-th and the (16 + i)-th share a word where they are halves.
    const auto place = [this](size_t i) { return exact_ ? i : i % 16 * 2 + i / 16; };
    const auto store = [&](auto* keys, auto* values, auto convert) {
        keys += at / kGroup * kGroup * width + place(at % kGroup);
        values += at * width;
        for (size_t d = 0; d < static_cast<size_t>(dimension_); ++d) {
            keys[kGroup * d] = convert(key[d]);
            values[d / kGroup * kGroup + place(d % kGroup)] = convert(value[d]);
        }
    };
    if (exact_)
        store(keys<float>(layer, head), values<float>(layer, head), [](float x) { return x; });
    else
        store(keys<Bf16>(layer, head), values<Bf16>(layer, head), to_bf16);
}

}  // namespace sprat::engine
