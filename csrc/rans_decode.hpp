// Words to lattices: eight interleaved states a chunk, one a row.
#pragma once

#include "rans_encode.hpp"

namespace sprat::rans {

struct Lookup {  // of one (quantizer, row_class + col_class): eight bytes, one load
    uint32_t first : 16, mask : 16;
    uint16_t shift, raw;
};

class Decoder {
  public:
    explicit Decoder(const uint16_t* freq) : cells_(kContexts * kMaxCells), lookups_(2 * kSums) {
        for (int c = 0; c < kContexts; ++c) {
            check_frequencies(freq + c * kMaxCells, 1 << cell_bits(c % kBuckets));
            alias_cells(freq + c * kMaxCells, cell_bits(c % kBuckets), &cells_[c * kMaxCells]);
        }
        for (int s = 0; s < 2 * kSums; ++s) {
            const int b = bucket_of_sum(s % kSums);
            const int context = s / kSums * kBuckets + b;
            const int shift = kProbBits - cell_bits(b);
            lookups_[s].first = static_cast<uint16_t>(context * kMaxCells);
            lookups_[s].mask = static_cast<uint16_t>((1 << shift) - 1);
            lookups_[s].shift = static_cast<uint16_t>(shift);
            lookups_[s].raw = static_cast<uint16_t>(raw_bits(b));
        }
    }
    const Lookup* lookups() const { return lookups_.data(); }
    const Cell* cells() const { return cells_.data(); }

  private:
    std::vector<Cell> cells_;
    std::vector<Lookup> lookups_;
};

// Reads of one column of lanes stay inside the padding: at most 4 words a lane.
constexpr int kPadding = kLanes * 8;

inline uint32_t take(uint32_t& x, int bits, const uint16_t*& at) {
    const uint32_t value = x & ((1u << bits) - 1);
    x >>= bits;
    if (x < kLow) x = (x << 16) | *at++;
    return value;
}

// The value behind an escape, or false.
inline bool escaped(uint32_t& x, const uint16_t*& at, int64_t& k) {
    const uint32_t head = take(x, 7, at);
    const int length = head & 63, low = std::max(0, length - 1), piece = std::min(16, low);
    if (length > 32) return false;
    uint64_t e = length ? uint64_t{1} << low : 0;
    if (piece) e |= take(x, piece, at);
    if (low > piece) e |= static_cast<uint64_t>(take(x, low - piece, at)) << piece;
    k = head >> 6 ? -static_cast<int64_t>(e) : static_cast<int64_t>(e);
    return true;
}

template <int S>
inline int64_t reconstruct(int64_t k, int quantizer) {
    if constexpr (S == 0) return k;
    return 2 * k - (quantizer ? (k > 0) - (k < 0) : 0);
}

// One group of `live` rows. False when a value does not fit T or the words run out.
template <int S, class T, int Live>
bool decode_group(const Decoder& decoder, const uint8_t* row_class, const uint8_t* col_class, int64_t n, int lanes,
                  uint32_t* states, const uint16_t*& words, const uint16_t* end, T* out) {
    const int live = Live ? Live : lanes;
    const Cell* const cells = decoder.cells();
    const Lookup* table[kLanes];
    uint32_t x[kLanes];
    uint32_t state[kLanes] = {};
    for (int l = 0; l < live; ++l) {
        x[l] = states[l];
        table[l] = decoder.lookups() + row_class[l];
    }
    const uint16_t* at = words;
    for (int64_t j = 0; j < n; ++j) {
        const int column = col_class[j];
#pragma GCC unroll 8
        for (int l = 0; l < live; ++l) {
            const int quantizer = Trellis<S>::quantizer(state[l]);
            const Lookup t = table[l][(S ? quantizer * kSums : 0) + column];
            const uint32_t slot = x[l] & (kTotal - 1), u = slot & t.mask;
            const Cell& cell = cells[t.first + (slot >> t.shift)];
            const Half half = cell.half[u >= cell.half[0].cut];
            x[l] = half.freq * (x[l] >> kProbBits) + u + static_cast<uint32_t>(half.bias);
            // Arithmetic instead of a branch: whether a word is due is a coin toss.
            const uint32_t due = x[l] < kLow;
            x[l] = (x[l] << (16 * due)) | (*at & (0u - due));
            at += due;
            int64_t k = half.symbol;
            if (t.raw | (half.symbol == kEscape)) [[unlikely]] {
                if (half.symbol != kEscape) {
                    k = k * (1 << t.raw) + take(x[l], t.raw, at);
                } else {
                    if (!escaped(x[l], at, k)) return false;
                    const int64_t q = reconstruct<S>(k, quantizer);
                    if (q < std::numeric_limits<T>::min() || q > std::numeric_limits<T>::max()) return false;
                }
            }
            if constexpr (S != 0) state[l] = Trellis<S>::next[state[l]][k & 1];
            out[l * n + j] = static_cast<T>(reconstruct<S>(k, quantizer));
        }
        if (at > end) return false;
    }
    for (int l = 0; l < live; ++l) states[l] = x[l];
    words = at;
    return true;
}

template <int S, class T>
bool decode_chunk(const uint8_t* data, size_t size, const Decoder& decoder, const Shape& shape, int64_t first, T* out) {
    const int64_t n = shape.columns, rows = std::min(shape.chunk(), shape.rows - first);
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, rows));
    if (size < static_cast<size_t>(4 * lanes) || size % 2) return false;
    uint32_t states[kLanes];
    for (int l = 0; l < lanes; ++l) {
        states[l] = 0;
        for (int i = 0; i < 4; ++i) states[l] |= static_cast<uint32_t>(data[4 * l + i]) << (8 * i);
        if (states[l] < kLow) return false;
    }
    const size_t count = (size - static_cast<size_t>(4 * lanes)) / 2;
    std::vector<uint16_t> words(count + kPadding);
    for (size_t i = 0; i < count; ++i) {
        const uint8_t* p = data + 4 * lanes + 2 * i;
        words[i] = static_cast<uint16_t>(p[0] | p[1] << 8);
    }
    const uint16_t *at = words.data(), *end = at + count;
    for (int64_t g = 0; g < rows; g += kLanes) {
        const int live = static_cast<int>(std::min<int64_t>(kLanes, rows - g));
        const auto decode = live == kLanes ? decode_group<S, T, kLanes> : decode_group<S, T, 0>;
        if (!decode(decoder, shape.row_class + first + g, shape.col_class, n, live, states, at, end,
                    out + (first + g) * n))
            return false;
    }
    return at == end && std::all_of(states, states + lanes, [](uint32_t x) { return x == kLow; });
}

}  // namespace sprat::rans
