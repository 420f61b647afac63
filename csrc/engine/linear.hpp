// A linear map: one or several packed lattices that share their input and fill one output.
#pragma once

#include "kernels.hpp"
#include "pool.hpp"

namespace sprat::engine {

struct Compute {  // what every product needs
    const Kernel* kernel;
    Pool* pool;
    bool exact;  // activations stay float32, products are added in float64: slow, for tests
    std::vector<Unpacked> unpacked;           // a thread
    std::vector<std::vector<float>> results;  // a thread
};

struct Linear {
    std::vector<std::shared_ptr<Packed>> parts;
    int outputs = 0;
    std::vector<float> bias;  // empty: none

    size_t bytes() const;
    // y (tokens, stride_y) = x (tokens, stride_x) W^T + bias.
    void apply(Compute& compute, const float* x, size_t stride_x, int tokens, float* y, size_t stride_y) const;
};

}  // namespace sprat::engine
