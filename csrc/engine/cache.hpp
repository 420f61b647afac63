// A session's keys and values.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "layout.hpp"

namespace sprat::engine {

using Bf16 = uint16_t;

enum class Precision { kFloat32, kBf16, kInt8 };

// "float32", "bf16" or "int8"; throws std::invalid_argument.
Precision precision_of(std::string_view name);

constexpr int kGroup = 32;  // positions, or dimensions, that lie together; what is stored is whole groups
constexpr int kMaxDimension = 4096;

// Each 32 numbers of x (n, whole groups) times the orthonormal Hadamard matrix: a few dimensions of keys are much larger
// than the others, and this spreads them, so that one scale serves all. What is done to queries and to keys alike leaves
// their products as they were. (QuaRot, Ashkboos et al. 2024, section 4.)
void spread_dimensions(float* x, size_t n);

struct Unmap {
    size_t bytes = 0;
    void operator()(uint8_t* at) const;
};

// float32 and bf16: keys by 32 positions, [head][position / 32][dimension][position % 32], so that vectors hold
// positions; values [head][position][dimension]. Of 32 bf16 numbers the i-th and the (16 + i)-th share a 32-bit word: a
// shift and a mask make floats of them.
//
// int8: unsigned bytes, 128 more than the number, with one float32 scale a head and position for the key, whose
// dimensions are spread, and one for the value. They lie as the kernels take an unpacked matrix (kernels.hpp,
// `Kernel::blocks`): 32 rows, 16 columns at a time. Of keys, positions are the rows,
// [head][position / 32][dimension / 16][512]; of values, dimensions, [head][dimension / 32][position / 16][512].
//
// A cache is a mapping of its own, not the allocator's: its pages are claimed as they are written and go back to the
// system with it. (An allocator keeps what is freed, and clears all of it for the next cache: sessions that come and go
// then end up with every page of every context.)
class Cache {
  public:
    Cache(int layers, int heads, int dimension, int capacity, Precision precision);
    Cache(const Cache&) = delete;
    Cache& operator=(const Cache&) = delete;

    int length = 0;
    std::vector<int32_t> ids;  // of its tokens, where the model looks back at them
    int capacity() const { return capacity_; }
    Precision precision() const { return precision_; }
    int padded() const { return padded_; }
    int rounded() const { return rounded_; }
    int layers() const { return layers_; }
    int heads() const { return heads_; }
    int dimension() const { return dimension_; }
    // Of the positions in use.
    size_t bytes() const;

    template <class C>
    C* keys(int layer, int head) {
        return reinterpret_cast<C*>(block(layer)) + head_values() * static_cast<size_t>(head);
    }
    template <class C>
    C* values(int layer, int head) {
        return keys<C>(layer, heads_) + head_values() * static_cast<size_t>(head);
    }
    // (rounded) Of int8 keys.
    float* key_scales(int layer, int head) {
        return reinterpret_cast<float*>(keys<uint8_t>(layer, 2 * heads_)) +
               static_cast<size_t>(head) * static_cast<size_t>(rounded_);
    }
    float* value_scales(int layer, int head) { return key_scales(layer, heads_ + head); }

    void put(int layer, int head, int position, const float* key, const float* value);

  private:
    size_t head_values() const { return static_cast<size_t>(rounded_) * static_cast<size_t>(padded_); }
    size_t number_bytes() const { return precision_ == Precision::kFloat32 ? 4 : precision_ == Precision::kBf16 ? 2 : 1; }
    size_t scale_bytes() const { return precision_ == Precision::kInt8 ? sizeof(float) : 0; }
    uint8_t* block(int layer) {
        return pages_.get() + layer_bytes_ * static_cast<size_t>(layer);
    }
    void put_bytes(int layer, int head, size_t position, const float* key, const float* value);

    int layers_, heads_, dimension_, padded_, capacity_, rounded_;
    Precision precision_;
    size_t layer_bytes_;
    std::unique_ptr<uint8_t[], Unmap> pages_;
};

}  // namespace sprat::engine
