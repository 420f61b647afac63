#include "cache.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

namespace sprat::engine {

namespace {

Bf16 to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<Bf16>(bits >> 16 | 0x40);
    return static_cast<Bf16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

int round_up(int n) { return static_cast<int>((int64_t{n} + kGroup - 1) / kGroup * kGroup); }

// x (n) as bytes, 128 + x / scale to nearest, ties to even; the scale, by which the largest is 127. What is not finite
// gives a scale that is not.
float to_bytes(const float* x, size_t n, uint8_t* out) {
    // In integers, which compilers vectorise: sizes are ordered as their bits are.
    uint32_t most = 0;
    for (size_t i = 0; i < n; ++i) most = std::max(most, std::bit_cast<uint32_t>(x[i]) & 0x7fffffff);
    const float scale = std::bit_cast<float>(most) / 127.0f, inverse = scale > 1e-30f ? 1 / scale : 0.0f;
    for (size_t i = 0; i < n; ++i) {
        constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: a sum has its integer in the last bits
        const uint32_t r = std::bit_cast<uint32_t>(x[i] * inverse + kMagic) - std::bit_cast<uint32_t>(kMagic) + 128;
        out[i] = static_cast<uint8_t>(r - 1 < 255 ? r : 128);
    }
    return scale;
}

template <int Half>
void butterflies(float* x) {
    for (int i = 0; i < kGroup; i += 2 * Half)
        for (int j = i; j < i + Half; ++j) {
            const float a = x[j], b = x[j + Half];
            x[j] = a + b;
            x[j + Half] = a - b;
        }
}

// Where (row, column) lies within 32 rows and 16 columns.
constexpr size_t within(size_t row, size_t column) {
    return row / kRows * kEntry + column / 4 * kTile + row % kRows * 4 + column % 4;
}

}  // namespace

void spread_dimensions(float* x, size_t n) {
    constexpr float kScale = 0.17677669529663687f;  // 1 / sqrt(32)
    for (size_t at = 0; at < n; at += kGroup, x += kGroup) {
        butterflies<16>(x);
        butterflies<8>(x);
        butterflies<4>(x);
        butterflies<2>(x);
        butterflies<1>(x);
        for (int i = 0; i < kGroup; ++i) x[i] *= kScale;
    }
}

Precision precision_of(std::string_view name) {
    if (name == "float32") return Precision::kFloat32;
    if (name == "bf16") return Precision::kBf16;
    if (name == "int8") return Precision::kInt8;
    throw std::invalid_argument("no cache of " + std::string(name) + ": float32, bf16 or int8");
}

void Unmap::operator()(uint8_t* at) const { munmap(at, bytes); }

Cache::Cache(int layers, int heads, int dimension, int capacity, Precision precision)
    : layers_(layers),
      heads_(heads),
      dimension_(dimension),
      padded_(round_up(dimension)),
      capacity_(capacity),
      rounded_(round_up(capacity)),
      precision_(precision) {
    const size_t vectors = 2 * static_cast<size_t>(heads) * static_cast<size_t>(rounded_);
    layer_bytes_ = vectors * (static_cast<size_t>(padded_) * number_bytes() + scale_bytes());
    layer_bytes_ = (layer_bytes_ + 63) / 64 * 64;
    if (layer_bytes_ > SIZE_MAX / 2 / static_cast<size_t>(layers)) throw std::bad_alloc();
    const size_t bytes = layer_bytes_ * static_cast<size_t>(layers) + 64;  // that the last load may reach into
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    pages_ = std::unique_ptr<uint8_t[], Unmap>(static_cast<uint8_t*>(at), Unmap{bytes});
#if defined(MADV_NOHUGEPAGE)
    // Each head of each layer fills from its beginning: in pages of 2 MB a short text would claim nearly all.
    madvise(at, bytes, MADV_NOHUGEPAGE);
#endif
}

size_t Cache::bytes() const {
    const size_t vectors = static_cast<size_t>(layers_) * 2 * static_cast<size_t>(heads_) * static_cast<size_t>(length);
    return vectors * (static_cast<size_t>(padded_) * number_bytes() + scale_bytes());
}

void Cache::fetch(int layer, int head, int position) {
    if (precision_ != Precision::kInt8) return;
    const auto at = static_cast<size_t>(position), padded = static_cast<size_t>(padded_);
    const uint8_t* keys_here = keys<uint8_t>(layer, head) + at / kGroup * kGroup * padded;
    const uint8_t* values_here = values<uint8_t>(layer, head) + at / kPanel * 2 * kEntry;
    for (size_t i = 0; i < kGroup * padded; i += 64) __builtin_prefetch(keys_here + i, 1);
    for (size_t d = 0; d < padded; d += kGroup)
        for (size_t i = 0; i < 2 * kEntry; i += 64)
            __builtin_prefetch(values_here + d * static_cast<size_t>(rounded_) + i, 1);
    __builtin_prefetch(key_scales(layer, head) + at, 1);
    __builtin_prefetch(value_scales(layer, head) + at, 1);
}

void Cache::put(int layer, int head, int position, const float* key, const float* value) {
    const auto at = static_cast<size_t>(position), width = static_cast<size_t>(padded_);
    if (precision_ == Precision::kInt8) return put_bytes(layer, head, at, key, value);
    const bool halves = precision_ == Precision::kBf16;
    // Of 32 numbers, the i-th and the (16 + i)-th share a word where they are halves.
    const auto place = [halves](size_t i) { return halves ? i % 16 * 2 + i / 16 : i; };
    const auto store = [&](auto* keys, auto* values, auto convert) {
        keys += at / kGroup * kGroup * width + place(at % kGroup);
        values += at * width;
        for (size_t d = 0; d < static_cast<size_t>(dimension_); ++d) {
            keys[kGroup * d] = convert(key[d]);
            values[d / kGroup * kGroup + place(d % kGroup)] = convert(value[d]);
        }
    };
    if (halves)
        store(keys<Bf16>(layer, head), values<Bf16>(layer, head), to_bf16);
    else
        store(keys<float>(layer, head), values<float>(layer, head), [](float x) { return x; });
}

void Cache::put_bytes(int layer, int head, size_t position, const float* key, const float* value) {
    const auto dimension = static_cast<size_t>(dimension_), padded = static_cast<size_t>(padded_);
    alignas(64) float spread[kMaxDimension];
    std::copy(key, key + dimension, spread);
    std::fill(spread + dimension, spread + padded, 0.0f);
    spread_dimensions(spread, padded);
    uint8_t key_bytes[kMaxDimension], value_bytes[kMaxDimension];
    key_scales(layer, head)[position] = to_bytes(spread, padded, key_bytes);
    value_scales(layer, head)[position] = to_bytes(value, dimension, value_bytes);
    uint8_t* keys_here = keys<uint8_t>(layer, head) + position / kGroup * kGroup * padded;
    uint8_t* values_here = values<uint8_t>(layer, head) + position / kPanel * 2 * kEntry;
    for (size_t d = 0; d < padded; d += 4)
        std::memcpy(keys_here + d / kPanel * 2 * kEntry + within(position % kGroup, d % kPanel), key_bytes + d, 4);
    for (size_t d = 0; d < dimension; ++d)
        values_here[d / kGroup * kGroup * static_cast<size_t>(rounded_) + within(d % kGroup, position % kPanel)] =
            value_bytes[d];
}

}  // namespace sprat::engine
