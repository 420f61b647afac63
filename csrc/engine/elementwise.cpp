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

SPRAT_CLONES void arrange(const float* x, const int32_t* index, const float* scale, size_t columns, float* out) {
    for (size_t j = 0; j < columns; ++j) out[j] = x[index[j]] * scale[j];
}

SPRAT_CLONES void quantize(const float* x, size_t panels, int8_t* q, float* scale, int32_t* sum) {
    for (size_t p = 0; p < panels; ++p) {
        const float* v = x + p * kPanel;
        float most = 0;
#pragma omp simd reduction(max : most)
        for (int c = 0; c < kPanel; ++c) most = std::max(most, std::fabs(v[c]));
        // A largest value that is not finite makes the products so: what the model gives is then refused.
        const float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
        scale[p] = most / 127.0f;
        int32_t total = 0;
#pragma omp simd reduction(+ : total)
        for (int c = 0; c < kPanel; ++c) {
            // Adding 1.5 * 2^23 rounds to nearest; a NaN must not reach the conversion.
            const float r = (v[c] * inverse + 12582912.0f) - 12582912.0f;
            const int32_t i = r >= -127.0f && r <= 127.0f ? static_cast<int32_t>(r) : 0;
            q[p * kPanel + static_cast<size_t>(c)] = static_cast<int8_t>(i);
            total += i;
        }
        sum[p] = total;
    }
}

}  // namespace sprat::engine
