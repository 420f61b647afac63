#include "linear.hpp"

#include "elementwise.hpp"

namespace sprat::engine {

namespace {

// From this many tokens on, unpacking a chunk once pays.
constexpr int kUnpackFrom = 4;

struct Activations {  // of one part
    std::vector<float> x, scale;
    std::vector<int32_t> base;
    std::vector<int8_t> q;
    Input input;
};

void prepare(Compute& compute, const Packed& part, const float* x, size_t stride, int tokens, Activations& out) {
    const auto columns = static_cast<size_t>(part.padded_columns()), panels = static_cast<size_t>(part.panels);
    const size_t group = tokens < kUnpackFrom ? 1 : kTokens;
    const size_t count = (static_cast<size_t>(tokens) + group - 1) / group * group;
    // Grown only: what lies between the last token and the end of its group is computed with and dropped.
    const auto grow = [](auto& v, size_t size) {
        if (v.size() < size) v.resize(size);
    };
    grow(out.x, count * columns);
    grow(out.q, count * columns);
    grow(out.scale, count * panels);
    grow(out.base, count * panels);
    out.input = {tokens, panels, group, out.q.data(), out.scale.data(), out.base.data()};
    compute.pool->run((tokens + 15) / 16, [&](int piece, int) {
        for (int t = piece * 16; t < std::min(tokens, piece * 16 + 16); ++t) {
            const auto token = static_cast<size_t>(t);
            float* arranged = out.x.data() + token * columns;
            arrange(x + token * stride, part.column_index.data(), part.column_scale.data(), columns, arranged);
            const size_t at = out.input.at(token, 0);
            if (!compute.exact)
                compute.kernel->quantize(arranged, panels, group, out.q.data() + at * kPanel, out.scale.data() + at,
                                         out.base.data() + at);
        }
    });
}

// The product of one chunk with float32 activations; y (tokens, rows of the chunk).
void exact_product(const Packed& part, const Chunk& chunk, const Unpacked& unpacked, const Activations& in, float* y) {
    const auto columns = static_cast<size_t>(part.padded_columns());
    for (int t = 0; t < in.input.tokens; ++t)
        for (int b = 0; b < chunk.blocks; ++b) {
            double sum[kRows] = {};
            const auto pair = static_cast<size_t>(b / 2);
            for (size_t s = unpacked.start[pair]; s < unpacked.start[pair + 1]; ++s) {
                const uint32_t p = unpacked.panel[s] & ~kHigh;
                const double weight = unpacked.panel[s] & kHigh ? 256 : 1;
                const float* x = in.x.data() + static_cast<size_t>(t) * columns + size_t{p} * kPanel;
                const uint8_t* v = unpacked.values.get() + (2 * s + static_cast<size_t>(b % 2)) * kEntry;
                for (int r = 0; r < kRows; ++r)
                    for (int c = 0; c < kPanel; ++c)
                        sum[r] += weight * (v[c / 4 * kTile + 4 * r + c % 4] - 128) * static_cast<double>(x[c]);
            }
            for (int r = 0; r < kRows; ++r)
                y[(static_cast<size_t>(t) * static_cast<size_t>(chunk.blocks) + static_cast<size_t>(b)) * kRows +
                  static_cast<size_t>(r)] = static_cast<float>(sum[r]);
        }
}

void add_outliers(const Packed& part, const Chunk& chunk, const float* x, float* y) {
    for (size_t o = chunk.outliers; o < chunk.outliers_end; ++o) {
        const Outlier& outlier = part.outliers[o];
        y[outlier.row] += outlier.value * x[outlier.column];
    }
}

// A chunk's rows as stored, times their scales, in their own order. (Read here and there, written straight on.)
void reorder(const Packed& part, const Chunk& chunk, const float* from, float* to) {
    const size_t first = static_cast<size_t>(chunk.first) * kRows, rows = static_cast<size_t>(chunk.rows);
    const float* scale = part.row_scale.data() + first;
    const uint16_t* place = part.place.data() + first;
    for (size_t r = 0; r < rows; ++r) to[r] = from[place[r]] * scale[r];
}

struct Task {  // one chunk of a part; y points to its first output of the first token
    const Packed& part;
    const Chunk& chunk;
    const Activations& in;
    float* y;
    size_t stride;
};

void multiply_exactly(Compute& compute, const Task& task, int thread) {
    const Chunk& chunk = task.chunk;
    Unpacked& unpacked = compute.unpacked[static_cast<size_t>(thread)];
    const size_t rows = static_cast<size_t>(chunk.blocks) * kRows;
    std::vector<float> result(rows * static_cast<size_t>(task.in.input.tokens));
    unpack_chunk(*compute.kernel, task.part, chunk, unpacked);
    exact_product(task.part, chunk, unpacked, task.in, result.data());
    for (size_t t = 0; t < static_cast<size_t>(task.in.input.tokens); ++t) {
        add_outliers(task.part, chunk, task.in.x.data() + t * static_cast<size_t>(task.part.padded_columns()),
                     result.data() + t * rows);
        reorder(task.part, chunk, result.data() + t * rows, task.y + t * task.stride);
    }
}

void multiply_few(Compute& compute, const Task& task, int) {
    const Packed& part = task.part;
    const Chunk& chunk = task.chunk;
    alignas(64) float result[kMaxBlocks * kRows];
    // Needed only when the product is done: on their way to the cache meanwhile.
    const size_t first = static_cast<size_t>(chunk.first) * kRows, rows = static_cast<size_t>(chunk.rows);
    for (size_t r = 0; r < rows; r += 16) __builtin_prefetch(part.row_scale.data() + first + r);
    for (size_t r = 0; r < rows; r += 32) __builtin_prefetch(part.place.data() + first + r);
    for (int t = 0; t < task.in.input.tokens; ++t) {
        const auto token = static_cast<size_t>(t);
        std::fill(result, result + chunk.blocks * kRows, 0.0f);
        compute.kernel->multiply(chunk.data, part.meta.data() + chunk.meta, part.panels, task.in.input, t,
                                 result);
        add_outliers(part, chunk, task.in.x.data() + token * static_cast<size_t>(part.padded_columns()), result);
        reorder(part, chunk, result, task.y + token * task.stride);
    }
}

void multiply_many(Compute& compute, const Task& task, int thread) {
    const Packed& part = task.part;
    const Chunk& chunk = task.chunk;
    Unpacked& unpacked = compute.unpacked[static_cast<size_t>(thread)];
    std::vector<float>& room = compute.results[static_cast<size_t>(thread)];
    const size_t pairs = (static_cast<size_t>(chunk.blocks) + 1) / 2, rows = pairs * 2 * kRows;
    if (room.size() < rows * kTokens) room.resize(rows * kTokens);
    unpack_chunk(*compute.kernel, part, chunk, unpacked);
    for (int t = 0; t < task.in.input.tokens; t += kTokens) {
        const int count = std::min(kTokens, task.in.input.tokens - t);
        for (size_t pair = 0; pair < pairs; ++pair) {
            const size_t start = unpacked.start[pair], slots = unpacked.start[pair + 1] - start;
            compute.kernel->blocks(unpacked.values.get() + start * 2 * kEntry, unpacked.panel.data() + start, slots,
                                   task.in.input, static_cast<size_t>(t / kTokens), count,
                                   room.data() + pair * 2 * kRows, rows);
        }
        for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
            const size_t token = static_cast<size_t>(t) + i;
            float* result = room.data() + i * rows;
            add_outliers(part, chunk, task.in.x.data() + token * static_cast<size_t>(part.padded_columns()), result);
            reorder(part, chunk, result, task.y + token * task.stride);
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
        const Packed& part = *parts[i];
        const Chunk& chunk = part.chunks[c];
        const Task piece{part, chunk, mine[i], y + part.output + chunk.first * kRows, stride_y};
        const auto run = compute.exact ? multiply_exactly : tokens < kUnpackFrom ? multiply_few : multiply_many;
        run(compute, piece, thread);
    });
    if (bias.empty()) return;
    for (int t = 0; t < tokens; ++t) add(bias.data(), bias.size(), y + static_cast<size_t>(t) * stride_y);
}

}  // namespace sprat::engine
