// A session's keys and values, and attention over them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "layout.hpp"

namespace sprat::engine {

using Bf16 = uint16_t;

constexpr int kGroup = 32;  // numbers that one load brings

// Keys lie by 32 positions, [head][position / 32][dimension][position % 32], so that vectors hold positions; values
// [head][position][dimension]. Of 32 bf16 numbers the i-th and the (16 + i)-th share a 32-bit word: a shift and a mask
// make floats of them. Memory is claimed as it is touched.
class Cache {
  public:
    Cache(int layers, int heads, int dimension, int capacity, bool exact);
    Cache(const Cache&) = delete;
    Cache& operator=(const Cache&) = delete;

    int length = 0;
    int capacity() const { return capacity_; }
    bool exact() const { return exact_; }
    int padded() const { return padded_; }
    int layers() const { return static_cast<int>(layers_.size()); }
    int heads() const { return heads_; }
    int dimension() const { return dimension_; }
    // Of the positions in use.
    size_t bytes() const;

    template <class C>
    C* keys(int layer, int head) {
        auto* all = reinterpret_cast<C*>(layers_[static_cast<size_t>(layer)].get());
        return all + head_values() * static_cast<size_t>(head);
    }
    template <class C>
    C* values(int layer, int head) {
        return keys<C>(layer, heads_) + head_values() * static_cast<size_t>(head);
    }
    void put(int layer, int head, int position, const float* key, const float* value);

  private:
    size_t head_values() const { return static_cast<size_t>(rounded_) * static_cast<size_t>(padded_); }

    int heads_, dimension_, padded_, capacity_, rounded_;
    bool exact_;
    std::vector<std::unique_ptr<uint8_t[], Free>> layers_;
};

constexpr int kQueries = 8;

// Some queries (count <= kQueries) of heads that share a key-value head. Query i sees the positions
// [first[i], last[i]); scores: room for count * span(first, last) floats.
struct Queries {
    int count = 0;
    const float* q[kQueries];
    float* out[kQueries];
    int first[kQueries], last[kQueries];
};

void attend(Cache& cache, int layer, int head, int dimension, float scale, const Queries& queries,
            std::vector<float>& scores);

}  // namespace sprat::engine
