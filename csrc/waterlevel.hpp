// Rounding of a block of columns to the water level's lattice; see waterlevel.cpp for the formula.
#pragma once
#include <cstdint>

namespace sprat {

// The trellis of dependent quantization (ISO/IEC 15938-17, VVC): next[state][k & 1], and which quantizer a state uses.
struct Trellis {
    int states;
    uint8_t next[8][2];
    uint8_t quantizer[8];  // 0: Q = 2k, 1: Q = 2k - sgn(k); a plain lattice (one state) has Q = k
};

const Trellis& trellis(int states);  // 1 (plain), 4 or 8

struct Block {
    const float* w;           // (rows, cols), row stride `w_stride`: the weights left to round, divided by their row scale
    int64_t w_stride;
    int64_t rows, cols;
    const float* feedback;    // (cols, cols): U_jk / U_jj, upper, of this block
    const float* inverse_u;   // (cols): 1 / U_jj, the square root of the conditional variance of input j
    const float* step;        // (cols): column scale
    const float* row_lambda;  // (rows): nats-free price of one bit in units of squared error
    const uint8_t* row_class;  // (rows)
    const uint8_t* col_class;  // (cols)
    const float* bits;        // (2, buckets, 2 * max_symbol + 1)
    int buckets, offset, max_symbol;
    uint8_t* state;           // (rows): trellis state on entry, and on return
    int32_t* q;               // (rows, cols) out, row stride `q_stride`: lattice integers Q
    int64_t q_stride;
    float* error;             // (rows, cols) out: (w - Q step) / U_jj, for the columns behind this block
};

void round_block(const Block& block, const Trellis& trellis, int threads);

}  // namespace sprat
