// AVX-512 with VNNI (Cascade Lake, Ice Lake, Zen 4 and later): a tile is one register, vpdpbusd its product.
#include <limits>

#include "kernels.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own headers read a register they declare undefined on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define SPRAT_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

namespace sprat::engine {

namespace {

SPRAT_TARGET inline __m512i splat(int byte) { return _mm512_set1_epi8(static_cast<char>(byte)); }

// The four tiles of an entry.
template <int W>
SPRAT_TARGET inline void tiles(const Planes& at, __m512i* out) {
    if constexpr (W == 8) {
        for (int t = 0; t < 4; ++t) out[t] = _mm512_loadu_si512(at.nibbles + 64 * t);
        return;
    }
    if constexpr (W == 3) {
        const __m512i a = _mm512_loadu_si512(at.pairs), seven = splat(7);
        const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at.bits)));
        const __m512i by = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_setzero_si256(), 0);
        const __m512i b = _mm512_srlv_epi16(both, by);
        constexpr int kChoose = 0xca;  // a ? b : c, bit by bit
        out[0] = _mm512_and_si512(a, seven);
        out[1] = _mm512_and_si512(_mm512_srli_epi16(a, 3), seven);
        const __m512i c = _mm512_ternarylogic_epi32(splat(3), _mm512_srli_epi16(a, 6), _mm512_srli_epi16(b, 1), kChoose);
        out[2] = _mm512_and_si512(c, seven);
        out[3] = _mm512_and_si512(b, seven);
        return;
    }
    if constexpr (W & 4) {
        const __m512i a = _mm512_loadu_si512(at.nibbles), b = _mm512_loadu_si512(at.nibbles + 64), low = splat(15);
        out[0] = _mm512_and_si512(a, low);
        out[1] = _mm512_and_si512(_mm512_srli_epi16(a, 4), low);
        out[2] = _mm512_and_si512(b, low);
        out[3] = _mm512_and_si512(_mm512_srli_epi16(b, 4), low);
    }
    if constexpr ((W & 6) == 6) {
        const __m512i p = _mm512_loadu_si512(at.pairs), two = splat(0x30);
        constexpr int kOrAnd = 0xf8;  // a | (b & c)
        out[0] = _mm512_ternarylogic_epi32(out[0], _mm512_slli_epi16(p, 4), two, kOrAnd);
        out[1] = _mm512_ternarylogic_epi32(out[1], _mm512_slli_epi16(p, 2), two, kOrAnd);
        out[2] = _mm512_ternarylogic_epi32(out[2], p, two, kOrAnd);
        out[3] = _mm512_ternarylogic_epi32(out[3], _mm512_srli_epi16(p, 2), two, kOrAnd);
    } else if constexpr (W & 2) {
        const __m512i p = _mm512_loadu_si512(at.pairs), two = splat(3);
        out[0] = _mm512_and_si512(p, two);
        out[1] = _mm512_and_si512(_mm512_srli_epi16(p, 2), two);
        out[2] = _mm512_and_si512(_mm512_srli_epi16(p, 4), two);
        out[3] = _mm512_and_si512(_mm512_srli_epi16(p, 6), two);
    }
    if constexpr (W & 1) {
        const __m512i top = splat(1 << (W - 1));
        for (int t = 0; t < 4; ++t) {
            uint64_t bits;
            __builtin_memcpy(&bits, at.bits + 8 * t, 8);
            out[t] = W == 1 ? _mm512_maskz_mov_epi8(bits, top) : _mm512_mask_add_epi8(out[t], bits, out[t], top);
        }
    }
}

struct Panel {  // of one token
    __m512i x[4];
    __m512 scale;
    int32_t base;
};

template <int W, bool High>
SPRAT_TARGET inline void bucket(const uint8_t*& data, const uint8_t*& blocks, size_t count, const Panel& panel,
                                float* y) {
    if (!count) return;
    const __m512i start = _mm512_set1_epi32(panel.base >> (8 - W));
    const __m512i x0 = panel.x[0], x1 = panel.x[1], x2 = panel.x[2], x3 = panel.x[3];
    const __m512 scale = panel.scale;
    for (size_t i = 0; i < count; ++i) {
        __m512i v[4];
        tiles<W>(planes_of(data, W, i), v);
        __m512i dot = _mm512_dpbusd_epi32(start, v[0], x0);
        dot = _mm512_dpbusd_epi32(dot, v[1], x1);
        dot = _mm512_dpbusd_epi32(dot, v[2], x2);
        dot = _mm512_dpbusd_epi32(dot, v[3], x3);
        if constexpr (High) dot = _mm512_slli_epi32(dot, 8);
        float* to = y + blocks[i] * kRows;
        _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), _mm512_mul_ps(_mm512_cvtepi32_ps(dot), scale)));
    }
    data += bucket_bytes(W, count);
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

#define LOW(W) bucket<W, false>(data, meta, counts[W - 1], panel, y);
#define HIGH(W) bucket<W, true>(data, meta, counts[W + 7], panel, y);
#define RAISED(W) case W: return raised<W>(entry, raise, values);

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
        SPRAT_WIDTHS(LOW)
        uint64_t high;
        __builtin_memcpy(&high, counts + 8, 8);
        if (!high) continue;
        SPRAT_WIDTHS(HIGH)
    }
}

template <int W>
SPRAT_TARGET inline void raised(const Planes& entry, int raise, uint8_t* values) {
    __m512i v[4];
    tiles<W>(entry, v);
    for (int t = 0; t < 4; ++t) _mm512_store_si512(values + 64 * t, _mm512_add_epi8(v[t], splat(raise)));
}

SPRAT_TARGET void unpack(const Planes& entry, int width, int raise, uint8_t* values) {
    switch (width) { SPRAT_WIDTHS(RAISED) }
}

SPRAT_TARGET inline __m512i quad(const int8_t* q) {
    int32_t word;
    __builtin_memcpy(&word, q, 4);
    return _mm512_set1_epi32(word);
}

// N tokens times one slot: sum[2 t], sum[2 t + 1] += the products with its two blocks.
template <int N, bool High>
SPRAT_TARGET inline void slot(const uint8_t* v, const int8_t* q, const float* scale, const int32_t* base, __m512* sum) {
    const __m512i a0 = _mm512_load_si512(v), a1 = _mm512_load_si512(v + 64), a2 = _mm512_load_si512(v + 128),
                  a3 = _mm512_load_si512(v + 192), b0 = _mm512_load_si512(v + 256), b1 = _mm512_load_si512(v + 320),
                  b2 = _mm512_load_si512(v + 384), b3 = _mm512_load_si512(v + 448);
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
        __m512i x = quad(q + 16 * t);
        const __m512i start = _mm512_set1_epi32(base[t]);
        __m512i a = _mm512_dpbusd_epi32(start, a0, x), b = _mm512_dpbusd_epi32(start, b0, x);
        x = quad(q + 16 * t + 4);
        a = _mm512_dpbusd_epi32(a, a1, x);
        b = _mm512_dpbusd_epi32(b, b1, x);
        x = quad(q + 16 * t + 8);
        a = _mm512_dpbusd_epi32(a, a2, x);
        b = _mm512_dpbusd_epi32(b, b2, x);
        x = quad(q + 16 * t + 12);
        a = _mm512_dpbusd_epi32(a, a3, x);
        b = _mm512_dpbusd_epi32(b, b3, x);
        if constexpr (High) {
            a = _mm512_slli_epi32(a, 8);
            b = _mm512_slli_epi32(b, 8);
        }
        const __m512 s = _mm512_set1_ps(scale[t]);
        sum[2 * t] = _mm512_add_ps(sum[2 * t], _mm512_mul_ps(_mm512_cvtepi32_ps(a), s));
        sum[2 * t + 1] = _mm512_add_ps(sum[2 * t + 1], _mm512_mul_ps(_mm512_cvtepi32_ps(b), s));
    }
}

template <int N>
SPRAT_TARGET void blocks_of(const uint8_t* values, const uint32_t* panel, size_t slots, const Input& x, size_t group,
                            int from, float* y, size_t stride) {
    __m512 sum[2 * N];
#pragma GCC unroll 16
    for (int i = 0; i < 2 * N; ++i) sum[i] = _mm512_setzero_ps();
    const size_t first = x.at(group * kTokens + static_cast<size_t>(from), 0);
    const int8_t* q = x.q + first * kPanel;
    const float* scale = x.scale + first;
    const int32_t* base = x.base + first;
    for (size_t s = 0; s < slots; ++s) {
        const size_t p = (panel[s] & ~kHigh) * size_t{kTokens};
        const uint8_t* v = values + s * 2 * kEntry;
        if (panel[s] & kHigh) [[unlikely]]
            slot<N, true>(v, q + p * kPanel, scale + p, base + p, sum);
        else
            slot<N, false>(v, q + p * kPanel, scale + p, base + p, sum);
    }
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
        float* to = y + static_cast<size_t>(from + t) * stride;
        _mm512_storeu_ps(to, sum[2 * t]);
        _mm512_storeu_ps(to + kRows, sum[2 * t + 1]);
    }
}

void blocks(const uint8_t* values, const uint32_t* panel, size_t slots, const Input& x, size_t group, int count,
            float* y, size_t stride) {
    int t = 0;
    for (; t + 8 <= count; t += 8) blocks_of<8>(values, panel, slots, x, group, t, y, stride);
    for (; t + 4 <= count; t += 4) blocks_of<4>(values, panel, slots, x, group, t, y, stride);
    for (; t + 2 <= count; t += 2) blocks_of<2>(values, panel, slots, x, group, t, y, stride);
    for (; t < count; ++t) blocks_of<1>(values, panel, slots, x, group, t, y, stride);
}

const Kernel kAvx512{"avx512", quantize, multiply, unpack, blocks};

}  // namespace

const Kernel* avx512_kernel() {
    static const bool there = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                              __builtin_cpu_supports("avx512vnni");
    return there ? &kAvx512 : nullptr;
}

}  // namespace sprat::engine
#else
namespace sprat::engine {
const Kernel* avx512_kernel() { return nullptr; }
}  // namespace sprat::engine
#endif
