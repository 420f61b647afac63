// The model that encoder, decoder and docs/format.md share: buckets, alphabets, frequencies, alias cells.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace sprat::rans {

constexpr int kBuckets = 64;      // contexts a quantizer: bucket b expects symbols of std 2^((b - kZero) / 4)
constexpr int kZero = 24;
constexpr int kOffset = 128;      // bucket = clip(row_class + col_class - kOffset, 0, kBuckets - 1)
constexpr int kSums = 511;        // values that row_class + col_class can take
constexpr int kContexts = 2 * kBuckets;
constexpr int kMaxCells = 128;
constexpr int kProbBits = 14;
constexpr uint32_t kTotal = 1u << kProbBits;
constexpr uint32_t kLow = 1u << 16;  // rANS states live in [2^16, 2^32) and are refilled by 16-bit words
constexpr int kLanes = 8;
constexpr int64_t kChunk = 131072;   // weights a chunk, about
constexpr int kAbsent = 127;         // level of a symbol that has no slot (coded by escape)
constexpr int64_t kEscape = 0x7fff;  // symbol of the escape cell in decode tables

// log2 of the alphabet of bucket b: symbols -K..K and the escape, K = cells / 2 - 1. About ten deviations.
constexpr int cell_bits(int b) {
    return b <= kZero - 4 ? 4 : b <= kZero + 2 ? 5 : b <= kZero + 6 ? 6 : 7;
}
// Low bits of a symbol that are sent raw: keeps the coded part's std below 2^3.5.
constexpr int raw_bits(int b) { return b <= kZero + 14 ? 0 : (b - kZero - 14 + 3) / 4; }

constexpr int bucket_of_sum(int sum) {
    const int b = sum - kOffset;
    return b < 0 ? 0 : b >= kBuckets ? kBuckets - 1 : b;
}

using Levels = std::array<uint8_t, kMaxCells>;    // -8 log2 p up to a constant; kAbsent: no slot
using Freqs = std::array<uint16_t, kMaxCells>;    // sums to kTotal over the first `cells` entries

// One alias cell: slot u of it belongs to half[u >= half[0].cut]; its position within the symbol is u + bias.
struct Half {
    uint16_t freq;
    int16_t bias;
    int16_t symbol;  // already signed; kEscape for the escape
    uint16_t cut;    // the cell's, in both
};
struct Cell {
    Half half[2];
};
inline void check_frequencies(const uint16_t* freq, int cells) {
    uint32_t sum = 0;
    for (int i = 0; i < cells; ++i) sum += freq[i];
    if (sum != kTotal || freq[cells - 1] == 0) throw std::invalid_argument("frequencies do not sum to 2^14");
}

inline void alias_cells(const uint16_t* freq, int bits, Cell* cells) {
    const int count = 1 << bits, escape = count - 1, middle = count / 2 - 1;
    const int size = static_cast<int>(kTotal) >> bits;
    std::array<int, kMaxCells> left{}, alias{}, used{};
    std::array<int, kMaxCells> small{}, large{};
    int smalls = 0, larges = 0;
    for (int i = 0; i < count; ++i) {
        left[i] = freq[i];
        alias[i] = i;
        (left[i] < size ? small[smalls++] : large[larges++]) = i;
    }
    while (smalls) {
        const int s = small[--smalls], g = large[larges - 1];
        alias[s] = g;
        left[g] -= size - left[s];
        if (left[g] < size) {
            --larges;
            small[smalls++] = g;
        }
    }
    auto symbol = [&](int i) { return static_cast<int16_t>(i == escape ? kEscape : i - middle); };
    // A symbol's positions: first its own cell, then the cells that lend it their rest, by number.
    for (int i = 0; i < count; ++i) used[i] = std::min(left[i], size);
    for (int i = 0; i < count; ++i) {
        const int cut = std::min(left[i], size), a = alias[i];
        const auto edge = static_cast<uint16_t>(cut);
        Cell& c = cells[i];
        c = {{{freq[i], 0, symbol(i), edge}, {freq[a], 0, symbol(a), edge}}};
        if (cut < size) {
            c.half[1].bias = static_cast<int16_t>(used[a] - cut);
            used[a] += size - cut;
        }
    }
}

// Rows of a chunk: whole groups of kLanes rows where a chunk holds that many.
inline int64_t chunk_rows(int64_t n) {
    int64_t rows = kChunk / n;
    if (rows >= kLanes) rows -= rows % kLanes;
    return rows < 1 ? 1 : rows;
}

// Dependent quantization: next state by parity of k, and which quantizer a state uses.
template <int S>
struct Trellis;
template <>
struct Trellis<0> {
    static constexpr uint8_t next[1][2] = {{0, 0}};
    static constexpr int quantizer(int) { return 0; }
};
template <>
struct Trellis<4> {
    static constexpr uint8_t next[4][2] = {{0, 2}, {2, 0}, {1, 3}, {3, 1}};
    static constexpr int quantizer(int s) { return s >> 1; }
};
template <>
struct Trellis<8> {
    static constexpr uint8_t next[8][2] = {{0, 2}, {5, 7}, {1, 3}, {6, 4}, {2, 0}, {4, 6}, {3, 1}, {7, 5}};
    static constexpr int quantizer(int s) { return s & 1; }
};

}  // namespace sprat::rans
