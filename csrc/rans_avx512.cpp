// Eight lanes of a chunk in one register, a column at a time: AVX-512 (Skylake-X, Zen 4 and later).
//
// Lanes are 64 bits wide, so that one gather brings half a cell and one multiplication a step. A column with an escape
// or raw bits is done again lane by lane.
#include <numeric>

#include "rans_decode.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own headers read a register they declare undefined on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define SPRAT_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,popcnt")))

namespace sprat::rans {

namespace {

SPRAT_TARGET inline __m512i splat(int64_t value) { return _mm512_set1_epi64(value); }

// Eight rows under way.
struct Lanes {
    __m512i x, state, row_class;  // the class less kOffset
    const uint16_t* at;
};

// Next states as one number: state s after parity p at bit 8 s + 4 p.
template <int S>
constexpr uint64_t next_states() {
    uint64_t out = 0;
    for (unsigned s = 0; s < S; ++s)
        for (unsigned p = 0; p < 2; ++p) out |= uint64_t{Trellis<S>::next[s][p]} << (8 * s + 4 * p);
    return out;
}

// The last bucket without raw bits.
constexpr int last_plain() {
    int b = kBuckets - 1;
    while (raw_bits(b)) --b;
    return b;
}

// One column: its integers, or false where a lane has an escape or raw bits (then nothing has changed).
template <int S>
SPRAT_TARGET inline bool column(const Cell* cells, __m512i col_class, Lanes& lanes, __m512i& q) {
    const __m512i zero = _mm512_setzero_si512(), one = splat(1);
    // cell_bits is 4, and one more beyond each of three buckets.
    const __m512i b = _mm512_max_epi64(_mm512_add_epi64(lanes.row_class, col_class), zero);
    const __mmask8 raw = _mm512_cmpgt_epi64_mask(b, splat(last_plain()));
    __m512i shift = splat(kProbBits - 4);
    shift = _mm512_mask_sub_epi64(shift, _mm512_cmpgt_epi64_mask(b, splat(kZero - 4)), shift, one);
    shift = _mm512_mask_sub_epi64(shift, _mm512_cmpgt_epi64_mask(b, splat(kZero + 2)), shift, one);
    shift = _mm512_mask_sub_epi64(shift, _mm512_cmpgt_epi64_mask(b, splat(kZero + 6)), shift, one);
    __m512i first = _mm512_slli_epi64(_mm512_min_epi64(b, splat(kBuckets - 1)), 7);
    __mmask8 second = 0;  // lanes whose quantizer is 1
    if constexpr (S != 0) {
        second = _mm512_test_epi64_mask(lanes.state, splat(S == 8 ? 1 : 2));
        first = _mm512_mask_add_epi64(first, second, first, splat(kBuckets * kMaxCells));
    }
    const __m512i slot = _mm512_and_si512(lanes.x, splat(kTotal - 1)), number = _mm512_srlv_epi64(slot, shift);
    const __m512i u = _mm512_sub_epi64(slot, _mm512_sllv_epi64(number, shift));
    const __m512i index = _mm512_slli_epi64(_mm512_add_epi64(first, number), 1);
    const __m512i low = _mm512_i64gather_epi64(index, &cells->half[0], 8),
                  high = _mm512_i64gather_epi64(index, &cells->half[1], 8);
    const __m512i half = _mm512_mask_mov_epi64(low, _mm512_cmpge_epu64_mask(u, _mm512_srli_epi64(low, 48)), high);
    const __m512i symbol = _mm512_srai_epi64(_mm512_slli_epi64(half, 16), 48);
    if (_mm512_cmpeq_epi64_mask(symbol, splat(kEscape)) | raw) [[unlikely]] return false;
    const __m512i bias = _mm512_srai_epi64(_mm512_slli_epi64(half, 32), 48);
    const __m512i freq = _mm512_and_si512(half, splat(0xffff));
    const __m512i x = _mm512_add_epi64(_mm512_mul_epu32(freq, _mm512_srli_epi64(lanes.x, kProbBits)),
                                       _mm512_add_epi64(u, bias));
    const __mmask8 due = _mm512_cmplt_epu64_mask(x, splat(kLow));
    const __m512i words = _mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes.at)));
    lanes.at += __builtin_popcount(due);
    lanes.x = _mm512_mask_or_epi64(x, due, _mm512_slli_epi64(x, 16), _mm512_maskz_expand_epi64(due, words));
    q = symbol;
    if constexpr (S != 0) {
        q = _mm512_add_epi64(symbol, symbol);
        q = _mm512_mask_sub_epi64(q, _mm512_mask_cmpgt_epi64_mask(second, symbol, zero), q, one);
        q = _mm512_mask_add_epi64(q, _mm512_mask_cmplt_epi64_mask(second, symbol, zero), q, one);
        const __m512i parity = _mm512_and_si512(symbol, one);
        const __m512i bit = _mm512_slli_epi64(_mm512_add_epi64(_mm512_add_epi64(lanes.state, lanes.state), parity), 2);
        constexpr auto kNext = static_cast<int64_t>(next_states<S>());
        lanes.state = _mm512_and_si512(_mm512_srlv_epi64(splat(kNext), bit), splat(S - 1));
    }
    return true;
}

// The same lane by lane. False as decode_one.
template <int S>
SPRAT_TARGET [[gnu::noinline]] bool slow_column(const Decoder& decoder, const uint8_t* row_class, int col_class,
                                                Lanes& lanes, int16_t* out) {
    alignas(64) uint64_t x[kLanes], state[kLanes];
    _mm512_store_si512(x, lanes.x);
    _mm512_store_si512(state, lanes.state);
    for (int l = 0; l < kLanes; ++l) {
        auto lane = static_cast<uint32_t>(x[l]), s = static_cast<uint32_t>(state[l]);
        const Lookup* row = decoder.lookups() + row_class[l];
        if (!decode_one<S>(decoder.cells(), row, col_class, lane, s, lanes.at, out[l])) return false;
        x[l] = lane;
        state[l] = s;
    }
    lanes.x = _mm512_load_si512(x);
    lanes.state = _mm512_load_si512(state);
    return true;
}

// Eight columns of eight rows, turned over: row l to out + l * stride.
SPRAT_TARGET inline void turn(const int16_t (*columns)[kLanes], int16_t* out, int64_t stride) {
    __m128i a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = _mm_load_si128(reinterpret_cast<const __m128i*>(columns[i]));
    for (int i = 0; i < 4; ++i) {
        b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
    }
    for (int h = 0; h < 2; ++h) {
        const __m128i low = _mm_unpacklo_epi32(b[h], b[2 + h]), high = _mm_unpackhi_epi32(b[h], b[2 + h]);
        const __m128i low2 = _mm_unpacklo_epi32(b[4 + h], b[6 + h]), high2 = _mm_unpackhi_epi32(b[4 + h], b[6 + h]);
        int16_t* to = out + 4 * h * stride;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi64(low, low2));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + stride), _mm_unpackhi_epi64(low, low2));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * stride), _mm_unpacklo_epi64(high, high2));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * stride), _mm_unpackhi_epi64(high, high2));
    }
}

template <int S, int Count>
SPRAT_TARGET bool groups_of(const Decoder& decoder, const Shape& shape, Stream* const* streams, int64_t g,
                            int16_t* out) {
    const int64_t n = shape.columns;
    Lanes lanes[Count];
    const uint8_t* row_class[Count];
    int16_t* to[Count];
    alignas(64) int16_t columns[Count][8][kLanes];
    for (int i = 0; i < Count; ++i) {
        const int64_t first = streams[i]->first + g;
        row_class[i] = shape.row_class + first;
        to[i] = out + first * n;
        const __m128i classes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row_class[i]));
        lanes[i] = {_mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(streams[i]->x))),
                    _mm512_setzero_si512(), _mm512_sub_epi64(_mm512_cvtepu8_epi64(classes), splat(kOffset)),
                    streams[i]->at};
    }
    for (int64_t j = 0; j < n; ++j) {
        const __m512i col_class = splat(shape.col_class[j]);
#pragma GCC unroll 2
        for (int i = 0; i < Count; ++i) {
            int16_t* const here = columns[i][j % 8];
            __m512i q;
            if (column<S>(decoder.cells(), col_class, lanes[i], q)) [[likely]]
                _mm_store_si128(reinterpret_cast<__m128i*>(here), _mm512_cvtepi64_epi16(q));
            else if (!slow_column<S>(decoder, row_class[i], shape.col_class[j], lanes[i], here))
                return false;
            if (lanes[i].at > streams[i]->end) return false;
            if (j % 8 == 7) turn(columns[i], to[i] + j - 7, n);
        }
    }
    for (int i = 0; i < Count; ++i) {
        for (int64_t j = n / 8 * 8; j < n; ++j)
            for (int l = 0; l < kLanes; ++l) to[i][l * n + j] = columns[i][j % 8][l];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(streams[i]->x), _mm512_cvtepi64_epi32(lanes[i].x));
        streams[i]->at = lanes[i].at;
    }
    return true;
}

template <int S>
bool groups(const Decoder& decoder, const Shape& shape, Stream* const* streams, int count, int64_t g, int16_t* out) {
    static_assert(kTogether == 2);
    const auto run = count == 2 ? groups_of<S, 2> : groups_of<S, 1>;
    return run(decoder, shape, streams, g, out);
}

}  // namespace

DecodeGroups fast_groups(int trellis, const Shape& shape) {
    static const bool there = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    // Where raw bits are the rule, every column would go the slow way.
    const auto mean = [](const uint8_t* v, int64_t n) { return std::accumulate(v, v + n, int64_t{0}) / n; };
    const int64_t sum = mean(shape.row_class, shape.rows) + mean(shape.col_class, shape.columns);
    if (!there || raw_bits(bucket_of_sum(static_cast<int>(sum)))) return nullptr;
    return trellis == 0 ? groups<0> : trellis == 4 ? groups<4> : groups<8>;
}

}  // namespace sprat::rans
#else
namespace sprat::rans {
DecodeGroups fast_groups(int, const Shape&) { return nullptr; }
}  // namespace sprat::rans
#endif
