// Lattices to words: counting symbols by context, and the encoder.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "rans.hpp"

namespace sprat::rans {

// work(0) .. work(items - 1) on up to `threads` threads; the first exception is thrown again here.
template <class F>
void parallel(int64_t items, int threads, F work) {
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex guard;
    const auto loop = [&] {
        try {
            for (int64_t i; (i = next.fetch_add(1)) < items;) work(i);
        } catch (...) {
            next = items;
            const std::lock_guard lock(guard);
            if (!failure) failure = std::current_exception();
        }
    };
    std::vector<std::thread> pool;
    try {
        for (int64_t t = 1; t < std::min<int64_t>(threads, items); ++t) pool.emplace_back(loop);
    } catch (const std::system_error&) {
        // No more threads to be had: those that there are do the work.
    }
    loop();
    for (auto& t : pool) t.join();
    if (failure) std::rethrow_exception(failure);
}

// The symbol of q in a state's quantizer; false when that quantizer has no such point.
template <int S>
bool symbol_of(int64_t q, int quantizer, int64_t& k) {
    if constexpr (S == 0) {
        k = q;
        return true;
    }
    // Even for every point of the quantizer, without a branch: the parity of q is a coin toss.
    const int64_t even = q + (quantizer ? (q > 0) - (q < 0) : 0);
    k = even >> 1;
    return (even & 1) == 0;
}

struct Shape {
    int64_t rows, columns;
    const uint8_t* row_class;
    const uint8_t* col_class;
    int64_t chunk() const { return chunk_rows(columns); }
    int64_t chunks() const { return (rows + chunk() - 1) / chunk(); }
};

inline int escape_bits(int64_t k) {
    const auto magnitude = static_cast<uint64_t>(k < 0 ? -k : k);
    return 7 + std::max(0, static_cast<int>(std::bit_width(magnitude)) - 1);
}

struct Counts {
    std::array<std::array<uint64_t, kMaxCells>, kContexts> symbols{};
    std::array<uint64_t, kContexts> extra{};  // bits of what was escaped
};

template <int S, class T>
int64_t count_row(const T* q, const Shape& shape, int64_t i, Counts& out) {
    int state = 0;
    for (int64_t j = 0; j < shape.columns; ++j) {
        const int quantizer = Trellis<S>::quantizer(state);
        const int b = bucket_of_sum(shape.row_class[i] + shape.col_class[j]);
        int64_t k;
        if (!symbol_of<S>(q[j], quantizer, k)) return j;
        const int context = quantizer * kBuckets + b, cells = 1 << cell_bits(b), middle = cells / 2 - 1;
        const int64_t h = k >> raw_bits(b);
        if (h < -middle || h > middle) {
            ++out.symbols[context][cells - 1];
            out.extra[context] += escape_bits(k);
        } else {
            ++out.symbols[context][h + middle];
        }
        state = Trellis<S>::next[state][k & 1];
    }
    return -1;
}

struct EncodeContext {
    std::array<uint16_t, kMaxCells> freq{}, start{};
    std::array<uint16_t, kTotal> slot{};  // slot[start[i] + position]
    EncodeContext(const uint16_t* f, int bits) {
        std::array<Cell, kMaxCells> cells;
        alias_cells(f, bits, cells.data());
        const int count = 1 << bits, size = static_cast<int>(kTotal) >> bits;
        uint32_t at = 0;
        for (int i = 0; i < count; ++i) {
            freq[i] = f[i];
            start[i] = static_cast<uint16_t>(at);
            at += f[i];
        }
        for (int i = 0; i < count; ++i) {
            for (int u = 0; u < size; ++u) {
                const Half& half = cells[i].half[u >= cells[i].half[0].cut];
                const int s = half.symbol == kEscape ? count - 1 : half.symbol + count / 2 - 1;
                slot[start[s] + u + half.bias] = static_cast<uint16_t>(i * size + u);
            }
        }
    }
};

// Words are pushed in reverse: the decoder reads them from the end of `words`.
struct Writer {
    std::vector<uint16_t> words;
    void raw(uint32_t& x, uint32_t value, int bits) {
        if (bits == 0) return;
        if (x >> (32 - bits)) {
            words.push_back(static_cast<uint16_t>(x));
            x >>= 16;
        }
        x = (x << bits) | value;
    }
    void symbol(uint32_t& x, const EncodeContext& c, int i) {
        const uint32_t f = c.freq[i];
        if (static_cast<uint64_t>(x) >= (static_cast<uint64_t>(f) << (32 - kProbBits))) {
            words.push_back(static_cast<uint16_t>(x));
            x >>= 16;
        }
        x = ((x / f) << kProbBits) | c.slot[c.start[i] + x % f];
    }
};

struct Pending {
    int32_t k;
    uint8_t context;
};

template <int S, class T>
std::vector<uint8_t> encode_chunk(const T* q, const Shape& shape, int64_t first,
                                  const std::unique_ptr<EncodeContext>* contexts) {
    const int64_t n = shape.columns, rows = std::min(shape.chunk(), shape.rows - first);
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, rows));
    std::vector<Pending> pending(static_cast<size_t>(rows * n));
    for (int64_t i = 0; i < rows; ++i) {
        int state = 0;
        for (int64_t j = 0; j < n; ++j) {
            const int quantizer = Trellis<S>::quantizer(state);
            const int b = bucket_of_sum(shape.row_class[first + i] + shape.col_class[j]);
            int64_t k;
            symbol_of<S>(q[(first + i) * n + j], quantizer, k);  // checked when the contexts were counted
            pending[i * n + j] = {static_cast<int32_t>(k), static_cast<uint8_t>(quantizer * kBuckets + b)};
            state = Trellis<S>::next[state][k & 1];
        }
    }
    Writer w;
    w.words.reserve(static_cast<size_t>(rows * n / 4 + 64));
    uint32_t x[kLanes];
    std::fill(x, x + kLanes, kLow);
    for (int64_t group = (rows - 1) / kLanes * kLanes; group >= 0; group -= kLanes) {
        const int live = static_cast<int>(std::min<int64_t>(kLanes, rows - group));
        for (int64_t j = n - 1; j >= 0; --j) {
            for (int l = live - 1; l >= 0; --l) {
                const auto [small, context] = pending[(group + l) * n + j];
                const int64_t k = small;
                const EncodeContext& c = *contexts[context];
                const int b = context % kBuckets, raw = raw_bits(b), cells = 1 << cell_bits(b);
                const int64_t h = k >> raw, middle = cells / 2 - 1;
                if (h >= -middle && h <= middle && c.freq[h + middle]) {
                    w.raw(x[l], static_cast<uint32_t>(k & ((1 << raw) - 1)), raw);
                    w.symbol(x[l], c, static_cast<int>(h + middle));
                    continue;
                }
                const uint64_t e = static_cast<uint64_t>(k < 0 ? -k : k);
                const int length = static_cast<int>(std::bit_width(e)), low = std::max(0, length - 1);
                const int piece = std::min(16, low);
                w.raw(x[l], static_cast<uint32_t>((e >> piece) & ((1u << (low - piece)) - 1)), low - piece);
                w.raw(x[l], static_cast<uint32_t>(e & ((1u << piece) - 1)), piece);
                w.raw(x[l], static_cast<uint32_t>(length | (k < 0) << 6), 7);
                w.symbol(x[l], c, cells - 1);
            }
        }
    }
    std::vector<uint8_t> out;
    out.reserve(4 * kLanes + 2 * w.words.size());
    for (int l = 0; l < lanes; ++l)
        for (int s = 0; s < 32; s += 8) out.push_back(static_cast<uint8_t>(x[l] >> s));
    for (size_t i = w.words.size(); i-- > 0;) {
        out.push_back(static_cast<uint8_t>(w.words[i]));
        out.push_back(static_cast<uint8_t>(w.words[i] >> 8));
    }
    return out;
}

}  // namespace sprat::rans
