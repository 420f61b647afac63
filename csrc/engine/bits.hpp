// Entries to bits and back, one weight at a time: what every kernel's faster way must agree with.
#pragma once

#include "layout.hpp"

namespace sprat::engine {

// values: the four tiles of an entry, kEntry numbers below 2^width; out: entry_bytes(width).
inline void write_entry(const uint8_t* values, int width, uint8_t* out) {
    if (is_shifted(width)) {
        const int fold = 8 / width;  // tiles a vector
        for (int v = 0; v < kQuads / std::min(fold, kQuads); ++v)
            for (int i = 0; i < kTile; ++i) {
                unsigned byte = 0;
                for (int t = 0; t < fold && t < kQuads; ++t)
                    byte |= static_cast<unsigned>(values[(v * fold + t) * kTile + i]) << (t * width);
                out[v * kTile + i] = static_cast<uint8_t>(byte);
            }
        return;
    }
    for (int group = 0; group < kEntry / 8; ++group) {
        uint64_t word = 0;
        for (int b = 0; b < 8; ++b) word |= static_cast<uint64_t>(values[8 * group + b]) << (b * width);
        for (int b = 0; b < width; ++b) out[group * width + b] = static_cast<uint8_t>(word >> (8 * b));
    }
}

inline void read_entry(const uint8_t* in, int width, uint8_t* values) {
    const unsigned mask = (1u << width) - 1;
    if (is_shifted(width)) {
        const int fold = 8 / width;
        for (int t = 0; t < kQuads; ++t)
            for (int i = 0; i < kTile; ++i)
                values[t * kTile + i] = static_cast<uint8_t>((in[t / fold * kTile + i] >> (t % fold * width)) & mask);
        return;
    }
    for (int group = 0; group < kEntry / 8; ++group) {
        uint64_t word = 0;
        for (int b = 0; b < width; ++b) word |= static_cast<uint64_t>(in[group * width + b]) << (8 * b);
        for (int b = 0; b < 8; ++b) values[8 * group + b] = static_cast<uint8_t>((word >> (b * width)) & mask);
    }
}

}  // namespace sprat::engine
