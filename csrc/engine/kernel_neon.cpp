// NEON with the dot-product extension (ARMv8.2 and later): a tile is four registers of four rows. sdot takes signed
// bytes: weights of up to 7 bits are that as they are, wider ones after taking 128 off.
#include "kernels.hpp"

#if defined(__aarch64__) && defined(__linux__) && (defined(__GNUC__) || defined(__clang__))
#include <arm_neon.h>
#include <sys/auxv.h>

#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#if defined(__clang__)
#define SPRAT_TARGET __attribute__((target("dotprod")))
#else
#define SPRAT_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

namespace sprat::engine {

namespace {

// A quarter of a tile (4 rows) of an entry.
template <int W>
SPRAT_TARGET inline uint8x16_t quarter_tile(const Planes& at, int t, int part) {
    if constexpr (W == 8) return vld1q_u8(at.nibbles + 64 * t + 16 * part);
    if constexpr (W == 3) {
        const uint8x16_t a = vld1q_u8(at.pairs + 16 * part), both = vld1q_u8(at.bits + part % 2 * 16);
        const uint8x16_t b = part / 2 ? vshrq_n_u8(both, 4) : vandq_u8(both, vdupq_n_u8(15));
        if (t == 2) return vorrq_u8(vshrq_n_u8(a, 6), vandq_u8(vshrq_n_u8(b, 1), vdupq_n_u8(4)));
        return vandq_u8(t == 3 ? b : t == 1 ? vshrq_n_u8(a, 3) : a, vdupq_n_u8(7));
    }
    uint8x16_t v = vdupq_n_u8(0);
    if constexpr (W & 4) {
        const uint8x16_t raw = vld1q_u8(at.nibbles + t / 2 * 64 + 16 * part);
        v = t % 2 ? vshrq_n_u8(raw, 4) : vandq_u8(raw, vdupq_n_u8(15));
    }
    if constexpr (W & 2) {
        const uint8x16_t raw = vshlq_u8(vld1q_u8(at.pairs + 16 * part), vdupq_n_s8(static_cast<int8_t>(-2 * t)));
        const uint8x16_t two = vandq_u8(raw, vdupq_n_u8(3));
        v = W & 4 ? vorrq_u8(v, vshlq_n_u8(two, 4)) : two;
    }
    if constexpr (W & 1) {
        static const uint8_t kMask[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
        const uint8_t* bits = at.bits + 8 * t + 2 * part;
        const uint8x16_t spread = vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1]));
        v = vorrq_u8(v, vandq_u8(vtstq_u8(spread, vld1q_u8(kMask)), vdupq_n_u8(1 << (W - 1))));
    }
    return v;
}

SPRAT_TARGET inline int8x16_t quad(const int8_t* q) {
    int32_t word;
    __builtin_memcpy(&word, q, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

SPRAT_TARGET inline int8x16_t lowered(uint8x16_t w) { return vreinterpretq_s8_u8(veorq_u8(w, vdupq_n_u8(128))); }

template <int W, bool High>
SPRAT_TARGET inline void bucket(const uint8_t*& data, const uint8_t*& blocks, size_t count, const int8_t* q,
                                float scale, int32_t base, float* y) {
    const int32x4_t start = vdupq_n_s32(W == 8 ? 0 : base >> (8 - W));
    const float32x4_t scales = vdupq_n_f32(scale);
    for (size_t i = 0; i < count; ++i) {
        const Planes at = planes_of(data, W, i);
        for (int part = 0; part < 4; ++part) {
            int32x4_t sum = start;
            for (int t = 0; t < kQuads; ++t) {
                const uint8x16_t w = quarter_tile<W>(at, t, part);
                sum = vdotq_s32(sum, W == 8 ? lowered(w) : vreinterpretq_s8_u8(w), quad(q + 4 * t));
            }
            if constexpr (High) sum = vshlq_n_s32(sum, 8);
            float* to = y + blocks[i] * kRows + 4 * part;
            vst1q_f32(to, vaddq_f32(vld1q_f32(to), vmulq_f32(vcvtq_f32_s32(sum), scales)));
        }
    }
    data += bucket_bytes(W, count);
    blocks += count;
}

#define LOW(W) bucket<W, false>(data, meta, counts[W - 1], q, scale, base, y);
#define HIGH(W) bucket<W, true>(data, meta, counts[W + 7], q, scale, base, y);
#define RAISED(W) case W: return raised<W>(entry, raise, values);

SPRAT_TARGET void multiply(const uint8_t* data, const uint8_t* meta, int panels, const Input& x, int token, float* y) {
    const size_t first = x.at(static_cast<size_t>(token), 0);
    for (size_t p = first; p < first + static_cast<size_t>(panels); ++p) {
        const uint8_t* counts = meta;
        meta += kBuckets;
        const int8_t* q = x.q + p * kPanel;
        const float scale = x.scale[p];
        const int32_t base = x.base[p];
        SPRAT_WIDTHS(LOW)
        SPRAT_WIDTHS(HIGH)
    }
}

template <int W>
SPRAT_TARGET inline void raised(const Planes& entry, int raise, uint8_t* values) {
    const uint8x16_t more = vdupq_n_u8(static_cast<uint8_t>(raise));
    for (int i = 0; i < 4 * kQuads; ++i)
        vst1q_u8(values + 16 * i, vaddq_u8(quarter_tile<W>(entry, i / 4, i % 4), more));
}

SPRAT_TARGET void unpack(const Planes& entry, int width, int raise, uint8_t* values) {
    switch (width) { SPRAT_WIDTHS(RAISED) }
}

// N tokens, 4 rows: `v` is their first quarter tile of the first slot.
template <int N>
SPRAT_TARGET inline void rows_of(const uint8_t* v, const uint32_t* panel, size_t slots, const Input& x, size_t first,
                                 float* y, size_t stride) {
    float32x4_t total[N];
    for (int t = 0; t < N; ++t) total[t] = vdupq_n_f32(0);
    for (size_t s = 0; s < slots; ++s, v += 2 * kEntry) {
        const size_t at = first + (panel[s] & ~kHigh) * size_t{kTokens};
        const int8_t* q = x.q + at * kPanel;
        int8x16_t w[kQuads];
        for (int i = 0; i < kQuads; ++i) w[i] = lowered(vld1q_u8(v + kTile * i));
        for (int t = 0; t < N; ++t) {
            const int8x16_t values = vld1q_s8(q + 16 * t);
            int32x4_t sum = vdotq_laneq_s32(vdupq_n_s32(0), w[0], values, 0);
            sum = vdotq_laneq_s32(sum, w[1], values, 1);
            sum = vdotq_laneq_s32(sum, w[2], values, 2);
            sum = vdotq_laneq_s32(sum, w[3], values, 3);
            if (panel[s] & kHigh) sum = vshlq_n_s32(sum, 8);
            total[t] = vaddq_f32(total[t], vmulq_n_f32(vcvtq_f32_s32(sum), x.scale[at + static_cast<size_t>(t)]));
        }
    }
    for (int t = 0; t < N; ++t) vst1q_f32(y + static_cast<size_t>(t) * stride, total[t]);
}

SPRAT_TARGET void blocks(const uint8_t* values, const uint32_t* panel, size_t slots, const Input& x, size_t group,
                         int count, float* y, size_t stride) {
    const size_t first = x.at(group * kTokens, 0);
    for (size_t part = 0; part < 8; ++part) {  // two blocks, four quarters each
        const uint8_t* v = values + part / 4 * kEntry + part % 4 * 16;
        size_t t = 0;
        for (; t + 8 <= static_cast<size_t>(count); t += 8)
            rows_of<8>(v, panel, slots, x, first + t, y + t * stride + 4 * part, stride);
        for (; t < static_cast<size_t>(count); ++t)
            rows_of<1>(v, panel, slots, x, first + t, y + t * stride + 4 * part, stride);
    }
}

const Kernel kNeon{"neon", kPortable.quantize, multiply, unpack, blocks};

}  // namespace

const Kernel* neon_kernel() {
    static const bool there = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
    return there ? &kNeon : nullptr;
}

}  // namespace sprat::engine
#else
namespace sprat::engine {
const Kernel* neon_kernel() { return nullptr; }
}  // namespace sprat::engine
#endif
