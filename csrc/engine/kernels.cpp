// The portable kernel, which the others must equal, and the choice among them.
#include "kernels.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "bits.hpp"

namespace sprat::engine {

namespace {

void quantize(const float* x, size_t panels, size_t stride, int8_t* q, float* scale, int32_t* base) {
    for (size_t p = 0; p < panels; ++p, x += kPanel, q += stride * kPanel, scale += stride, base += stride) {
        float most = 0;
        bool bad = false;
        for (int c = 0; c < kPanel; ++c) {
            most = std::max(most, std::fabs(x[c]));
            bad |= std::isnan(x[c]);
        }
        if (bad) most = std::numeric_limits<float>::quiet_NaN();
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

int32_t quad(const uint8_t* w, const int8_t* q) { return w[0] * q[0] + w[1] * q[1] + w[2] * q[2] + w[3] * q[3]; }

void multiply(const uint8_t* data, const uint8_t* meta, int panels, const Input& x, int token, float* y) {
    uint8_t values[kEntry];
    for (int p = 0; p < panels; ++p) {
        const size_t at = x.at(static_cast<size_t>(token), static_cast<size_t>(p));
        const int8_t* q = x.q + at * kPanel;
        const uint8_t* counts = meta;
        meta += kBuckets;
        for (int bucket = 0; bucket < kBuckets; ++bucket) {
            const int width = width_of(bucket);
            for (size_t i = 0; i < counts[bucket]; ++i) {
                read_entry(data, width, i, values);
                float* to = y + *meta++ * kRows;
                for (int r = 0; r < kRows; ++r) {
                    int32_t dot = x.base[at] / (1 << (8 - width));  // the weights' offset is 2^(width - 1)
                    for (int t = 0; t < kQuads; ++t) dot += quad(values + t * kTile + 4 * r, q + 4 * t);
                    if (is_high(bucket)) dot *= 256;
                    to[r] += static_cast<float>(dot) * x.scale[at];
                }
            }
            data += bucket_bytes(width, counts[bucket]);
        }
    }
}

void unpack(const Planes& entry, int width, int raise, uint8_t* values) {
    read_planes(entry, width, values);
    for (int i = 0; i < kEntry; ++i) values[i] = static_cast<uint8_t>(values[i] + raise);
}

void blocks(const uint8_t* values, const uint32_t* panel, size_t slots, const Input& x, size_t group, int count,
            float* y, size_t stride) {
    for (size_t t = 0; t < static_cast<size_t>(count); ++t) {
        float* to = y + t * stride;
        std::fill(to, to + 2 * kRows, 0.0f);
        for (size_t s = 0; s < slots; ++s) {
            const size_t at = x.at(group * kTokens + t, panel[s] & ~kHigh);
            const int8_t* q = x.q + at * kPanel;
            for (int r = 0; r < 2 * kRows; ++r) {
                const uint8_t* v = values + (2 * s + static_cast<size_t>(r / kRows)) * kEntry + 4 * (r % kRows);
                int32_t dot = x.base[at];
                for (int i = 0; i < kQuads; ++i) dot += quad(v + i * kTile, q + 4 * i);
                if (panel[s] & kHigh) dot *= 256;
                to[r] += static_cast<float>(dot) * x.scale[at];
            }
        }
    }
}

}  // namespace

const Kernel kPortable{"portable", quantize, multiply, unpack, blocks};

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
    const auto panels = static_cast<uint32_t>(packed.panels);
    const size_t pairs = (static_cast<size_t>(chunk.blocks) + 1) / 2;
    std::vector<uint32_t> seen(2 * pairs), slot(2 * pairs), at;
    // visit(panel, bucket, block, whether it is the first in its slot, entry) for every entry, in order.
    const auto each = [&](auto visit) {
        const uint8_t *meta = packed.meta.data() + chunk.meta, *data = chunk.data;
        std::fill(seen.begin(), seen.end(), panels);
        for (uint32_t p = 0; p < panels; ++p) {
            const uint8_t* counts = meta;
            meta += kBuckets;
            for (int bucket = 0; bucket < kBuckets; ++bucket) {
                for (size_t i = 0; i < counts[bucket]; ++i) {
                    const size_t block = *meta++, key = block / 2 * 2 + is_high(bucket);
                    visit(p, bucket, block, std::exchange(seen[key], p) != p,
                          planes_of(data, width_of(bucket), i));
                }
                data += bucket_bytes(width_of(bucket), counts[bucket]);
            }
        }
    };
    out.start.assign(pairs + 1, 0);
    each([&](uint32_t, int, size_t block, bool first, const Planes&) { out.start[block / 2 + 1] += first; });
    for (size_t pair = 0; pair < pairs; ++pair) out.start[pair + 1] += out.start[pair];
    out.reserve(out.start[pairs]);
    out.panel.resize(out.start[pairs]);
    at.assign(out.start.begin(), out.start.end() - 1);
    each([&](uint32_t p, int bucket, size_t block, bool first, const Planes& entry) {
        uint32_t& s = slot[block / 2 * 2 + is_high(bucket)];
        if (first) {
            s = at[block / 2]++;
            out.panel[s] = p | (is_high(bucket) ? kHigh : 0);
            std::memset(out.values.get() + size_t{s} * 2 * kEntry, 128, 2 * kEntry);
        }
        const int width = width_of(bucket);
        kernel.unpack(entry, width, 128 - (1 << (width - 1)), out.values.get() + (2 * size_t{s} + block % 2) * kEntry);
    });
}

}  // namespace sprat::engine
