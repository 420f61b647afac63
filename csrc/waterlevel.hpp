// Rounding of a block of columns to the water level's lattice; see waterlevel.cpp for the formula.
#pragma once
#include <cstdint>
#include <limits>

namespace sprat {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kMaxCols = 128;  // of a block

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

    // Constraints; none of them by default.
    uint8_t* keep = nullptr;        // (rows, cols): 0 where Q must be zero; with a pattern, what was chosen (out)
    int group = 0, removed = 0;     // of every `group` columns `removed` are zero, chosen row by row; 0: no such pattern
    int sets = 0;                   // ways to choose them that are tried; 0: by the diagonal saliency
    const int32_t* set = nullptr;   // (sets, removed): columns in the group, ascending
    const float* inverse = nullptr; // (cols / group, sets, removed, removed): (A_SS)^-1, A = U_gg^T U_gg
    bool compact = false;           // columns that must be zero are not coded: the trellis stands still there
    int limit = 0;                  // |Q| is at most this (one state only); 0: no limit
    bool zero = true;               // Q = 0 is allowed
};

void round_block(const Block& block, const Trellis& trellis, int threads);

}  // namespace sprat
