#include "elementwise.hpp"

#include <algorithm>
#include <cmath>

#include "clones.hpp"
#include "layout.hpp"

namespace sprat::engine {

SPRAT_CLONES void rms_norm(const float* x, const float* weight, float eps, size_t n, float* out) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; ++i) sum += x[i] * x[i];
    const float inverse = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
    for (size_t i = 0; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

SPRAT_CLONES void add(const float* x, size_t n, float* to) {
    for (size_t i = 0; i < n; ++i) to[i] += x[i];
}

SPRAT_CLONES void scale_by(float factor, size_t n, float* to) {
    for (size_t i = 0; i < n; ++i) to[i] *= factor;
}

SPRAT_CLONES void soft_cap(float cap, size_t n, float* to) {
    for (size_t i = 0; i < n; ++i) to[i] = cap * (1.0f - 2.0f / (exp_of(2.0f * to[i] / cap) + 1.0f));
}

SPRAT_CLONES void silu_times(const float* up, size_t n, float* gate) {
    for (size_t i = 0; i < n; ++i) gate[i] = gate[i] / (1.0f + exp_of(-gate[i])) * up[i];
}

SPRAT_CLONES void gelu_times(const float* up, size_t n, float* gate) {
    for (size_t i = 0; i < n; ++i) {
        const float g = gate[i], u = 0.7978845608f * (g + 0.044715f * g * g * g);
        gate[i] = g / (1.0f + exp_of(-2.0f * u)) * up[i];
    }
}

SPRAT_CLONES void rotate(const float* cosine, const float* sine, size_t n, float* head) {
    float* second = head + n / 2;
    for (size_t i = 0; i < n / 2; ++i) {
        const float a = head[i], b = second[i];
        head[i] = a * cosine[i] - b * sine[i];
        second[i] = b * cosine[i] + a * sine[i];
    }
}

// Not cloned: gather instructions are slower than loads here.
void arrange(const float* x, const int32_t* index, const float* scale, size_t columns, float* out) {
    for (size_t j = 0; j < columns; ++j) out[j] = x[index[j]] * scale[j];
}

}  // namespace sprat::engine
