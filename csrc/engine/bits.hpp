// Entries to bits and back, one weight at a time: what every kernel's faster way must agree with.
#pragma once

#include "layout.hpp"

namespace sprat::engine {

// values: the four tiles of an entry, kEntry numbers below 2^width; out: entry_bytes(width).
inline void write_entry(const uint8_t* values, int width, uint8_t* out) {
    const uint8_t *a = values, *b = a + kTile, *c = b + kTile, *d = c + kTile;
    if (width == 8) {
        std::copy(values, values + kEntry, out);
        return;
    }
    if (width == 3) {
        const auto nibble = [&](int i) { return d[i] | (c[i] & 4) << 1; };
        for (int i = 0; i < kTile; ++i) out[i] = static_cast<uint8_t>(a[i] | b[i] << 3 | c[i] << 6);
        for (int i = 0; i < kTile / 2; ++i)
            out[kTile + i] = static_cast<uint8_t>(nibble(i) | nibble(i + kTile / 2) << 4);
        return;
    }
    if (width & 4) {
        for (int i = 0; i < kTile; ++i) out[i] = static_cast<uint8_t>((a[i] & 15) | b[i] << 4);
        for (int i = 0; i < kTile; ++i) out[kTile + i] = static_cast<uint8_t>((c[i] & 15) | d[i] << 4);
        out += 2 * kTile;
    }
    const int above = width & 4 ? 4 : 0, top = above + (width & 2 ? 2 : 0);
    if (width & 2) {
        for (int i = 0; i < kTile; ++i)
            out[i] = static_cast<uint8_t>((a[i] >> above & 3) | (b[i] >> above & 3) << 2 | (c[i] >> above & 3) << 4 |
                                          (d[i] >> above & 3) << 6);
        out += kTile;
    }
    if (width & 1)
        for (int i = 0; i < kEntry / 8; ++i) {
            uint64_t byte = 0;
            for (int bit = 0; bit < 8; ++bit) byte |= (values[8 * i + bit] >> top & 1ull) << (8 * bit);
            out[i] = static_cast<uint8_t>(byte * 0x0102040810204080 >> 56);  // bit 8 b of `byte` to bit b
        }
}

inline void read_planes(const Planes& planes, int width, uint8_t* values) {
    uint8_t *a = values, *b = a + kTile, *c = b + kTile, *d = c + kTile;
    if (width == 8) {
        std::copy(planes.nibbles, planes.nibbles + kEntry, values);
        return;
    }
    if (width == 3) {
        for (int i = 0; i < kTile; ++i) {
            const int byte = planes.pairs[i], nibble = planes.bits[i % (kTile / 2)] >> i / (kTile / 2) * 4 & 15;
            a[i] = byte & 7;
            b[i] = byte >> 3 & 7;
            c[i] = static_cast<uint8_t>(byte >> 6 | (nibble >> 1 & 4));
            d[i] = nibble & 7;
        }
        return;
    }
    const int above = width & 4 ? 4 : 0, top = above + (width & 2 ? 2 : 0);
    if (width & 4) {
        for (int i = 0; i < kTile; ++i) {
            a[i] = planes.nibbles[i] & 15;
            b[i] = planes.nibbles[i] >> 4;
            c[i] = planes.nibbles[kTile + i] & 15;
            d[i] = planes.nibbles[kTile + i] >> 4;
        }
    } else {
        std::fill(values, values + kEntry, uint8_t{0});
    }
    if (width & 2)
        for (int i = 0; i < kTile; ++i) {
            const unsigned pairs = planes.pairs[i];
            a[i] = static_cast<uint8_t>(a[i] | (pairs & 3) << above);
            b[i] = static_cast<uint8_t>(b[i] | (pairs >> 2 & 3) << above);
            c[i] = static_cast<uint8_t>(c[i] | (pairs >> 4 & 3) << above);
            d[i] = static_cast<uint8_t>(d[i] | (pairs >> 6) << above);
        }
    if (width & 1)
        for (int i = 0; i < kEntry / 8; ++i) {
            const unsigned byte = planes.bits[i];
            for (int bit = 0; bit < 8; ++bit)
                values[8 * i + bit] = static_cast<uint8_t>(values[8 * i + bit] | (byte >> bit & 1) << top);
        }
}

inline void read_entry(const uint8_t* bucket, int width, size_t entry, uint8_t* values) {
    read_planes(planes_of(bucket, width, entry), width, values);
}

}  // namespace sprat::engine
