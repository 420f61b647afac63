// Words to lattices: eight interleaved states a chunk, one a row.
#pragma once

#include <limits>
#include <type_traits>

#include "rans_encode.hpp"

namespace sprat::rans {

struct Lookup {  // of one (quantizer, row_class + col_class): eight bytes, one load
    uint32_t first : 16, mask : 16;
    uint16_t shift, raw;
};

class Decoder {
  public:
    explicit Decoder(const uint16_t* freq)
        : cells_(kContexts * kMaxCells), words_(kContexts * kMaxCells), lookups_(2 * kSums) {
        for (int c = 0; c < kContexts; ++c) {
            check_frequencies(freq + c * kMaxCells, 1 << cell_bits(c % kBuckets));
            alias_cells(freq + c * kMaxCells, cell_bits(c % kBuckets), &cells_[c * kMaxCells]);
            for (int i = 0; i < 1 << cell_bits(c % kBuckets); ++i)
                words_[c * kMaxCells + i] = word_of(cells_[c * kMaxCells + i], 1 << cell_bits(c % kBuckets));
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
    // Cells as one number each, for vectors of lanes. From bit 0: cut (11 bits), own frequency less one (14), number of
    // the other symbol's cell (7), its frequency less one (14; two bits unused), bias (16, signed).
    const uint64_t* words() const { return words_.data(); }

  private:
    static uint64_t word_of(const Cell& cell, int count) {
        const auto frequency = [](const Half& half) { return static_cast<uint64_t>(half.freq - 1) & 0x3fff; };
        const Half &own = cell.half[0], &other = cell.half[1];
        const int alias = other.symbol == kEscape ? count - 1 : other.symbol + count / 2 - 1;
        return uint64_t{own.cut} | frequency(own) << 11 | static_cast<uint64_t>(alias) << 25 | frequency(other) << 32 |
               uint64_t{static_cast<uint16_t>(other.bias)} << 48;
    }
    std::vector<Cell> cells_;
    std::vector<uint64_t> words_;
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
    return 2 * k - quantizer * ((k > 0) - (k < 0));  // no branch: the quantizer is a coin toss
}

// The next integer of a row whose lane is `x` and whose trellis is in `state`; `row`: the lookups of the row's class.
// False for an escape that does not fit T.
template <int S, class T>
inline bool decode_one(const Cell* cells, const Lookup* row, int column, uint32_t& x, uint32_t& state,
                       const uint16_t*& at, T& out) {
    const int quantizer = Trellis<S>::quantizer(state);
    const Lookup t = row[(S ? quantizer * kSums : 0) + column];
    const uint32_t slot = x & (kTotal - 1), u = slot & t.mask;
    const Cell& cell = cells[t.first + (slot >> t.shift)];
    const Half half = cell.half[u >= cell.half[0].cut];
    x = half.freq * (x >> kProbBits) + u + static_cast<uint32_t>(half.bias);
    // Arithmetic instead of a branch: whether a word is due is a coin toss.
    const uint32_t due = x < kLow;
    x = (x << (16 * due)) | (*at & (0u - due));
    at += due;
    int64_t k = half.symbol;
    if (t.raw | (half.symbol == kEscape)) [[unlikely]] {
        if (half.symbol != kEscape) {
            k = k * (1 << t.raw) + take(x, t.raw, at);
        } else {
            if (!escaped(x, at, k)) return false;
            const int64_t q = reconstruct<S>(k, quantizer);
            if (q < std::numeric_limits<T>::min() || q > std::numeric_limits<T>::max()) return false;
        }
    }
    if constexpr (S != 0) state = Trellis<S>::next[state][k & 1];
    out = static_cast<T>(reconstruct<S>(k, quantizer));
    return true;
}

// A chunk under way: where its lanes and words are.
struct Stream {
    uint32_t x[kLanes];
    std::vector<uint16_t> words;
    const uint16_t *at = nullptr, *end = nullptr;
    int64_t first = 0, rows = 0;
    int lanes = 0;

    // False for what no encoder wrote.
    bool begin(const uint8_t* data, size_t size, const Shape& shape, int64_t first_row) {
        first = first_row;
        rows = std::min(shape.chunk(), shape.rows - first);
        lanes = static_cast<int>(std::min<int64_t>(kLanes, rows));
        if (size < static_cast<size_t>(4 * lanes) || size % 2) return false;
        for (int l = 0; l < lanes; ++l) {
            x[l] = 0;
            for (int i = 0; i < 4; ++i) x[l] |= static_cast<uint32_t>(data[4 * l + i]) << (8 * i);
            if (x[l] < kLow) return false;
        }
        const size_t count = (size - static_cast<size_t>(4 * lanes)) / 2;
        words.assign(count + kPadding, 0);
        for (size_t i = 0; i < count; ++i) {
            const uint8_t* p = data + 4 * lanes + 2 * i;
            words[i] = static_cast<uint16_t>(p[0] | p[1] << 8);
        }
        at = words.data();
        end = at + count;
        return true;
    }
    bool finished() const {
        return at == end && std::all_of(x, x + lanes, [](uint32_t lane) { return lane == kLow; });
    }
};

// The group of rows that begins at row `g` of a chunk. False when a value does not fit T or the words run out.
template <int S, class T>
bool decode_group(const Decoder& decoder, const Shape& shape, Stream& stream, int64_t g, T* out) {
    const int64_t n = shape.columns, first = stream.first + g;
    const int live = static_cast<int>(std::min<int64_t>(kLanes, stream.rows - g));
    uint32_t state[kLanes] = {};
    const Lookup* table[kLanes];
    for (int l = 0; l < live; ++l) table[l] = decoder.lookups() + shape.row_class[first + l];
    out += first * n;
    const auto columns = [&](const int lanes) {
        uint32_t x[kLanes];
        std::copy(stream.x, stream.x + kLanes, x);
        const uint16_t* at = stream.at;
        for (int64_t j = 0; j < n; ++j) {
#pragma GCC unroll 8
            for (int l = 0; l < lanes; ++l)
                if (!decode_one<S>(decoder.cells(), table[l], shape.col_class[j], x[l], state[l], at, out[l * n + j]))
                    return false;
            if (at > stream.end) return false;
        }
        std::copy(x, x + kLanes, stream.x);
        stream.at = at;
        return true;
    };
    return live == kLanes ? columns(kLanes) : columns(live);
}

// Groups at `g` of one chunk or two at once, all of them whole, where this processor and these classes allow it.
// Null: they do not.
using DecodeGroups = bool (*)(const Decoder&, const Shape&, Stream* const* streams, int count, int64_t g, int16_t* out);
DecodeGroups fast_groups(int trellis, const Shape& shape);

// Chunks side by side: two fill the processor where the steps of one wait for each other.
constexpr int kTogether = 2;

template <int S, class T>
bool decode_chunks(const Decoder& decoder, const Shape& shape, Stream* streams, int count, T* out) {
    DecodeGroups fast = nullptr;
    if constexpr (std::is_same_v<T, int16_t>) fast = fast_groups(S, shape);
    for (int64_t g = 0; g < shape.chunk(); g += kLanes) {
        Stream* whole[kTogether];
        int wholes = 0;
        for (int i = 0; i < count; ++i) {
            if (fast && streams[i].rows - g >= kLanes) whole[wholes++] = &streams[i];
            else if (streams[i].rows > g && !decode_group<S>(decoder, shape, streams[i], g, out)) return false;
        }
        if constexpr (std::is_same_v<T, int16_t>)
            if (wholes && !fast(decoder, shape, whole, wholes, g, out)) return false;
    }
    return std::all_of(streams, streams + count, [](const Stream& s) { return s.finished(); });
}

}  // namespace sprat::rans
