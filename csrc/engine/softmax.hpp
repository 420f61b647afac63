// Softmax over a row of scores, to be inlined into what is compiled several times (clones.hpp).
#pragma once

#include "clones.hpp"

namespace sprat::engine {

// s (span, a multiple of 32) = e^(scale s) within [first, last), in shares of their sum; elsewhere less than 1e-37.
[[gnu::always_inline]] inline void softmax(float* s, int span, int first, int last, float scale) {
    for (int i = 0; i < first; ++i) s[i] = -1e30f;
    for (int i = last; i < span; ++i) s[i] = -1e30f;
    float most = -1e30f, sum = 0;
#pragma omp simd reduction(max : most)
    for (int i = 0; i < span; ++i) most = s[i] > most ? s[i] : most;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < span; ++i) {
        s[i] = exp_of((s[i] - most) * scale);
        sum += s[i];
    }
    const float inverse = 1.0f / sum;
    for (int i = 0; i < span; ++i) s[i] *= inverse;
}

}  // namespace sprat::engine
