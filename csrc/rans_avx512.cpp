// Eight lanes of a chunk in one register, a column at a time: AVX-512 (Skylake-X, Zen 4 and later).
//
// A column with an escape or raw bits is done again lane by lane.
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

SPRAT_TARGET inline __m256i splat(int value) { return _mm256_set1_epi32(value); }

SPRAT_TARGET inline __m256i load(const void* at) { return _mm256_load_si256(static_cast<const __m256i*>(at)); }

// What eight rows and a class of columns have in common, a lane each.
struct alignas(32) Contexts {
    int32_t first[kLanes];   // first cell with quantizer 0
    int32_t shift[kLanes];   // bits of a slot within its cell
    int32_t middle[kLanes];  // number of symbol 0
    bool raw = false;        // some lane has raw bits

    void fill(const uint8_t* row_class, int col_class) {
        for (int l = 0; l < kLanes; ++l) {
            const int b = bucket_of_sum(row_class[l] + col_class);
            first[l] = b * kMaxCells;
            shift[l] = kProbBits - cell_bits(b);
            middle[l] = (1 << (cell_bits(b) - 1)) - 1;
            raw |= raw_bits(b) > 0;
        }
    }
};

// Eight rows under way.
struct Lanes {
    __m256i x, state;
    const uint16_t* at;
};

// Entry s: next state of state s after an even symbol, and from bit 8 on after an odd one.
template <int S>
SPRAT_TARGET inline __m256i next_states() {
    alignas(32) int32_t next[8] = {};
    for (int s = 0; s < S; ++s) next[s] = Trellis<S>::next[s][0] | Trellis<S>::next[s][1] << 8;
    return load(next);
}

// One column: its integers, or false where a lane has an escape (then nothing has changed).
template <int S>
SPRAT_TARGET inline bool column(const uint64_t* words, const Contexts& contexts, __m256i next, Lanes& lanes,
                                __m256i& q) {
    const __m256i zero = _mm256_setzero_si256(), one = splat(1);
    const __m256i shift = load(contexts.shift), middle = load(contexts.middle);
    __m256i first = load(contexts.first);
    __mmask8 second = 0;  // lanes whose quantizer is 1
    if constexpr (S != 0) {
        second = _mm256_test_epi32_mask(lanes.state, splat(S == 8 ? 1 : 2));
        first = _mm256_mask_add_epi32(first, second, first, splat(kBuckets * kMaxCells));
    }
    const __m256i slot = _mm256_and_si256(lanes.x, splat(kTotal - 1)), number = _mm256_srlv_epi32(slot, shift);
    const __m256i u = _mm256_sub_epi32(slot, _mm256_sllv_epi32(number, shift));
    const __m512i cells = _mm512_i32gather_epi64(_mm256_add_epi32(first, number), words, 8);
    const __m256i low = _mm512_cvtepi64_epi32(cells), high = _mm512_cvtepi64_epi32(_mm512_srli_epi64(cells, 32));
    const __mmask8 other = _mm256_cmpge_epu32_mask(u, _mm256_and_si256(low, splat(2047)));
    const __m256i cell = _mm256_mask_srli_epi32(number, other, low, 25);
    const __m256i symbol = _mm256_sub_epi32(cell, middle);
    if (_mm256_cmpgt_epi32_mask(symbol, middle)) [[unlikely]] return false;
    const __m256i freq = _mm256_mask_mov_epi32(_mm256_srli_epi32(low, 11), other, high);
    const __m256i place = _mm256_mask_add_epi32(u, other, u, _mm256_srai_epi32(high, 16));
    const __m256i x = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_add_epi32(_mm256_and_si256(freq, splat(0x3fff)), one),
                                                          _mm256_srli_epi32(lanes.x, kProbBits)),
                                       place);
    const __mmask8 due = _mm256_cmplt_epu32_mask(x, splat(kLow));
    const __m256i come = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes.at)));
    lanes.at += __builtin_popcount(due);
    lanes.x = _mm256_mask_or_epi32(x, due, _mm256_slli_epi32(x, 16), _mm256_maskz_expand_epi32(due, come));
    q = symbol;
    if constexpr (S != 0) {
        q = _mm256_add_epi32(symbol, symbol);
        q = _mm256_mask_sub_epi32(q, _mm256_mask_cmpgt_epi32_mask(second, symbol, zero), q, one);
        q = _mm256_mask_add_epi32(q, _mm256_mask_cmplt_epi32_mask(second, symbol, zero), q, one);
        const __m256i both = _mm256_permutexvar_epi32(lanes.state, next);
        const __mmask8 odd = _mm256_test_epi32_mask(symbol, one);
        lanes.state = _mm256_and_si256(_mm256_mask_srli_epi32(both, odd, both, 8), splat(S - 1));
    }
    return true;
}

// The same lane by lane. False as decode_one.
template <int S>
SPRAT_TARGET [[gnu::noinline]] bool slow_column(const Decoder& decoder, const uint8_t* row_class, int col_class,
                                                Lanes& lanes, int16_t* out) {
    alignas(32) uint32_t x[kLanes], state[kLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(x), lanes.x);
    _mm256_store_si256(reinterpret_cast<__m256i*>(state), lanes.state);
    for (int l = 0; l < kLanes; ++l) {
        const Lookup* row = decoder.lookups() + row_class[l];
        if (!decode_one<S>(decoder.cells(), row, col_class, x[l], state[l], lanes.at, out[l])) return false;
    }
    lanes.x = load(x);
    lanes.state = load(state);
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
    const __m256i next = next_states<S>();
    Lanes lanes[Count];
    const uint8_t* row_class[Count];
    int16_t* to[Count];
    alignas(64) int16_t columns[Count][8][kLanes];
    Contexts contexts[Count][256];
    bool known[256] = {};
    for (int i = 0; i < Count; ++i) {
        const int64_t first = streams[i]->first + g;
        row_class[i] = shape.row_class + first;
        to[i] = out + first * n;
        lanes[i] = {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(streams[i]->x)), _mm256_setzero_si256(),
                    streams[i]->at};
    }
    for (int64_t j = 0; j < n; ++j) {
        const int col_class = shape.col_class[j];
        if (!known[col_class]) [[unlikely]] {
            for (int i = 0; i < Count; ++i) contexts[i][col_class].fill(row_class[i], col_class);
            known[col_class] = true;
        }
#pragma GCC unroll 4
        for (int i = 0; i < Count; ++i) {
            const Contexts& here = contexts[i][col_class];
            int16_t* const integers = columns[i][j % 8];
            __m256i q;
            if (!here.raw && column<S>(decoder.words(), here, next, lanes[i], q)) [[likely]]
                _mm_store_si128(reinterpret_cast<__m128i*>(integers), _mm256_cvtepi32_epi16(q));
            else if (!slow_column<S>(decoder, row_class[i], col_class, lanes[i], integers))
                return false;
            if (lanes[i].at > streams[i]->end) return false;
            if (j % 8 == 7) turn(columns[i], to[i] + j - 7, n);
        }
    }
    for (int i = 0; i < Count; ++i) {
        for (int64_t j = n / 8 * 8; j < n; ++j)
            for (int l = 0; l < kLanes; ++l) to[i][l * n + j] = columns[i][j % 8][l];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(streams[i]->x), lanes[i].x);
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
