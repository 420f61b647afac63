// AVX2: a tile is two registers. vpmaddubsw adds pairs of products in 16 bits and saturates, which must never happen:
// weights of up to 7 bits, unsigned, times |x| <= 127 stay below 2 * 127 * 127; wider ones go in as |w| <= 128 and
// x with the weight's sign, 2 * 128 * 127 at most.
#include "kernels.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#define SPRAT_TARGET __attribute__((target("avx2")))

namespace sprat::engine {

namespace {

SPRAT_TARGET inline __m256i load(const uint8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }

SPRAT_TARGET inline __m256i splat(int byte) { return _mm256_set1_epi8(static_cast<char>(byte)); }

// Half a tile (8 rows) of an entry.
template <int W>
SPRAT_TARGET inline __m256i half_tile(const Planes& at, int t, int half) {
    if constexpr (W == 8) return load(at.nibbles + 64 * t + 32 * half);
    if constexpr (W == 3) {
        const __m256i a = load(at.pairs + 32 * half);
        const __m256i b = _mm256_and_si256(_mm256_srli_epi16(load(at.bits), 4 * half), splat(15));
        if (t == 2)
            return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(a, 6), splat(3)),
                                   _mm256_and_si256(_mm256_srli_epi16(b, 1), splat(4)));
        return _mm256_and_si256(t == 3 ? b : _mm256_srli_epi16(a, 3 * t), splat(7));
    }
    __m256i v = _mm256_setzero_si256();
    if constexpr (W & 4)
        v = _mm256_and_si256(_mm256_srli_epi16(load(at.nibbles + t / 2 * 64 + 32 * half), t % 2 * 4), splat(15));
    if constexpr (W & 2) {
        const __m256i two = _mm256_and_si256(_mm256_srli_epi16(load(at.pairs + 32 * half), 2 * t), splat(3));
        v = W & 4 ? _mm256_or_si256(v, _mm256_slli_epi16(two, 4)) : two;
    }
    if constexpr (W & 1) {
        int32_t bits;
        __builtin_memcpy(&bits, at.bits + 8 * t + 4 * half, 4);
        const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
        const __m256i mask = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
        const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), byte), mask);
        v = _mm256_or_si256(v, _mm256_and_si256(_mm256_cmpeq_epi8(spread, mask), splat(1 << (W - 1))));
    }
    return v;
}

SPRAT_TARGET inline __m256i quad(const int8_t* q) {
    int32_t word;
    __builtin_memcpy(&word, q, 4);
    return _mm256_set1_epi32(word);
}

// sum + the dot products of four columns; Signed: w is signed bytes, else unsigned ones below 128.
template <bool Signed>
SPRAT_TARGET inline __m256i dot(__m256i sum, __m256i w, __m256i x) {
    const __m256i pairs = Signed ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                                 : _mm256_maddubs_epi16(w, x);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

SPRAT_TARGET inline __m256 times(__m256i sum, bool high, __m256 scale) {
    return _mm256_mul_ps(_mm256_cvtepi32_ps(high ? _mm256_slli_epi32(sum, 8) : sum), scale);
}

template <int W, bool High>
SPRAT_TARGET inline void bucket(const uint8_t*& data, const uint8_t*& blocks, size_t count, const int8_t* q,
                                float scale, int32_t base, float* y) {
    const __m256i start = _mm256_set1_epi32(W == 8 ? 0 : base >> (8 - W));
    const __m256 scales = _mm256_set1_ps(scale);
    for (size_t i = 0; i < count; ++i) {
        const Planes at = planes_of(data, W, i);
        for (int half = 0; half < 2; ++half) {
            __m256i sum = start;
            for (int t = 0; t < kQuads; ++t) {
                const __m256i w = half_tile<W>(at, t, half);
                sum = W == 8 ? dot<true>(sum, _mm256_xor_si256(w, splat(128)), quad(q + 4 * t))
                             : dot<false>(sum, w, quad(q + 4 * t));
            }
            float* to = y + blocks[i] * kRows + 8 * half;
            _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), times(sum, High, scales)));
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
    for (int i = 0; i < 2 * kQuads; ++i)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + 32 * i),
                            _mm256_add_epi8(half_tile<W>(entry, i / 2, i % 2), splat(raise)));
}

SPRAT_TARGET void unpack(const Planes& entry, int width, int raise, uint8_t* values) {
    switch (width) { SPRAT_WIDTHS(RAISED) }
}

// N tokens, 8 rows: `v` is their first half tile of the first slot.
template <int N>
SPRAT_TARGET inline void rows_of(const uint8_t* v, const uint32_t* panel, size_t slots, const Input& x, size_t first,
                                 float* y, size_t stride) {
    __m256 total[N];
    for (int t = 0; t < N; ++t) total[t] = _mm256_setzero_ps();
    for (size_t s = 0; s < slots; ++s, v += 2 * kEntry) {
        const size_t at = first + (panel[s] & ~kHigh) * size_t{kTokens};
        const int8_t* q = x.q + at * kPanel;
        __m256i sum[N];
        for (int t = 0; t < N; ++t) sum[t] = _mm256_setzero_si256();
        for (int i = 0; i < kQuads; ++i) {
            const __m256i w = _mm256_xor_si256(load(v + kTile * i), splat(128));
            for (int t = 0; t < N; ++t) sum[t] = dot<true>(sum[t], w, quad(q + 16 * t + 4 * i));
        }
        for (int t = 0; t < N; ++t) {
            const __m256 scale = _mm256_set1_ps(x.scale[at + static_cast<size_t>(t)]);
            total[t] = _mm256_add_ps(total[t], times(sum[t], panel[s] & kHigh, scale));
        }
    }
    for (int t = 0; t < N; ++t) _mm256_storeu_ps(y + static_cast<size_t>(t) * stride, total[t]);
}

SPRAT_TARGET void blocks(const uint8_t* values, const uint32_t* panel, size_t slots, const Input& x, size_t group,
                         int count, float* y, size_t stride) {
    const size_t first = x.at(group * kTokens, 0);
    for (size_t part = 0; part < 4; ++part) {  // two blocks, two halves each
        const uint8_t* v = values + part / 2 * kEntry + part % 2 * 32;
        size_t t = 0;
        for (; t + 4 <= static_cast<size_t>(count); t += 4)
            rows_of<4>(v, panel, slots, x, first + t, y + t * stride + 8 * part, stride);
        for (; t < static_cast<size_t>(count); ++t)
            rows_of<1>(v, panel, slots, x, first + t, y + t * stride + 8 * part, stride);
    }
}

const Kernel kAvx2{"avx2", kPortable.quantize, multiply, unpack, blocks};

}  // namespace

const Kernel* avx2_kernel() {
    static const bool there = __builtin_cpu_supports("avx2");
    return there ? &kAvx2 : nullptr;
}

}  // namespace sprat::engine
#else
namespace sprat::engine {
const Kernel* avx2_kernel() { return nullptr; }
}  // namespace sprat::engine
#endif
