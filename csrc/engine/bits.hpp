// Entries to bits and back, one weight at a time: what every kernel's faster way must agree with.
#pragma once

#include "layout.hpp"

namespace sprat::engine {

// values: the four tiles of an entry, kEntry numbers below 2^width; the bucket's bytes are zero before its entries.
inline void write_entry(const uint8_t* values, int width, uint8_t* bucket, size_t entry) {
    const Planes planes = planes_of(bucket, width, entry);
    const auto put = [bucket](const uint8_t* at, unsigned value) {
        uint8_t& byte = bucket[at - bucket];
        byte = static_cast<uint8_t>(byte | value);
    };
    const int above = width & 4 ? 4 : 0, top = above + (width & 2 ? 2 : 0);
    for (int t = 0; t < kQuads; ++t)
        for (int i = 0; i < kTile; ++i) {
            const unsigned v = values[t * kTile + i];
            if (width == 8) {
                put(planes.nibbles + t * kTile + i, v);
                continue;
            }
            if (width & 4) put(planes.nibbles + t / 2 * kTile + i, (v & 15) << (t % 2 * 4));
            if (width & 2) put(planes.pairs + i, (v >> above & 3) << (2 * t));
            if (width & 1) put(planes.bits + 8 * t + i / 8, (v >> top & 1) << (i % 8));
        }
}

inline void read_planes(const Planes& planes, int width, uint8_t* values) {
    const int above = width & 4 ? 4 : 0, top = above + (width & 2 ? 2 : 0);
    for (int t = 0; t < kQuads; ++t)
        for (int i = 0; i < kTile; ++i) {
            int v = 0;
            if (width == 8) v = planes.nibbles[t * kTile + i];
            if (width & 4) v = planes.nibbles[t / 2 * kTile + i] >> (t % 2 * 4) & 15;
            if (width & 2) v |= (planes.pairs[i] >> (2 * t) & 3) << above;
            if (width & 1) v |= (planes.bits[8 * t + i / 8] >> (i % 8) & 1) << top;
            values[t * kTile + i] = static_cast<uint8_t>(v);
        }
}

inline void read_entry(const uint8_t* bucket, int width, size_t entry, uint8_t* values) {
    read_planes(planes_of(bucket, width, entry), width, values);
}

}  // namespace sprat::engine
