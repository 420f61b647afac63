// Every kernel against the portable one without Python, for machines that are only emulated and for sanitizers:
//
//   c++ -std=c++20 -O2 -ffp-contract=off -fopenmp-simd -Icsrc/engine tests/native/kernels.cpp
//       csrc/engine/{kernels,kernel_avx2,kernel_avx512,kernel_neon,pack,arena,attention,attention_int8,cache}.cpp
//       -o kernels && ./kernels
//
// With aarch64-linux-gnu-g++ -static and qemu-aarch64 -cpu max it tries NEON; -fsanitize=address,undefined works too.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "attention.hpp"
#include "kernels.hpp"
#include "pack.hpp"

namespace se = sprat::engine;

namespace {

struct Case {
    std::shared_ptr<se::Packed> packed;
    std::vector<float> x;
    size_t panels;
};

Case draw(std::mt19937& random) {
    const int rows = 1 + static_cast<int>(random() % 90), columns = 1 + static_cast<int>(random() % 90);
    const double spread = std::exp2(static_cast<double>(random() % 14) - 2);
    std::normal_distribution<double> integers(0, spread), inputs(0, 1);
    std::vector<int32_t> q(static_cast<size_t>(rows) * static_cast<size_t>(columns));
    for (auto& v : q) v = static_cast<int32_t>(std::lround(integers(random)));
    const std::vector<float> ones(90, 1.0f);
    auto packed = se::pack(q.data(), rows, columns, ones.data(), ones.data(), 0, 1, std::make_shared<se::Arena>());
    const auto panels = static_cast<size_t>(packed->panels);
    std::vector<float> x(se::kTokens * panels * se::kPanel);
    for (auto& v : x) v = static_cast<float>(inputs(random));
    return {std::move(packed), std::move(x), panels};
}

// All that a kernel computes of a case, for one token and for a group of them.
std::vector<float> results(const se::Kernel& kernel, const Case& c) {
    const se::Chunk& chunk = c.packed->chunks[0];
    const size_t rows = (static_cast<size_t>(chunk.blocks) + 1) / 2 * 2 * se::kRows;
    std::vector<int8_t> q(c.x.size());
    std::vector<float> scale(se::kTokens * c.panels);
    std::vector<int32_t> base(se::kTokens * c.panels);
    auto y = se::aligned<float>(rows * (se::kTokens + 1));
    std::fill(y.get(), y.get() + rows * (se::kTokens + 1), 0.0f);
    const se::Input one{1, c.panels, 1, q.data(), scale.data(), base.data()};
    kernel.quantize(c.x.data(), c.panels, 1, q.data(), scale.data(), base.data());
    kernel.multiply(chunk.data, c.packed->meta.data() + chunk.meta, c.packed->panels, one, 0, y.get());
    const se::Input many{se::kTokens, c.panels, se::kTokens, q.data(), scale.data(), base.data()};
    for (size_t t = 0; t < se::kTokens; ++t)
        kernel.quantize(c.x.data() + t * c.panels * se::kPanel, c.panels, se::kTokens, q.data() + t * se::kPanel,
                        scale.data() + t, base.data() + t);
    se::Unpacked unpacked;
    se::unpack_chunk(kernel, *c.packed, chunk, unpacked);
    for (size_t pair = 0; pair + 1 < unpacked.start.size(); ++pair) {
        const size_t start = unpacked.start[pair];
        kernel.blocks(unpacked.values.get() + start * 2 * se::kEntry, unpacked.panel.data() + start,
                      unpacked.start[pair + 1] - start, many, 0, pair % 2 ? 11 : se::kTokens,
                      y.get() + rows + pair * 2 * se::kRows, rows);
    }
    return {y.get(), y.get() + rows * (se::kTokens + 1)};
}

// Attention over a cache of int8: up to 8 queries, windows, heads of any size.
std::vector<float> attention(const se::Kernel& kernel, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const int dimension = 2 + static_cast<int>(random() % 80), length = 1 + static_cast<int>(random() % 200);
    const auto width = static_cast<size_t>(dimension);
    std::vector<float> key(width), value(width), q(se::kQueries * width), out(se::kQueries * width);
    se::Cache cache(1, 1, dimension, length, se::Precision::kInt8);
    for (int at = 0; at < length; ++at) {
        for (size_t d = 0; d < width; ++d) key[d] = normal(random), value[d] = normal(random);
        cache.put(0, 0, at, key.data(), value.data());
    }
    for (float& x : q) x = normal(random);
    se::Queries queries;
    queries.count = 1 + static_cast<int>(random() % se::kQueries);
    for (int i = 0; i < queries.count; ++i) {
        queries.q[i] = q.data() + static_cast<size_t>(i) * width;
        queries.out[i] = out.data() + static_cast<size_t>(i) * width;
        queries.last[i] = 1 + static_cast<int>(random() % static_cast<unsigned>(length));
        queries.first[i] = static_cast<int>(random() % static_cast<unsigned>(queries.last[i]));
    }
    se::Scratch scratch;
    se::attend(cache, 0, 0, 0.2f, queries, kernel, scratch);
    return out;
}

}  // namespace

int main() {
    int bad = 0;
    for (const se::Kernel* kernel : {se::avx512_kernel(), se::avx2_kernel(), se::neon_kernel()}) {
        if (!kernel) continue;
        std::mt19937 random(1);
        int differ = 0;
        for (int i = 0; i < 200; ++i) {
            const Case c = draw(random);
            differ += results(*kernel, c) != results(se::kPortable, c);
        }
        for (unsigned seed = 0; seed < 200; ++seed)
            differ += attention(*kernel, seed) != attention(se::kPortable, seed);
        std::printf("%s: %d of 400 cases differ from portable\n", kernel->name, differ);
        bad += differ;
    }
    return bad != 0;
}
