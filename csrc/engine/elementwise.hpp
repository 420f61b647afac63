// What happens to a token between its matrix products.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sprat::engine {

// out (n) = x / sqrt(mean(x^2) + eps) * weight; may be in place.
void rms_norm(const float* x, const float* weight, float eps, size_t n, float* out);
void add(const float* x, size_t n, float* to);           // to += x
void scale_by(float factor, size_t n, float* to);        // to *= factor
void soft_cap(float cap, size_t n, float* to);           // to = cap tanh(to / cap)
void silu_times(const float* up, size_t n, float* gate);  // gate = gate / (1 + e^-gate) * up
void gelu_times(const float* up, size_t n, float* gate);  // gate = gelu(gate) * up, tanh form
// Rotates the halves of one head (n) by the angles whose cosines and sines (n / 2) are given.
void rotate(const float* cosine, const float* sine, size_t n, float* head);
// x in a matrix's order of columns and times its scales, whole panels: out (panels * 16).
void arrange(const float* x, const int32_t* index, const float* scale, size_t columns, float* out);

}  // namespace sprat::engine
