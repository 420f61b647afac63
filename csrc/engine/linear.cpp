#include "linear.hpp"

#include "elementwise.hpp"

namespace sprat::engine {

namespace {

// From this many tokens on, unpacking a chunk once pays.
constexpr int kUnpackFrom = 4;

struct Activations {  // of one part
    std::vector<float> x, scale;
    std::vector<int32_t> sum;
    std::vector<int8_t> q;
    Input input;
};

void prepare(Compute& compute, const Packed& part, const float* x, size_t stride, int tokens, Activations& out) {
    const auto columns = static_cast<size_t>(part.padded_columns()), panels = static_cast<size_t>(part.panels);
    const auto count = static_cast<size_t>(tokens);
    out.x.resize(count * columns);
    out.q.resize(count * columns);
    out.scale.resize(count * panels);
    out.sum.resize(count * panels);
    out.input = {tokens, columns, panels, out.q.data(), out.scale.data(), out.sum.data()};
    const int pieces = (tokens + 15) / 16;
    compute.pool->run(pieces, [&](int piece, int) {
        for (int t = piece * 16; t < std::min(tokens, piece * 16 + 16); ++t) {
            const auto at = static_cast<size_t>(t);
            float* arranged = out.x.data() + at * columns;
            arrange(x + at * stride, part.column_index.data(), part.column_scale.data(), columns, arranged);
            if (!compute.exact)
                quantize(arranged, panels, out.q.data() + at * columns, out.scale.data() + at * panels,
                         out.sum.data() + at * panels);
        }
    });
}

// The product of one chunk with float32 activations; y (tokens, rows of the chunk).
void exact_product(const Packed& part, const Chunk& chunk, const Unpacked& unpacked, const Activations& in, float* y) {
    const size_t columns = in.input.columns;
    for (int t = 0; t < in.input.tokens; ++t)
        for (int b = 0; b < chunk.blocks; ++b) {
            double sum[kRows] = {};
            for (size_t s = unpacked.start[static_cast<size_t>(b)]; s < unpacked.start[static_cast<size_t>(b) + 1]; ++s) {
                const uint32_t p = unpacked.panel[s] & ~kHigh;
                const double weight = unpacked.panel[s] & kHigh ? 256 : 1;
                const float* x = in.x.data() + static_cast<size_t>(t) * columns + size_t{p} * kPanel;
                const uint8_t* v = unpacked.values.get() + s * kEntry;
                for (int r = 0; r < kRows; ++r)
                    for (int c = 0; c < kPanel; ++c)
                        sum[r] += weight * (v[c / 4 * kTile + 4 * r + c % 4] - 128) * static_cast<double>(x[c]);
            }
            for (int r = 0; r < kRows; ++r)
                y[(static_cast<size_t>(t) * static_cast<size_t>(chunk.blocks) + static_cast<size_t>(b)) * kRows +
                  static_cast<size_t>(r)] = static_cast<float>(sum[r]);
        }
    (void)part;
}

void add_outliers(const Packed& part, const Chunk& chunk, const float* x, float* y) {
    for (size_t o = chunk.outliers; o < chunk.outliers_end; ++o) {
        const Outlier& outlier = part.outliers[o];
        y[outlier.row] += outlier.value * x[outlier.column];
    }
}

// Rows `first` .. of a part as stored, times their scales, to where they belong.
void scatter(const Packed& part, size_t first, size_t rows, const float* from, float* to) {
    const float* scale = part.row_scale.data() + first;
    const int32_t* index = part.out_index.data() + first;
    if (index[rows - 1] >= 0) {
        for (size_t r = 0; r < rows; ++r) to[index[r]] = from[r] * scale[r];
        return;
    }
    for (size_t r = 0; r < rows; ++r)
        if (index[r] >= 0) to[index[r]] = from[r] * scale[r];
}

void run_chunk(Compute& compute, const Packed& part, const Chunk& chunk, const Activations& in, float* y, size_t stride,
               int thread) {
    const Kernel& kernel = *compute.kernel;
    const auto rows = static_cast<size_t>(chunk.blocks) * kRows, first = static_cast<size_t>(chunk.first) * kRows;
    const int tokens = in.input.tokens;
    Unpacked& unpacked = compute.unpacked[static_cast<size_t>(thread)];
    std::vector<float>& room = compute.results[static_cast<size_t>(thread)];
    if (compute.exact || tokens < kUnpackFrom) {
        const size_t count = compute.exact ? static_cast<size_t>(tokens) : 1;
        if (room.size() < rows * count) room.resize(rows * count);
        if (compute.exact) {
            unpack_chunk(kernel, part, chunk, unpacked);
            exact_product(part, chunk, unpacked, in, room.data());
        }
        for (int t = 0; t < tokens; ++t) {
            float* result = room.data() + (compute.exact ? static_cast<size_t>(t) * rows : 0);
            if (!compute.exact) {
                std::fill(result, result + rows, 0.0f);
                kernel.multiply(part.data.get() + chunk.data, part.meta.data() + chunk.meta, part.panels, in.input, t,
                                result);
            }
            add_outliers(part, chunk, in.x.data() + static_cast<size_t>(t) * in.input.columns, result);
            scatter(part, first, rows, result, y + static_cast<size_t>(t) * stride);
        }
        return;
    }
    unpack_chunk(kernel, part, chunk, unpacked);
    const size_t group = kTokens;
    if (room.size() < rows * group) room.resize(rows * group);
    for (int t = 0; t < tokens; t += kTokens) {
        const int count = std::min(kTokens, tokens - t);
        for (size_t b = 0; b < static_cast<size_t>(chunk.blocks); ++b) {
            const size_t start = unpacked.start[b], slots = unpacked.start[b + 1] - start;
            alignas(64) float result[kTokens * kRows];
            kernel.block(unpacked.values.get() + start * kEntry, unpacked.panel.data() + start, slots, in.input, t,
                         count, result);
            for (size_t i = 0; i < static_cast<size_t>(count); ++i)
                std::copy(result + i * kRows, result + (i + 1) * kRows, room.data() + i * rows + b * kRows);
        }
        for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
            const size_t token = static_cast<size_t>(t) + i;
            float* result = room.data() + i * rows;
            add_outliers(part, chunk, in.x.data() + token * in.input.columns, result);
            scatter(part, first, rows, result, y + token * stride);
        }
    }
}

}  // namespace

size_t Linear::bytes() const {
    size_t sum = bias.size() * sizeof(float);
    for (const auto& part : parts) sum += part->bytes();
    return sum;
}

void Linear::apply(Compute& compute, const float* x, size_t stride_x, int tokens, float* y, size_t stride_y) const {
    // Kept between calls: at most three parts share an input.
    thread_local std::vector<Activations> activations;
    if (activations.size() < parts.size()) activations.resize(parts.size());
    std::vector<Activations>& mine = activations;  // the workers must see this thread's
    std::vector<std::pair<size_t, size_t>> tasks;
    for (size_t i = 0; i < parts.size(); ++i) {
        prepare(compute, *parts[i], x, stride_x, tokens, mine[i]);
        for (size_t c = 0; c < parts[i]->chunks.size(); ++c) tasks.emplace_back(i, c);
    }
    compute.pool->run(static_cast<int>(tasks.size()), [&](int task, int thread) {
        const auto [i, c] = tasks[static_cast<size_t>(task)];
        run_chunk(compute, *parts[i], parts[i]->chunks[c], mine[i], y, stride_y, thread);
    });
    if (bias.empty()) return;
    for (int t = 0; t < tokens; ++t) add(bias.data(), bias.size(), y + static_cast<size_t>(t) * stride_y);
}

}  // namespace sprat::engine
