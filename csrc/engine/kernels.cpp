// The portable kernel, which the others must equal, and the choice among them.
#include "kernels.hpp"

#include <cmath>

#include "bits.hpp"

namespace sprat::engine {

namespace {

void quantize(const float* x, size_t panels, size_t stride, int8_t* q, float* scale, int32_t* base) {
    for (size_t p = 0; p < panels; ++p, x += kPanel, q += stride * kPanel, scale += stride, base += stride) {
        float most = 0;
        for (int c = 0; c < kPanel; ++c)
            if (!(std::fabs(x[c]) <= most)) most = std::fabs(x[c]);  // a NaN stays
        *scale = most / 127.0f;
        const float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
        int32_t sum = 0;
        for (int c = 0; c < kPanel; ++c) {
            // Adding 1.5 * 2^23 rounds to nearest, ties to even; what is not finite must not reach the conversion.
            const float r = (x[c] * inverse + 12582912.0f) - 12582912.0f;
            const int32_t i = r >= -127.0f && r <= 127.0f ? static_cast<int32_t>(r) : 0;
            q[c] = static_cast<int8_t>(i);
            sum += i;
        }
        *base = -128 * sum;
    }
}

void multiply(const uint8_t* data, const uint8_t* meta, int panels, const Input& x, int token, float* y) {
    uint8_t values[kEntry];
    for (int p = 0; p < panels; ++p) {
        const size_t at = x.at(static_cast<size_t>(token), static_cast<size_t>(p));
        const int8_t* q = x.q + at * kPanel;
        const uint8_t* counts = meta;
        meta += kBuckets;
        for (int bucket = 0; bucket < kBuckets; ++bucket) {
            const int width = width_of(bucket);
            for (int i = 0; i < counts[bucket]; ++i, data += entry_bytes(width)) {
                read_entry(data, width, values);
                float* to = y + *meta++ * kRows;
                for (int r = 0; r < kRows; ++r) {
                    int32_t dot = x.base[at] / (1 << (8 - width));  // the weights' offset is 2^(width - 1)
                    for (int c = 0; c < kPanel; ++c) dot += values[c / 4 * kTile + 4 * r + c % 4] * q[c];
                    if (is_high(bucket)) dot *= 256;
                    to[r] += static_cast<float>(dot) * x.scale[at];
                }
            }
        }
    }
}

void unpack(const uint8_t* entry, int width, int raise, uint8_t* values) {
    read_entry(entry, width, values);
    for (int i = 0; i < kEntry; ++i) values[i] = static_cast<uint8_t>(values[i] + raise);
}

void block(const uint8_t* values, const uint32_t* panel, size_t slots, const Input& x, size_t group, int count,
           float* y) {
    for (int t = 0; t < count; ++t) {
        float* to = y + t * kRows;
        std::fill(to, to + kRows, 0.0f);
        for (size_t s = 0; s < slots; ++s) {
            const size_t at = x.at(group * kTokens + static_cast<size_t>(t), panel[s] & ~kHigh);
            const uint8_t* v = values + s * kEntry;
            for (int r = 0; r < kRows; ++r) {
                int32_t dot = x.base[at];
                for (int c = 0; c < kPanel; ++c) dot += v[c / 4 * kTile + 4 * r + c % 4] * x.q[at * kPanel + static_cast<size_t>(c)];
                if (panel[s] & kHigh) dot *= 256;
                to[r] += static_cast<float>(dot) * x.scale[at];
            }
        }
    }
}

}  // namespace

const Kernel kPortable{"portable", quantize, multiply, unpack, block};

const Kernel& choose_kernel(std::string_view name) {
    const Kernel* all[] = {avx512_kernel(), avx2_kernel(), neon_kernel(), &kPortable};
    std::string names = "auto";
    for (const Kernel* kernel : all) {
        if (!kernel) continue;
        if (name == "auto" || name == kernel->name) return *kernel;
        names += std::string(", ") + kernel->name;
    }
    throw std::invalid_argument("no kernel '" + std::string(name) + "' on this processor: " + names);
}

void unpack_chunk(const Kernel& kernel, const Packed& packed, const Chunk& chunk, Unpacked& out) {
    const auto panels = static_cast<size_t>(packed.panels);
    const uint8_t* const begin = packed.meta.data() + chunk.meta;
    out.reserve(chunk.entries);
    out.panel.resize(chunk.entries);
    out.start.assign(static_cast<size_t>(chunk.blocks) + 1, 0);
    const auto each = [&](auto visit) {
        const uint8_t* meta = begin;
        for (size_t p = 0; p < panels; ++p) {
            const uint8_t* counts = meta;
            meta += kBuckets;
            for (int bucket = 0; bucket < kBuckets; ++bucket)
                for (int i = 0; i < counts[bucket]; ++i) visit(static_cast<uint32_t>(p), bucket, *meta++);
        }
    };
    each([&](uint32_t, int, uint8_t block) { ++out.start[block + size_t{1}]; });
    for (size_t b = 0; b < static_cast<size_t>(chunk.blocks); ++b) out.start[b + 1] += out.start[b];
    std::vector<uint32_t> at(out.start.begin(), out.start.end() - 1);
    const uint8_t* data = packed.data + chunk.data;
    each([&](uint32_t p, int bucket, uint8_t block) {
        const int width = width_of(bucket);
        const uint32_t slot = at[block]++;
        out.panel[slot] = p | (is_high(bucket) ? kHigh : 0);
        kernel.unpack(data, width, 128 - (1 << (width - 1)), out.values.get() + size_t{slot} * kEntry);
        data += entry_bytes(width);
    });
}

}  // namespace sprat::engine
