#include "cache.hpp"

#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <limits>
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

// The scale of `n` numbers of which the largest becomes 127; not finite where they are not.
float scale_of(const float* x, size_t n) {
    float most = 0;
    for (size_t i = 0; i < n; ++i) {
        if (std::isnan(x[i])) return std::numeric_limits<float>::quiet_NaN();
        most = std::max(most, std::fabs(x[i]));
    }
    return most / 127.0f;
}

uint8_t to_byte(float x, float inverse) {
    const float r = (x * inverse + 12582912.0f) - 12582912.0f;  // to nearest, ties to even
    return static_cast<uint8_t>(128 + (r >= -127.0f && r <= 127.0f ? static_cast<int>(r) : 0));
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
    const float key_scale = scale_of(spread, padded), value_scale = scale_of(value, dimension);
    key_scales(layer, head)[position] = key_scale;
    value_scales(layer, head)[position] = value_scale;
    const auto inverse = [](float scale) { return scale > 1e-30f ? 1 / scale : 0.0f; };
    const float key_inverse = inverse(key_scale), value_inverse = inverse(value_scale);
    uint8_t* keys_here = keys<uint8_t>(layer, head) + position / kGroup * kGroup * padded;
    uint8_t* values_here = values<uint8_t>(layer, head) + position / kPanel * 2 * kEntry;
    for (size_t d = 0; d < padded; ++d)
        keys_here[d / kPanel * 2 * kEntry + within(position % kGroup, d % kPanel)] = to_byte(spread[d], key_inverse);
    for (size_t d = 0; d < dimension; ++d)
        values_here[d / kGroup * kGroup * static_cast<size_t>(rounded_) + within(d % kGroup, position % kPanel)] =
            to_byte(value[d], value_inverse);
}

}  // namespace sprat::engine
