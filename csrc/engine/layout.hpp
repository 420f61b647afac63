// The run layout: how a lattice's integers lie in memory while a model runs (docs/engine.md).
//
// W = diag(r) Q diag(k); rows and columns are sorted so that integers of like size meet. A block is 16 rows, a panel
// 16 columns; where they cross is an entry of four tiles of 16 rows x 4 columns, each one operand of a dot-product
// instruction. An entry is stored in as few bits a weight as its range needs; an entry of zeros is not stored at all.
// What needs more than 8 bits is split: Q = low + 256 high, two entries.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "arena.hpp"

namespace sprat::engine {

constexpr int kRows = 16;             // rows of a block
constexpr int kPanel = 16;            // columns of a panel, which share one scale of the activations
constexpr int kQuads = 4;             // tiles of an entry
constexpr int kTile = 64;             // weights of a tile: byte 4 * row + column
constexpr int kEntry = kQuads * kTile;
constexpr int kBuckets = 16;          // bucket 0..7: width 1..8, low plane; 8..15: width 1..8, high plane
constexpr int kMaxBlocks = 192;       // even, below 256: blocks of a chunk, what one thread computes at once
constexpr int32_t kMaxInteger = 32639;  // largest |Q| that two planes of 8 bits hold; beyond it: an outlier

constexpr int width_of(int bucket) { return bucket % 8 + 1; }
constexpr bool is_high(int bucket) { return bucket >= 8; }

// An entry of width 8 is its bytes as they are; another is planes, for the 4, the 2 and the 1 in its width
// (5 = 4 + 1, 7 = 4 + 2 + 1), lowest bits first:
//   4: 128 bytes: tile t in the low (t even) or high nibbles of vector t / 2;
//   2: 64 bytes: tile t in bits 2 t and 2 t + 1;
//   1: 32 bytes: tile t in the t-th 8 bytes, a bit a weight.
// Width 3, the commonest of small files, is not 2 + 1: in 64 bytes tile 0, tile 1 and the lower two bits of tile 2; in the
// nibbles of 32 bytes (lower ones: weights 0 to 31) tile 3 and, above it, what tile 2 lacks. No bit needs a mask register.
// The entries of a bucket follow each other; each bucket begins on a 64-byte boundary.
struct Planes {
    const uint8_t *nibbles, *pairs, *bits;  // nibbles: the bytes where the width is 8; pairs, bits: the two of width 3
};
constexpr size_t entry_bytes(int width) { return static_cast<size_t>(32 * width); }
constexpr size_t bucket_bytes(int width, size_t count) { return (count * entry_bytes(width) + 63) / 64 * 64; }
inline Planes planes_of(const uint8_t* bucket, int width, size_t entry) {
    const uint8_t* at = bucket + entry * entry_bytes(width);
    const uint8_t* pairs = at + (width & 4 ? 128 : 0);
    return {at, pairs, pairs + (width & 2 ? 64 : 0)};
}

struct Free {
    void operator()(void* p) const { std::free(p); }
};
template <class T>
using Aligned = std::unique_ptr<T[], Free>;

// Uninitialised memory for `count` T on a 64-byte boundary.
template <class T>
Aligned<T> aligned(size_t count) {
    if (count > (SIZE_MAX >> 1) / sizeof(T)) throw std::bad_alloc();
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    void* p = std::aligned_alloc(64, bytes ? bytes : 64);
    if (!p) throw std::bad_alloc();
    return Aligned<T>(static_cast<T*>(p));
}

struct Outlier {  // an integer too large for two planes
    int32_t row, column;  // where it is stored: row within its chunk, column in panel order
    float value;
};

// Neighbouring rows that are computed together, sorted among themselves. meta: for each panel 16 counts of entries by
// bucket, then the entries' block numbers, bucket by bucket; data: the entries, in the same order.
struct Chunk {
    int32_t first = 0, blocks = 0;  // in blocks
    int32_t rows = 0;               // without padding; they are the outputs from 16 * first on
    const uint8_t* data = nullptr;  // its entries, in the arena
    size_t bytes = 0;               // of them
    size_t meta = 0;                // where its part of meta begins
    size_t entries = 0;
    size_t outliers = 0, outliers_end = 0;
};

struct Packed {
    int32_t rows = 0, columns = 0, panels = 0, blocks = 0;
    int32_t output = 0;                // where the first row's result goes; the others follow
    std::vector<Chunk> chunks;
    std::shared_ptr<Arena> arena;      // holds the chunks' data
    std::vector<uint8_t> meta;
    std::vector<Outlier> outliers;
    std::vector<float> row_scale;      // (rows)
    std::vector<uint16_t> place;       // (rows) where in its chunk a row is stored
    std::vector<float> column_scale;   // (panels * 16) as stored; 0 behind the last column
    std::vector<int32_t> column_index; // (panels * 16) which input a stored column takes

    int32_t padded_columns() const { return panels * kPanel; }
    size_t most_entries() const {
        size_t most = 0;
        for (const Chunk& c : chunks) most = std::max(most, c.entries);
        return most;
    }
    size_t entry_bytes() const {
        size_t sum = 0;
        for (const Chunk& c : chunks) sum += c.bytes;
        return sum;
    }
    // Bytes that one product streams.
    size_t bytes() const {
        return entry_bytes() + meta.size() + outliers.size() * sizeof(Outlier) +
               row_scale.size() * (sizeof(float) + sizeof(uint16_t)) +
               column_scale.size() * (sizeof(float) + sizeof(int32_t));
    }
};

}  // namespace sprat::engine
