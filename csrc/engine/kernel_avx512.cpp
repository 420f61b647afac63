// AVX-512 with VNNI and VBMI (Ice Lake, Zen 4 and later): a tile is one register, vpdpbusd its product.
#include <limits>

#include "kernels.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own headers read a register they declare undefined on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define SPRAT_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")))

namespace sprat::engine {

namespace {

// Constants of a width whose tiles are rows of bits: bring `width` bytes into each 8, then 8 fields of `width` bits.
struct Fields {
    __m512i bytes, shifts;
};

template <int W>
SPRAT_TARGET inline Fields fields() {
    alignas(64) uint8_t bytes[64], shifts[64];
    for (int i = 0; i < 8; ++i)
        for (int b = 0; b < 8; ++b) {
            bytes[8 * i + b] = static_cast<uint8_t>(i * W + std::min(b, W - 1));
            shifts[8 * i + b] = static_cast<uint8_t>(b * W);
        }
    return {_mm512_load_si512(bytes), _mm512_load_si512(shifts)};
}

// The four tiles of an entry.
template <int W>
SPRAT_TARGET inline void tiles(const uint8_t* at, const Fields& f, __m512i* out) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << W) - 1));
    if constexpr (W == 8) {
        for (int t = 0; t < 4; ++t) out[t] = _mm512_loadu_si512(at + 64 * t);
    } else if constexpr (W == 4) {
        const __m512i a = _mm512_loadu_si512(at), b = _mm512_loadu_si512(at + 64);
        out[0] = _mm512_and_si512(a, mask);
        out[1] = _mm512_and_si512(_mm512_srli_epi16(a, 4), mask);
        out[2] = _mm512_and_si512(b, mask);
        out[3] = _mm512_and_si512(_mm512_srli_epi16(b, 4), mask);
    } else if constexpr (W == 2) {
        const __m512i a = _mm512_loadu_si512(at);
        out[0] = _mm512_and_si512(a, mask);
        out[1] = _mm512_and_si512(_mm512_srli_epi16(a, 2), mask);
        out[2] = _mm512_and_si512(_mm512_srli_epi16(a, 4), mask);
        out[3] = _mm512_and_si512(_mm512_srli_epi16(a, 6), mask);
    } else {
        for (int t = 0; t < 4; ++t) {
            const __m512i raw = _mm512_permutexvar_epi8(f.bytes, _mm512_loadu_si512(at + 8 * W * t));
            out[t] = _mm512_and_si512(_mm512_multishift_epi64_epi8(f.shifts, raw), mask);
        }
    }
}

struct Panel {  // of one token
    __m512i x[4];
    __m512 scale;
    int32_t base;
};

template <int W, bool High>
SPRAT_TARGET inline void bucket(const uint8_t*& data, const uint8_t*& blocks, int count, const Panel& panel, float* y) {
    if (!count) return;
    const Fields f = is_shifted(W) ? Fields{} : fields<W>();
    const __m512i start = _mm512_set1_epi32(panel.base >> (8 - W));
    const __m512i x0 = panel.x[0], x1 = panel.x[1], x2 = panel.x[2], x3 = panel.x[3];
    const __m512 scale = panel.scale;
    const uint8_t* at = data;
    for (int i = 0; i < count; ++i, at += entry_bytes(W)) {
        __m512i v[4];
        tiles<W>(at, f, v);
        __m512i dot = _mm512_dpbusd_epi32(start, v[0], x0);
        __m512i other = _mm512_dpbusd_epi32(_mm512_setzero_si512(), v[1], x1);
        dot = _mm512_dpbusd_epi32(dot, v[2], x2);
        other = _mm512_dpbusd_epi32(other, v[3], x3);
        dot = _mm512_add_epi32(dot, other);
        if constexpr (High) dot = _mm512_slli_epi32(dot, 8);
        float* to = y + blocks[i] * kRows;
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_mul_ps(_mm512_cvtepi32_ps(dot), scale)));
    }
    data = at;
    blocks += count;
}

SPRAT_TARGET void quantize(const float* x, size_t panels, size_t stride, int8_t* q, float* scale, int32_t* base) {
    for (size_t p = 0; p < panels; ++p, x += kPanel, q += stride * kPanel, scale += stride, base += stride) {
        const __m512 v = _mm512_loadu_ps(x), size = _mm512_abs_ps(v);
        const bool bad = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        const float most = bad ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(size);
        *scale = most / 127.0f;
        const float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
        const __m512 scaled = _mm512_mul_ps(v, _mm512_set1_ps(inverse));
        const __mmask16 finite = _mm512_cmp_ps_mask(scaled, scaled, _CMP_ORD_Q);
        const __m512i i = _mm512_maskz_cvtps_epi32(finite, scaled);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(i));
        *base = -128 * _mm512_reduce_add_epi32(i);
    }
}

SPRAT_TARGET void multiply(const uint8_t* data, const uint8_t* meta, int panels, const Input& x, int token, float* y) {
    const size_t first = x.at(static_cast<size_t>(token), 0);
    const int8_t* q = x.q + first * kPanel;
    const float* scale = x.scale + first;
    const int32_t* base = x.base + first;
    for (int p = 0; p < panels; ++p) {
        const uint8_t* counts = meta;
        meta += kBuckets;
        Panel panel;
        const __m128i quads = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + p * kPanel));
        panel.x[0] = _mm512_broadcastd_epi32(quads);
        panel.x[1] = _mm512_broadcastd_epi32(_mm_shuffle_epi32(quads, 0x55));
        panel.x[2] = _mm512_broadcastd_epi32(_mm_shuffle_epi32(quads, 0xaa));
        panel.x[3] = _mm512_broadcastd_epi32(_mm_shuffle_epi32(quads, 0xff));
        panel.scale = _mm512_set1_ps(scale[p]);
        panel.base = base[p];
        bucket<1, false>(data, meta, counts[0], panel, y);
        bucket<2, false>(data, meta, counts[1], panel, y);
        bucket<3, false>(data, meta, counts[2], panel, y);
        bucket<4, false>(data, meta, counts[3], panel, y);
        bucket<5, false>(data, meta, counts[4], panel, y);
        bucket<6, false>(data, meta, counts[5], panel, y);
        bucket<7, false>(data, meta, counts[6], panel, y);
        bucket<8, false>(data, meta, counts[7], panel, y);
        uint64_t high;
        __builtin_memcpy(&high, counts + 8, 8);
        if (!high) continue;
        bucket<1, true>(data, meta, counts[8], panel, y);
        bucket<2, true>(data, meta, counts[9], panel, y);
        bucket<3, true>(data, meta, counts[10], panel, y);
        bucket<4, true>(data, meta, counts[11], panel, y);
        bucket<5, true>(data, meta, counts[12], panel, y);
        bucket<6, true>(data, meta, counts[13], panel, y);
        bucket<7, true>(data, meta, counts[14], panel, y);
        bucket<8, true>(data, meta, counts[15], panel, y);
    }
}

template <int W>
SPRAT_TARGET inline void raised(const uint8_t* entry, int raise, uint8_t* values) {
    __m512i v[4];
    tiles<W>(entry, is_shifted(W) ? Fields{} : fields<W>(), v);
    const __m512i more = _mm512_set1_epi8(static_cast<char>(raise));
    for (int t = 0; t < 4; ++t) _mm512_store_si512(values + 64 * t, _mm512_add_epi8(v[t], more));
}

SPRAT_TARGET void unpack(const uint8_t* entry, int width, int raise, uint8_t* values) {
    switch (width) {
        case 1: return raised<1>(entry, raise, values);
        case 2: return raised<2>(entry, raise, values);
        case 3: return raised<3>(entry, raise, values);
        case 4: return raised<4>(entry, raise, values);
        case 5: return raised<5>(entry, raise, values);
        case 6: return raised<6>(entry, raise, values);
        case 7: return raised<7>(entry, raise, values);
        default: return raised<8>(entry, raise, values);
    }
}

SPRAT_TARGET inline __m512i quad(const int8_t* q) {
    int32_t word;
    __builtin_memcpy(&word, q, 4);
    return _mm512_set1_epi32(word);
}

// N tokens times one slot: their int32 dot products.
template <int N, bool High>
SPRAT_TARGET inline void slot(const uint8_t* v, const int8_t* q, const float* scale, const int32_t* base, __m512* sum) {
    const __m512i a = _mm512_load_si512(v), b = _mm512_load_si512(v + 64), c = _mm512_load_si512(v + 128),
                  d = _mm512_load_si512(v + 192);
#pragma GCC unroll 16
    for (int t = 0; t < N; ++t) {
        __m512i dot = _mm512_dpbusd_epi32(_mm512_set1_epi32(base[t]), a, quad(q + 16 * t));
        dot = _mm512_dpbusd_epi32(dot, b, quad(q + 16 * t + 4));
        dot = _mm512_dpbusd_epi32(dot, c, quad(q + 16 * t + 8));
        dot = _mm512_dpbusd_epi32(dot, d, quad(q + 16 * t + 12));
        if constexpr (High) dot = _mm512_slli_epi32(dot, 8);
        sum[t] = _mm512_add_ps(sum[t], _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(scale[t])));
    }
}

template <int N>
SPRAT_TARGET void block_of(const uint8_t* values, const uint32_t* panel, size_t slots, const Input& x, size_t group,
                           int from, float* y) {
    __m512 sum[N];
#pragma GCC unroll 16
    for (int t = 0; t < N; ++t) sum[t] = _mm512_setzero_ps();
    const size_t first = x.at(group * kTokens + static_cast<size_t>(from), 0);
    const int8_t* q = x.q + first * kPanel;
    const float* scale = x.scale + first;
    const int32_t* base = x.base + first;
    for (size_t s = 0; s < slots; ++s) {
        const size_t p = (panel[s] & ~kHigh) * size_t{kTokens};
        const uint8_t* v = values + s * kEntry;
        if (panel[s] & kHigh) [[unlikely]]
            slot<N, true>(v, q + p * kPanel, scale + p, base + p, sum);
        else
            slot<N, false>(v, q + p * kPanel, scale + p, base + p, sum);
    }
#pragma GCC unroll 16
    for (int t = 0; t < N; ++t) _mm512_storeu_ps(y + (from + t) * kRows, sum[t]);
}

void block(const uint8_t* values, const uint32_t* panel, size_t slots, const Input& x, size_t group, int count,
           float* y) {
    if (count == kTokens) return block_of<16>(values, panel, slots, x, group, 0, y);
    int t = 0;
    for (; t + 4 <= count; t += 4) block_of<4>(values, panel, slots, x, group, t, y);
    for (; t < count; ++t) block_of<1>(values, panel, slots, x, group, t, y);
}

const Kernel kAvx512{"avx512", quantize, multiply, unpack, block};

}  // namespace

const Kernel* avx512_kernel() {
    static const bool there = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                              __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
    return there ? &kAvx512 : nullptr;
}

}  // namespace sprat::engine
#else
namespace sprat::engine {
const Kernel* avx512_kernel() { return nullptr; }
}  // namespace sprat::engine
#endif
