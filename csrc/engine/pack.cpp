#include "pack.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include "bits.hpp"
#include "clones.hpp"

namespace sprat::engine {

namespace {

// Sum of weight[j] * |q[j]|, in 16 lanes: always the same order of additions.
template <class T>
inline float weighted_sum(const T* q, const float* weight, size_t n) {
    float lanes[16] = {};
    size_t j = 0;
    for (; j + 16 <= n; j += 16)
        for (size_t l = 0; l < 16; ++l) lanes[l] += weight[j + l] * std::fabs(static_cast<float>(q[j + l]));
    for (; j < n; ++j) lanes[0] += weight[j] * std::fabs(static_cast<float>(q[j]));
    return std::accumulate(lanes, lanes + 16, 0.0f);
}
SPRAT_CLONES float weighted(const int16_t* q, const float* weight, size_t n) { return weighted_sum(q, weight, n); }
SPRAT_CLONES float weighted(const int32_t* q, const float* weight, size_t n) { return weighted_sum(q, weight, n); }

// How large the integers of each row and column are, relative to each other. A sample of the rows tells the columns.
template <class T>
void sizes(const T* q, int32_t rows, int32_t columns, std::vector<float>& row, std::vector<float>& column) {
    const auto m = static_cast<size_t>(rows), n = static_cast<size_t>(columns);
    const size_t step = std::max<size_t>(1, m / 384);
    std::vector<float> weight(n);
    column.assign(n, 0);
    row.resize(m);
    const auto add = [&](size_t i, float scale) {
        for (size_t j = 0; j < n; ++j) column[j] += scale * std::fabs(static_cast<float>(q[i * n + j]));
    };
    for (size_t i = 0; i < m; i += step) add(i, 1);
    for (size_t j = 0; j < n; ++j) weight[j] = column[j] > 0 ? 1 / column[j] : 0;
    for (size_t i = 0; i < m; ++i) row[i] = weighted(q + i * n, weight.data(), n);
    std::fill(column.begin(), column.end(), 0.0f);
    for (size_t i = 0; i < m; i += step)
        if (row[i] > 0) add(i, 1 / row[i]);
}

// begin .. end, the largest key first.
std::vector<int32_t> largest_first(const std::vector<float>& key, int32_t begin, int32_t end) {
    std::vector<int32_t> out(static_cast<size_t>(end - begin));
    std::iota(out.begin(), out.end(), begin);
    std::stable_sort(out.begin(), out.end(), [&](int32_t a, int32_t b) {
        return key[static_cast<size_t>(a)] > key[static_cast<size_t>(b)];
    });
    return out;
}

int width_for(int32_t least, int32_t most) {
    if (least == 0 && most == 0) return 0;
    int width = 1;
    while (least < -(1 << (width - 1)) || most > (1 << (width - 1)) - 1) ++width;
    return width;
}

struct Range {
    int32_t least, most;
};

template <class T>
inline Range range(const T* q, size_t n) {
    T least = 0, most = 0;
    for (size_t j = 0; j < n; ++j) {
        least = std::min(least, q[j]);
        most = std::max(most, q[j]);
    }
    return {least, most};
}
SPRAT_CLONES Range range_of(const int16_t* q, size_t n) { return range(q, n); }
SPRAT_CLONES Range range_of(const int32_t* q, size_t n) { return range(q, n); }

// An entry's integers, row by row, as bytes in the order of its tiles.
template <class F>
inline void tile(const int16_t* q, uint8_t* values, F byte) {
    for (int r = 0; r < kRows; ++r) {
        uint8_t row[kPanel];
        for (int c = 0; c < kPanel; ++c) row[c] = static_cast<uint8_t>(byte(q[r * kPanel + c]));
        for (int t = 0; t < kQuads; ++t) std::memcpy(values + t * kTile + 4 * r, row + 4 * t, 4);
    }
}
SPRAT_CLONES void tile_whole(const int16_t* q, int offset, uint8_t* values) {
    tile(q, values, [offset](int v) { return v + offset; });
}
// Where an integer is two: high = (v + 128) >> 8, low = v - 256 high.
SPRAT_CLONES void tile_high(const int16_t* q, int offset, uint8_t* values) {
    tile(q, values, [offset](int v) { return ((v + 128) >> 8) + offset; });
}

// The integers of a chunk in stored order: kEntry of each (panel, block), row by row, and how wide each entry is.
struct Arranged {
    int32_t panels, blocks;
    std::vector<int16_t> integers;
    std::vector<uint8_t> low, high;  // widths; high is 0 where one entry holds all

    size_t at(int32_t panel, int32_t block) const {
        return static_cast<size_t>(panel) * static_cast<size_t>(blocks) + static_cast<size_t>(block);
    }
    const int16_t* entry(int32_t panel, int32_t block) const { return integers.data() + at(panel, block) * kEntry; }
    void measure(int32_t block) {
        for (int32_t panel = 0; panel < panels; ++panel) {
            const auto [least, most] = range_of(entry(panel, block), kEntry);
            const int width = width_for(least, most);
            low[at(panel, block)] = static_cast<uint8_t>(std::min(width, 8));
            high[at(panel, block)] =
                static_cast<uint8_t>(width <= 8 ? 0 : width_for((least + 128) >> 8, (most + 128) >> 8));
        }
    }
};

// A row of the lattice into its place, `r` in the chunk; what two planes do not hold goes to the outliers.
template <class T>
void arrange_row(const T* from, const std::vector<int32_t>& order, int32_t r, Arranged& out,
                 std::vector<Outlier>& outliers) {
    const size_t n = order.size();
    const auto [least, most] = range_of(from, n);
    const bool tame = least >= -kMaxInteger && most <= kMaxInteger;
    for (size_t j = 0; j < n; j += kPanel) {
        int16_t* to = out.integers.data() + out.at(static_cast<int32_t>(j / kPanel), r / kRows) * kEntry +
                      static_cast<size_t>(r % kRows) * kPanel;
        const size_t count = std::min<size_t>(kPanel, n - j);
        if (tame && count == kPanel) {
            for (size_t c = 0; c < kPanel; ++c) to[c] = static_cast<int16_t>(from[order[j + c]]);
            continue;
        }
        for (size_t c = 0; c < count; ++c) {
            const int32_t v = from[order[j + c]];
            const bool outlier = v > kMaxInteger || v < -kMaxInteger;
            if (outlier) outliers.push_back({r, static_cast<int32_t>(j + c), static_cast<float>(v)});
            to[c] = static_cast<int16_t>(outlier ? 0 : v);
        }
    }
}

// A chunk's entries into memory of the arena and its blocks' numbers behind `meta`.
void write_chunk(const Arranged& from, Arena& arena, Chunk& chunk, std::vector<uint8_t>& meta) {
    std::vector<std::array<std::vector<uint8_t>, kBuckets>> members(static_cast<size_t>(from.panels));
    size_t bytes = 0;
    for (int32_t panel = 0; panel < from.panels; ++panel) {
        auto& buckets = members[static_cast<size_t>(panel)];
        for (int32_t block = 0; block < from.blocks; ++block) {
            const size_t at = from.at(panel, block);
            if (from.low[at]) buckets[from.low[at] - 1].push_back(static_cast<uint8_t>(block));
            if (from.high[at]) buckets[8 + from.high[at] - 1].push_back(static_cast<uint8_t>(block));
        }
        for (int bucket = 0; bucket < kBuckets; ++bucket) bytes += bucket_bytes(width_of(bucket), buckets[bucket].size());
    }
    uint8_t* to = arena.take(bytes);
    chunk.data = to;
    chunk.bytes = bytes;
    chunk.meta = meta.size();
    uint8_t values[kEntry];
    for (int32_t panel = 0; panel < from.panels; ++panel) {
        const auto& buckets = members[static_cast<size_t>(panel)];
        for (const auto& b : buckets) meta.push_back(static_cast<uint8_t>(b.size()));
        for (int bucket = 0; bucket < kBuckets; ++bucket) {
            const int width = width_of(bucket), offset = 1 << (width - 1);
            const size_t count = buckets[bucket].size(), used = count * entry_bytes(width);
            for (size_t i = 0; i < count; ++i) {
                const int16_t* q = from.entry(panel, buckets[bucket][i]);
                (is_high(bucket) ? tile_high : tile_whole)(q, offset, values);
                write_entry(values, width, to + i * entry_bytes(width));
            }
            std::fill(to + used, to + bucket_bytes(width, count), uint8_t{0});
            to += bucket_bytes(width, count);
            meta.insert(meta.end(), buckets[bucket].begin(), buckets[bucket].end());
            chunk.entries += count;
        }
    }
}

}  // namespace

template <class T>
std::shared_ptr<Packed> pack(const T* q, int32_t rows, int32_t columns, const float* row_scale,
                             const float* column_scale, int32_t output, int parts, std::shared_ptr<Arena> arena) {
    auto out = std::make_shared<Packed>();
    out->rows = rows;
    out->columns = columns;
    out->output = output;
    out->panels = (columns + kPanel - 1) / kPanel;
    out->blocks = (rows + kRows - 1) / kRows;
    std::vector<float> row_size, column_size;
    sizes(q, rows, columns, row_size, column_size);
    const std::vector<int32_t> column_order = largest_first(column_size, 0, columns);
    const auto width = static_cast<size_t>(out->padded_columns());
    out->column_index.assign(width, 0);
    out->column_scale.assign(width, 0);
    for (size_t j = 0; j < column_order.size(); ++j) {
        out->column_index[j] = column_order[j];
        out->column_scale[j] = column_scale[column_order[j]];
    }
    parts = std::max(1, std::min<int>(parts, out->blocks));
    int chunks = std::max((out->blocks + kMaxBlocks - 1) / kMaxBlocks, parts);
    chunks = std::min<int>((chunks + parts - 1) / parts * parts, out->blocks);
    out->row_scale.assign(row_scale, row_scale + rows);
    out->place.resize(static_cast<size_t>(rows));
    Arranged arranged;
    for (int64_t c = 0; c < chunks; ++c) {
        Chunk chunk;
        chunk.first = static_cast<int32_t>(out->blocks * c / chunks);
        chunk.blocks = static_cast<int32_t>(out->blocks * (c + 1) / chunks) - chunk.first;
        chunk.outliers = out->outliers.size();
        const int32_t begin = chunk.first * kRows;
        chunk.rows = std::min(rows - begin, chunk.blocks * kRows);
        const std::vector<int32_t> row_order = largest_first(row_size, begin, begin + chunk.rows);
        arranged.panels = out->panels;
        arranged.blocks = chunk.blocks;
        const size_t entries = static_cast<size_t>(out->panels) * static_cast<size_t>(chunk.blocks);
        arranged.integers.resize(entries * kEntry);
        // What no row or column fills must be zero.
        if (chunk.rows < chunk.blocks * kRows || columns % kPanel)
            std::fill(arranged.integers.begin(), arranged.integers.end(), int16_t{0});
        arranged.low.resize(entries);
        arranged.high.resize(entries);
        for (int32_t r = 0; r < chunk.blocks * kRows; ++r) {
            if (r < chunk.rows) {
                const auto source = static_cast<size_t>(row_order[static_cast<size_t>(r)]);
                out->place[source] = static_cast<uint16_t>(r);
                arrange_row(q + source * static_cast<size_t>(columns), column_order, r, arranged, out->outliers);
            }
            if (r % kRows == kRows - 1) arranged.measure(r / kRows);
        }
        chunk.outliers_end = out->outliers.size();
        write_chunk(arranged, *arena, chunk, out->meta);
        out->chunks.push_back(chunk);
    }
    out->meta.shrink_to_fit();
    out->arena = std::move(arena);
    return out;
}

template std::shared_ptr<Packed> pack(const int16_t*, int32_t, int32_t, const float*, const float*, int32_t, int,
                                      std::shared_ptr<Arena>);
template std::shared_ptr<Packed> pack(const int32_t*, int32_t, int32_t, const float*, const float*, int32_t, int,
                                      std::shared_ptr<Arena>);

void expand_row(const Packed& packed, int32_t row, float* out) {
    const Chunk& chunk = *std::find_if(packed.chunks.begin(), packed.chunks.end(), [&](const Chunk& c) {
        return row / kRows < c.first + c.blocks;
    });
    const int32_t stored = packed.place[static_cast<size_t>(row)], lane = stored % kRows;
    const auto wanted = static_cast<uint8_t>(stored / kRows);
    const uint8_t* meta = packed.meta.data() + chunk.meta;
    const uint8_t* data = chunk.data;
    const float scale = packed.row_scale[static_cast<size_t>(row)];
    uint8_t values[kEntry];
    for (int32_t panel = 0; panel < packed.panels; ++panel) {
        int32_t found[kPanel] = {};
        const uint8_t* counts = meta;
        meta += kBuckets;
        for (int bucket = 0; bucket < kBuckets; ++bucket) {
            const int w = width_of(bucket);
            if (const void* const hit = counts[bucket] ? std::memchr(meta, wanted, counts[bucket]) : nullptr) {
                read_entry(data, w, static_cast<size_t>(static_cast<const uint8_t*>(hit) - meta), values);
                for (int c = 0; c < kPanel; ++c) {
                    const int v = values[c / 4 * kTile + 4 * lane + c % 4] - (1 << (w - 1));
                    found[c] += is_high(bucket) ? v * 256 : v;
                }
            }
            meta += counts[bucket];
            data += bucket_bytes(w, counts[bucket]);
        }
        for (int c = 0; c < kPanel; ++c) {
            const auto j = static_cast<size_t>(panel * kPanel + c);
            if (j < static_cast<size_t>(packed.columns))
                out[packed.column_index[j]] = static_cast<float>(found[c]) * scale * packed.column_scale[j];
        }
    }
    for (size_t o = chunk.outliers; o < chunk.outliers_end; ++o) {
        const Outlier& outlier = packed.outliers[o];
        const auto j = static_cast<size_t>(outlier.column);
        if (outlier.row == stored) out[packed.column_index[j]] = outlier.value * scale * packed.column_scale[j];
    }
}

}  // namespace sprat::engine
