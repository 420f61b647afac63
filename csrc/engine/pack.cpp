#include "pack.hpp"

#include <cmath>
#include <cstring>
#include <numeric>

#include "bits.hpp"

namespace sprat::engine {

namespace {

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
    for (size_t i = 0; i < m; ++i) {
        float lanes[16] = {};
        size_t j = 0;
        for (; j + 16 <= n; j += 16)
            for (size_t l = 0; l < 16; ++l)
                lanes[l] += weight[j + l] * std::fabs(static_cast<float>(q[i * n + j + l]));
        for (; j < n; ++j) lanes[0] += weight[j] * std::fabs(static_cast<float>(q[i * n + j]));
        row[i] = std::accumulate(lanes, lanes + 16, 0.0f);
    }
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

struct Builder {
    std::vector<uint8_t> data, meta;
    std::vector<Outlier> outliers;
    size_t entries = 0;
};

// One panel of a chunk whose integers are q (blocks * 16, panels * 16), in stored order.
void write_panel(Builder& b, const int16_t* q, int32_t blocks, int32_t panels, int32_t panel) {
    const auto stride = static_cast<size_t>(panels) * kPanel;
    const int16_t* const first = q + static_cast<size_t>(panel) * kPanel;
    int32_t width[kMaxBlocks];
    std::vector<uint8_t> members[kBuckets];
    for (int32_t block = 0; block < blocks; ++block) {
        const int16_t* at = first + static_cast<size_t>(block) * kRows * stride;
        int16_t low[kPanel] = {}, high[kPanel] = {};
        for (size_t r = 0; r < kRows; ++r)
            for (size_t c = 0; c < kPanel; ++c) {
                low[c] = std::min(low[c], at[r * stride + c]);
                high[c] = std::max(high[c], at[r * stride + c]);
            }
        const int32_t least = *std::min_element(low, low + kPanel), most = *std::max_element(high, high + kPanel);
        width[block] = width_for(least, most);
        if (!width[block]) continue;
        const auto name = static_cast<uint8_t>(block);
        if (width[block] <= 8) {
            members[width[block] - 1].push_back(name);
        } else {
            members[7].push_back(name);
            members[8 + width_for((least + 128) >> 8, (most + 128) >> 8) - 1].push_back(name);
        }
    }
    for (const auto& m : members) b.meta.push_back(static_cast<uint8_t>(m.size()));
    uint8_t values[kEntry];
    for (int bucket = 0; bucket < kBuckets; ++bucket) {
        const std::vector<uint8_t>& blocks_in = members[bucket];
        const size_t begin = b.data.size();
        b.data.resize(begin + bucket_bytes(width_of(bucket), blocks_in.size()), 0);
        for (size_t entry = 0; entry < blocks_in.size(); ++entry) {
            const uint8_t block = blocks_in[entry];
            const int16_t* at = first + static_cast<size_t>(block) * kRows * stride;
            const int w = width_of(bucket), offset = 1 << (w - 1);
            const bool split = width[block] > 8;
            // What is left after the other half: high = (v + 128) >> 8, low = v - 256 high.
            const auto part = [&](int v) { return is_high(bucket) ? (v + 128) >> 8 : split ? int8_t(v) : v; };
            for (size_t r = 0; r < kRows; ++r)
                for (size_t c = 0; c < kPanel; ++c)
                    values[c / 4 * kTile + 4 * r + c % 4] = static_cast<uint8_t>(part(at[r * stride + c]) + offset);
            b.meta.push_back(block);
            write_entry(values, w, b.data.data() + begin + entry * entry_bytes(w));
        }
        b.entries += blocks_in.size();
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
    out->row_scale.assign(static_cast<size_t>(out->blocks) * kRows, 0);
    out->place.assign(static_cast<size_t>(out->blocks) * kRows, 0);
    std::vector<Builder> built(static_cast<size_t>(chunks));
    std::vector<int16_t> integers;
    size_t data = 0, meta = 0;
    for (int64_t c = 0; c < chunks; ++c) {
        Builder& b = built[static_cast<size_t>(c)];
        Chunk chunk;
        chunk.first = static_cast<int32_t>(out->blocks * c / chunks);
        chunk.blocks = static_cast<int32_t>(out->blocks * (c + 1) / chunks) - chunk.first;
        const int32_t begin = chunk.first * kRows;
        chunk.rows = std::min(rows - begin, chunk.blocks * kRows);
        const std::vector<int32_t> row_order = largest_first(row_size, begin, begin + chunk.rows);
        integers.assign(static_cast<size_t>(chunk.blocks) * kRows * width, 0);
        for (int32_t r = 0; r < chunk.blocks * kRows; ++r) {
            const auto stored = static_cast<size_t>(begin + r);
            out->place[stored] = static_cast<uint16_t>(r);
            if (r >= chunk.rows) continue;
            const auto source = static_cast<size_t>(row_order[static_cast<size_t>(r)]);
            out->row_scale[stored] = row_scale[source];
            out->place[stored] = static_cast<uint16_t>(source - static_cast<size_t>(begin));
            int16_t* to = integers.data() + static_cast<size_t>(r) * width;
            const T* from = q + source * static_cast<size_t>(columns);
            for (size_t j = 0; j < column_order.size(); ++j) {
                const int32_t v = from[column_order[j]];
                if (v > kMaxInteger || v < -kMaxInteger) [[unlikely]]
                    b.outliers.push_back({r, static_cast<int32_t>(j), static_cast<float>(v)});
                else
                    to[j] = static_cast<int16_t>(v);
            }
        }
        for (int32_t panel = 0; panel < out->panels; ++panel) write_panel(b, integers.data(), chunk.blocks, out->panels, panel);
        chunk.data = data;
        chunk.meta = meta;
        chunk.entries = b.entries;
        chunk.outliers = out->outliers.size();
        out->outliers.insert(out->outliers.end(), b.outliers.begin(), b.outliers.end());
        chunk.outliers_end = out->outliers.size();
        data += b.data.size();
        meta += b.meta.size();
        out->chunks.push_back(chunk);
    }
    out->data_bytes = data;
    out->data = arena->take(data);
    out->arena = std::move(arena);
    out->meta.reserve(meta);
    for (size_t c = 0; c < built.size(); ++c) {
        uint8_t* to = out->data + out->chunks[c].data;
        std::copy(built[c].data.begin(), built[c].data.end(), to);
        std::vector<uint8_t>().swap(built[c].data);
        out->meta.insert(out->meta.end(), built[c].meta.begin(), built[c].meta.end());
    }
    return out;
}

template std::shared_ptr<Packed> pack(const int16_t*, int32_t, int32_t, const float*, const float*, int32_t, int,
                                      std::shared_ptr<Arena>);
template std::shared_ptr<Packed> pack(const int32_t*, int32_t, int32_t, const float*, const float*, int32_t, int,
                                      std::shared_ptr<Arena>);

void expand_row(const Packed& packed, int32_t stored, float* out) {
    const int32_t block = stored / kRows, lane = stored % kRows;
    const auto found = std::find_if(packed.chunks.begin(), packed.chunks.end(), [&](const Chunk& c) {
        return block < c.first + c.blocks;
    });
    const Chunk& chunk = *found;
    const auto wanted = static_cast<uint8_t>(block - chunk.first);
    const uint8_t* meta = packed.meta.data() + chunk.meta;
    const uint8_t* data = packed.data + chunk.data;
    const float scale = packed.row_scale[static_cast<size_t>(stored)];
    uint8_t values[kEntry];
    for (int32_t panel = 0; panel < packed.panels; ++panel) {
        int32_t row[kPanel] = {};
        const uint8_t* counts = meta;
        meta += kBuckets;
        for (int bucket = 0; bucket < kBuckets; ++bucket) {
            const int w = width_of(bucket);
            if (const void* const hit = counts[bucket] ? std::memchr(meta, wanted, counts[bucket]) : nullptr) {
                read_entry(data, w, static_cast<size_t>(static_cast<const uint8_t*>(hit) - meta), values);
                for (int c = 0; c < kPanel; ++c) {
                    const int v = values[c / 4 * kTile + 4 * lane + c % 4] - (1 << (w - 1));
                    row[c] += is_high(bucket) ? v * 256 : v;
                }
            }
            meta += counts[bucket];
            data += bucket_bytes(w, counts[bucket]);
        }
        for (int c = 0; c < kPanel; ++c) {
            const auto j = static_cast<size_t>(panel * kPanel + c);
            if (j < static_cast<size_t>(packed.columns))
                out[packed.column_index[j]] = static_cast<float>(row[c]) * scale * packed.column_scale[j];
        }
    }
    const int32_t local = stored - chunk.first * kRows;
    for (size_t o = chunk.outliers; o < chunk.outliers_end; ++o) {
        const Outlier& outlier = packed.outliers[o];
        const auto j = static_cast<size_t>(outlier.column);
        if (outlier.row == local) out[packed.column_index[j]] = outlier.value * scale * packed.column_scale[j];
    }
}

}  // namespace sprat::engine
