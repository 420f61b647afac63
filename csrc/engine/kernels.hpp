// The integer products of a chunk, one implementation a kind of processor, chosen when the program runs.
//
// All of them give the same bits: dot products of an entry are exact int32 sums, and what is left (times the
// activations' scale, added panel by panel) is done by each in the same order, without fused multiply-add.
#pragma once

#include <string_view>

#include "layout.hpp"

// What a kernel does for every width of a bucket, said once. A macro: the target attributes that a kernel's functions
// carry keep them in their own file, out of reach of a template here.
#define SPRAT_WIDTHS(EACH) EACH(1) EACH(2) EACH(3) EACH(4) EACH(5) EACH(6) EACH(7) EACH(8)

namespace sprat::engine {

constexpr int kTokens = 16;

// Activations of some tokens for one matrix, in its order of columns, a scale a panel: x = scale * q. Tokens lie in
// groups; what belongs to one group and panel is together, so that products with a whole group read straight on.
struct Input {
    int tokens = 0;
    size_t panels = 0, group = 1;  // group: 1 or kTokens
    const int8_t* q = nullptr;
    const float* scale = nullptr;
    const int32_t* base = nullptr;  // -128 times the sum of q over the panel

    // Number of (token, panel); its 16 q begin at 16 times that.
    size_t at(size_t token, size_t panel) const {
        return (token / group * panels + panel) * group + token % group;
    }
};

// A chunk's entries as signed weights plus 128, two blocks at a time, for products with many tokens. A slot holds what
// the two have in one panel, kEntry bytes each.
struct Unpacked {
    Aligned<uint8_t> values;             // 2 * kEntry bytes a slot
    std::vector<uint32_t> panel;         // of a slot; the top bit says that it counts 256-fold
    std::vector<uint32_t> start;         // first slot of two blocks, and the end
    size_t capacity = 0;
    void reserve(size_t slots) {
        if (slots <= capacity) return;
        values = aligned<uint8_t>(slots * 2 * kEntry);
        capacity = slots;
    }
};
constexpr uint32_t kHigh = 1u << 31;

struct Kernel {
    const char* name;
    // out = q * scale a panel, rounded to nearest, |q| <= 127; base as in Input. A scale is not finite where x is not.
    // The next panel's q is `stride` * 16 bytes on, its scale and base `stride` numbers.
    void (*quantize)(const float* x, size_t panels, size_t stride, int8_t* q, float* scale, int32_t* base);
    // y (blocks * 16) += the chunk times token `token` of an input whose groups are of 1.
    void (*multiply)(const uint8_t* data, const uint8_t* meta, int panels, const Input& x, int token, float* y);
    // values (kEntry) = an entry of a bucket, each weight plus `raise`.
    void (*unpack)(const Planes& entry, int width, int raise, uint8_t* values);
    // y (32 a token, `stride` apart) = two blocks times the first `count` tokens of a group of kTokens.
    void (*blocks)(const uint8_t* values, const uint32_t* panel, size_t slots, const Input& x, size_t group, int count,
                   float* y, size_t stride);
};

extern const Kernel kPortable;
const Kernel* avx512_kernel();  // null where this processor or this build has none
const Kernel* avx2_kernel();
const Kernel* neon_kernel();

// "auto", or a name; throws std::invalid_argument saying which there are.
const Kernel& choose_kernel(std::string_view name);

// All entries of a chunk, gathered by block.
void unpack_chunk(const Kernel& kernel, const Packed& packed, const Chunk& chunk, Unpacked& out);

}  // namespace sprat::engine
