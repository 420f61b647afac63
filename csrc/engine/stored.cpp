#include "stored.hpp"

#include <cstring>

namespace sprat::engine {

namespace {

struct Fixed {  // what a head begins with
    uint64_t checksum, meta, outliers;
    int32_t rows, columns, output, chunks;
};
struct Part {  // of a chunk
    uint64_t meta, outliers;
    int32_t blocks, unused;
};

void require(bool good) {
    if (!good) throw std::invalid_argument("a stored matrix that is damaged");
}

struct Writer {
    std::vector<uint8_t> out;
    template <class T>
    void put(const T* values, size_t count) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(values);
        out.insert(out.end(), bytes, bytes + count * sizeof(T));
    }
    template <class T>
    void put(const std::vector<T>& values) {
        put(values.data(), values.size());
    }
};

struct Reader {
    const uint8_t* at;
    size_t left;
    template <class T>
    void take(T* values, size_t count) {
        require(count <= left / sizeof(T));
        if (count) std::memcpy(values, at, count * sizeof(T));
        at += count * sizeof(T);
        left -= count * sizeof(T);
    }
    template <class T>
    std::vector<T> take(size_t count) {
        require(count <= left / sizeof(T));
        std::vector<T> out(count);
        take(out.data(), count);
        return out;
    }
};

// Bytes of a chunk's entries, counted along its meta, which must end where the chunk's ends.
void walk(Chunk& chunk, const uint8_t* meta, const uint8_t* end, int32_t panels) {
    for (int32_t panel = 0; panel < panels; ++panel) {
        require(end - meta >= kBuckets);
        const uint8_t* counts = meta;
        meta += kBuckets;
        for (int bucket = 0; bucket < kBuckets; ++bucket) {
            const size_t count = counts[bucket];
            require(static_cast<size_t>(end - meta) >= count);
            require(std::all_of(meta, meta + count, [&](uint8_t block) { return block < chunk.blocks; }));
            meta += count;
            chunk.entries += count;
            chunk.bytes += bucket_bytes(width_of(bucket), count);
        }
    }
    require(meta == end);
}

// Each of a chunk's rows once.
void check_places(const Chunk& chunk, const uint16_t* place) {
    std::vector<bool> seen(static_cast<size_t>(chunk.rows));
    for (int32_t r = 0; r < chunk.rows; ++r) {
        require(place[r] < chunk.rows && !seen[place[r]]);
        seen[place[r]] = true;
    }
}

}  // namespace

std::vector<uint8_t> head_of(const Packed& packed) {
    uint64_t sum = 0;
    for (const Chunk& c : packed.chunks) sum = checksum(c.data, c.bytes, sum);
    const Fixed fixed{sum, packed.meta.size(), packed.outliers.size(), packed.rows, packed.columns, packed.output,
                      static_cast<int32_t>(packed.chunks.size())};
    Writer out;
    out.put(&fixed, 1);
    for (size_t c = 0; c < packed.chunks.size(); ++c) {
        const Chunk& chunk = packed.chunks[c];
        const size_t end = c + 1 < packed.chunks.size() ? packed.chunks[c + 1].meta : packed.meta.size();
        const Part part{end - chunk.meta, chunk.outliers_end - chunk.outliers, chunk.blocks, 0};
        out.put(&part, 1);
    }
    out.put(packed.row_scale);
    out.put(packed.place);
    out.put(packed.column_scale);
    out.put(packed.column_index);
    out.put(packed.outliers);
    out.put(packed.meta);
    return std::move(out.out);
}

Restored from_head(const uint8_t* head, size_t size) {
    constexpr int32_t kLimit = 1 << 30;
    Reader in{head, size};
    Fixed fixed;
    in.take(&fixed, 1);
    require(fixed.rows > 0 && fixed.rows < kLimit && fixed.columns > 0 && fixed.columns < kLimit && fixed.output >= 0 &&
            fixed.output < kLimit && fixed.chunks > 0);
    Restored out{std::make_shared<Packed>(), 0, fixed.checksum};
    Packed& p = *out.packed;
    p.rows = fixed.rows;
    p.columns = fixed.columns;
    p.output = fixed.output;
    p.panels = (p.columns + kPanel - 1) / kPanel;
    p.blocks = (p.rows + kRows - 1) / kRows;
    const auto parts = in.take<Part>(static_cast<size_t>(fixed.chunks));
    const size_t rows = static_cast<size_t>(p.rows), columns = static_cast<size_t>(p.padded_columns());
    p.row_scale = in.take<float>(rows);
    p.place = in.take<uint16_t>(rows);
    p.column_scale = in.take<float>(columns);
    p.column_index = in.take<int32_t>(columns);
    p.outliers = in.take<Outlier>(fixed.outliers);
    p.meta = in.take<uint8_t>(fixed.meta);
    require(in.left == 0);
    require(std::all_of(p.column_index.begin(), p.column_index.end(),
                        [&](int32_t column) { return column >= 0 && column < p.columns; }));
    Chunk chunk;
    for (const Part& part : parts) {
        require(part.blocks > 0 && part.blocks <= kMaxBlocks && part.blocks <= p.blocks - chunk.first);
        require(part.meta <= p.meta.size() - chunk.meta && part.outliers <= p.outliers.size() - chunk.outliers);
        chunk.blocks = part.blocks;
        chunk.rows = std::min(p.rows - chunk.first * kRows, chunk.blocks * kRows);
        chunk.outliers_end = chunk.outliers + part.outliers;
        chunk.bytes = chunk.entries = 0;
        const uint8_t* meta = p.meta.data() + chunk.meta;
        walk(chunk, meta, meta + part.meta, p.panels);
        check_places(chunk, p.place.data() + static_cast<size_t>(chunk.first) * kRows);
        for (size_t o = chunk.outliers; o < chunk.outliers_end; ++o) {
            const Outlier& outlier = p.outliers[o];
            require(outlier.row >= 0 && outlier.row < chunk.blocks * kRows && outlier.column >= 0 &&
                    outlier.column < p.padded_columns());
        }
        p.chunks.push_back(chunk);
        out.bytes += chunk.bytes;
        chunk.first += chunk.blocks;
        chunk.meta += part.meta;
        chunk.outliers = chunk.outliers_end;
    }
    require(chunk.first == p.blocks && chunk.meta == p.meta.size() && chunk.outliers == p.outliers.size());
    return out;
}

uint64_t checksum(const uint8_t* data, size_t size, uint64_t sum) {
    constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;
    uint64_t lanes[8];
    for (uint64_t i = 0; i < 8; ++i) lanes[i] = (sum + i + 1) * kOdd;
    uint8_t rest[64] = {};
    const size_t tail = size % 64;
    if (tail) std::memcpy(rest, data + size - tail, tail);
    const auto mix = [&](const uint8_t* from) {
        for (int i = 0; i < 8; ++i) {
            uint64_t word;
            std::memcpy(&word, from + 8 * i, 8);
            lanes[i] = (lanes[i] ^ word) * kOdd;
            lanes[i] ^= lanes[i] >> 29;
        }
    };
    for (size_t at = 0; at + 64 <= size; at += 64) mix(data + at);
    if (tail) mix(rest);
    uint64_t out = size;
    for (const uint64_t lane : lanes) out = (out ^ lane) * kOdd, out ^= out >> 32;
    return out;
}

}  // namespace sprat::engine
