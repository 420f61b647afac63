// Entropy coder of integer lattices: static rANS tables per (quantizer, bucket), eight interleaved states.
//
// Source: J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); F. Giesen, "Interleaved entropy coders"
// (arXiv 1402.3392); M. Vose's alias method, so that a table of N symbols costs N cells and stays in cache.
#include "rans.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>

#include "bitcoder.hpp"

namespace nb = nanobind;

namespace sprat::rans {

Freqs frequencies(const uint8_t* levels, int cells) {
    // round(2^24 * 2^(-i/8))
    static constexpr uint32_t kPower[8] = {16777216, 15384774, 14107901, 12937002,
                                           11863283, 10878678, 9975792,  9147842};
    uint64_t sum = 0;
    std::array<uint32_t, kMaxCells> weight{};
    for (int i = 0; i < cells; ++i) {
        if (levels[i] > kAbsent) throw std::invalid_argument("a level above 127");
        if (levels[i] != kAbsent) weight[i] = kPower[levels[i] & 7] >> (levels[i] >> 3);
        sum += weight[i];
    }
    Freqs freq{};
    int64_t rest = kTotal;
    int best = 0;
    for (int i = 0; i < cells; ++i) {
        if (weight[i]) freq[i] = static_cast<uint16_t>(std::max<uint64_t>(1, weight[i] * uint64_t{kTotal} / sum));
        if (i == cells - 1 && !freq[i]) freq[i] = 1;  // the escape can always be sent
        rest -= freq[i];
        if (freq[i] > freq[best]) best = i;
    }
    if (freq[best] + rest < 1) throw std::invalid_argument("frequencies that cannot sum to one");
    freq[best] = static_cast<uint16_t>(freq[best] + rest);
    return freq;
}

void check_frequencies(const uint16_t* freq, int cells) {
    uint32_t sum = 0;
    for (int i = 0; i < cells; ++i) sum += freq[i];
    if (sum != kTotal || freq[cells - 1] == 0) throw std::invalid_argument("frequencies do not sum to 2^14");
}

void alias_cells(const uint16_t* freq, int bits, Cell* cells) {
    const int count = 1 << bits, escape = count - 1, middle = count / 2 - 1;
    const int size = static_cast<int>(kTotal) >> bits;
    std::array<int, kMaxCells> left{}, alias{}, used{};
    std::array<int, kMaxCells> small{}, large{};
    int smalls = 0, larges = 0;
    for (int i = 0; i < count; ++i) {
        left[i] = freq[i];
        alias[i] = i;
        (left[i] < size ? small[smalls++] : large[larges++]) = i;
    }
    while (smalls) {
        const int s = small[--smalls], g = large[larges - 1];
        alias[s] = g;
        left[g] -= size - left[s];
        if (left[g] < size) {
            --larges;
            small[smalls++] = g;
        }
    }
    auto symbol = [&](int i) { return static_cast<int16_t>(i == escape ? kEscape : i - middle); };
    // A symbol's positions: first its own cell, then the cells that lend it their rest, by number.
    for (int i = 0; i < count; ++i) used[i] = std::min(left[i], size);
    for (int i = 0; i < count; ++i) {
        Cell& c = cells[i];
        const int cut = std::min(left[i], size), a = alias[i];
        c = {{freq[i], freq[a]}, {0, 0}, {symbol(i), symbol(a)}, static_cast<uint16_t>(cut), 0};
        if (cut < size) {
            c.bias[1] = static_cast<int16_t>(used[a] - cut);
            used[a] += size - cut;
        }
    }
}

namespace {

template <class F>
void parallel(int64_t items, int threads, F work) {
    std::atomic<int64_t> next{0};
    auto loop = [&] {
        for (int64_t i; (i = next.fetch_add(1)) < items;) work(i);
    };
    std::vector<std::thread> pool;
    for (int t = 1; t < std::min<int64_t>(threads, items); ++t) pool.emplace_back(loop);
    loop();
    for (auto& t : pool) t.join();
}

// The symbol of q in a state's quantizer; false when that quantizer has no such point.
template <int S>
bool symbol_of(int64_t q, int quantizer, int64_t& k) {
    if constexpr (S == 0) {
        k = q;
        return true;
    }
    if (quantizer == 0) {
        k = q / 2;
        return (q & 1) == 0;
    }
    k = (q + (q > 0) - (q < 0)) / 2;
    return q == 0 || (q & 1);
}

struct Shape {
    int64_t rows, columns;
    const uint8_t* row_class;
    const uint8_t* col_class;
    int64_t chunk() const { return chunk_rows(columns); }
    int64_t chunks() const { return (rows + chunk() - 1) / chunk(); }
};

int escape_bits(int64_t k) { return 7 + std::max(0, static_cast<int>(std::bit_width(static_cast<uint64_t>(k < 0 ? -k : k))) - 1); }

// ---- counting ------------------------------------------------------------------------------------------

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

// ---- encoding ------------------------------------------------------------------------------------------

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
                const int half = u >= cells[i].cut;
                const int s = cells[i].symbol[half] == kEscape ? count - 1 : cells[i].symbol[half] + count / 2 - 1;
                slot[start[s] + u + cells[i].bias[half]] = static_cast<uint16_t>(i * size + u);
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
    int64_t k;
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
            pending[i * n + j] = {k, static_cast<uint8_t>(quantizer * kBuckets + b)};
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
                const Pending p = pending[(group + l) * n + j];
                const EncodeContext& c = *contexts[p.context];
                const int b = p.context % kBuckets, raw = raw_bits(b), cells = 1 << cell_bits(b);
                const int64_t h = p.k >> raw, middle = cells / 2 - 1;
                if (h >= -middle && h <= middle && c.freq[h + middle]) {
                    w.raw(x[l], static_cast<uint32_t>(p.k & ((1 << raw) - 1)), raw);
                    w.symbol(x[l], c, static_cast<int>(h + middle));
                    continue;
                }
                const uint64_t e = static_cast<uint64_t>(p.k < 0 ? -p.k : p.k);
                const int length = static_cast<int>(std::bit_width(e)), low = std::max(0, length - 1);
                const int piece = std::min(16, low);
                w.raw(x[l], static_cast<uint32_t>((e >> piece) & ((1u << (low - piece)) - 1)), low - piece);
                w.raw(x[l], static_cast<uint32_t>(e & ((1u << piece) - 1)), piece);
                w.raw(x[l], static_cast<uint32_t>(length | (p.k < 0) << 6), 7);
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

// ---- decoding ------------------------------------------------------------------------------------------

struct Lookup {  // of one (quantizer, row_class + col_class)
    const Cell* cells;
    uint32_t shift, raw;
};

class Decoder {
  public:
    explicit Decoder(const uint16_t* freq) : cells_(kContexts * kMaxCells), lookups_(2 * kSums) {
        for (int c = 0; c < kContexts; ++c) {
            check_frequencies(freq + c * kMaxCells, 1 << cell_bits(c % kBuckets));
            alias_cells(freq + c * kMaxCells, cell_bits(c % kBuckets), &cells_[c * kMaxCells]);
        }
        for (int s = 0; s < 2 * kSums; ++s) {
            const int b = bucket_of_sum(s % kSums);
            const int context = s / kSums * kBuckets + b;
            lookups_[s] = {&cells_[context * kMaxCells], static_cast<uint32_t>(kProbBits - cell_bits(b)),
                           static_cast<uint32_t>(raw_bits(b))};
        }
    }
    const Lookup* lookups(int quantizer) const { return &lookups_[quantizer * kSums]; }

  private:
    std::vector<Cell> cells_;
    std::vector<Lookup> lookups_;
};

// Reads of one column of lanes stay inside the padding: at most 4 words a lane.
constexpr int kPadding = kLanes * 8;

inline uint32_t take(uint32_t& x, int bits, const uint16_t*& at) {
    const uint32_t value = x & ((1u << bits) - 1);
    x >>= bits;
    if (x < kLow) x = (x << 16) | *at++;
    return value;
}

// The value behind an escape, or false.
inline bool escaped(uint32_t& x, const uint16_t*& at, int64_t& k) {
    const uint32_t head = take(x, 7, at);
    const int length = head & 63, low = std::max(0, length - 1), piece = std::min(16, low);
    if (length > 32) return false;
    uint64_t e = length ? uint64_t{1} << low : 0;
    if (piece) e |= take(x, piece, at);
    if (low > piece) e |= static_cast<uint64_t>(take(x, low - piece, at)) << piece;
    k = head >> 6 ? -static_cast<int64_t>(e) : static_cast<int64_t>(e);
    return true;
}

// One group of `live` rows. False when a value does not fit T or the words run out.
template <int S, class T, int Live>
bool decode_group(const Decoder& decoder, const uint8_t* row_class, const uint8_t* col_class, int64_t n, int lanes,
                  uint32_t* states, const uint16_t*& words, const uint16_t* end, T* out) {
    const int live = Live ? Live : lanes;
    const Lookup* table[kLanes][2];
    uint32_t x[kLanes];
    uint8_t state[kLanes] = {};
    for (int l = 0; l < live; ++l) {
        x[l] = states[l];
        for (int z = 0; z < 2; ++z) table[l][z] = decoder.lookups(z) + row_class[l];
    }
    const uint16_t* at = words;
    for (int64_t j = 0; j < n; ++j) {
        const int column = col_class[j];
#pragma GCC unroll 8
        for (int l = 0; l < live; ++l) {
            const int quantizer = Trellis<S>::quantizer(state[l]);
            const Lookup& t = table[l][quantizer][column];
            const uint32_t slot = x[l] & (kTotal - 1), u = slot & ((1u << t.shift) - 1);
            const Cell& cell = t.cells[slot >> t.shift];
            const int half = u >= cell.cut;
            x[l] = cell.freq[half] * (x[l] >> kProbBits) + u + static_cast<uint32_t>(cell.bias[half]);
            int64_t k = cell.symbol[half];
            const bool refill = x[l] < kLow;
            const uint32_t refilled = (x[l] << 16) | *at;
            x[l] = refill ? refilled : x[l];
            at += refill;
            bool narrow = true;
            if (t.raw || k == kEscape) [[unlikely]] {
                if (k == kEscape) {
                    if (!escaped(x[l], at, k)) return false;
                    narrow = false;
                } else {
                    k = k * (1 << t.raw) + take(x[l], static_cast<int>(t.raw), at);
                }
            }
            int64_t q = k;
            if constexpr (S != 0) {
                q = 2 * k - (quantizer ? (k > 0) - (k < 0) : 0);
                state[l] = Trellis<S>::next[state[l]][k & 1];
            }
            if (!narrow && (q < std::numeric_limits<T>::min() || q > std::numeric_limits<T>::max())) return false;
            out[l * n + j] = static_cast<T>(q);
        }
        if (at > end) return false;
    }
    for (int l = 0; l < live; ++l) states[l] = x[l];
    words = at;
    return true;
}

template <int S, class T>
bool decode_chunk(const uint8_t* data, size_t size, const Decoder& decoder, const Shape& shape, int64_t first, T* out) {
    const int64_t n = shape.columns, rows = std::min(shape.chunk(), shape.rows - first);
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, rows));
    if (size < static_cast<size_t>(4 * lanes) || size % 2) return false;
    uint32_t states[kLanes];
    for (int l = 0; l < lanes; ++l) {
        states[l] = 0;
        for (int i = 0; i < 4; ++i) states[l] |= static_cast<uint32_t>(data[4 * l + i]) << (8 * i);
        if (states[l] < kLow) return false;
    }
    const size_t count = (size - static_cast<size_t>(4 * lanes)) / 2;
    std::vector<uint16_t> words(count + kPadding);
    for (size_t i = 0; i < count; ++i) {
        const uint8_t* p = data + 4 * lanes + 2 * i;
        words[i] = static_cast<uint16_t>(p[0] | p[1] << 8);
    }
    const uint16_t *at = words.data(), *end = at + count;
    for (int64_t g = 0; g < rows; g += kLanes) {
        const int live = static_cast<int>(std::min<int64_t>(kLanes, rows - g));
        const auto decode = live == kLanes ? decode_group<S, T, kLanes> : decode_group<S, T, 0>;
        if (!decode(decoder, shape.row_class + first + g, shape.col_class, n, live, states, at, end,
                    out + (first + g) * n))
            return false;
    }
    return at == end && std::all_of(states, states + lanes, [](uint32_t x) { return x == kLow; });
}

// ---- bindings ------------------------------------------------------------------------------------------

template <class T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const uint16_t, nb::shape<2, kBuckets, kMaxCells>, nb::c_contig, nb::device::cpu>;

Shape shape_of(size_t m, size_t n, const Vector<uint8_t>& row_class, const Vector<uint8_t>& col_class) {
    if (m == 0 || n == 0) throw std::invalid_argument("an empty lattice cannot be coded");
    if (row_class.shape(0) != m || col_class.shape(0) != n)
        throw std::invalid_argument("row_class and col_class must have one entry a row and a column");
    return {static_cast<int64_t>(m), static_cast<int64_t>(n), row_class.data(), col_class.data()};
}

template <class F>
auto with_trellis(int trellis, F call) {
    if (trellis == 0) return call.template operator()<0>();
    if (trellis == 4) return call.template operator()<4>();
    if (trellis == 8) return call.template operator()<8>();
    throw std::invalid_argument("trellis must be 0, 4 or 8");
}

template <int S, class T>
void count_into(const T* q, const Shape& shape, int threads, Counts& total) {
    const int64_t chunks = shape.chunks();
    std::atomic<int64_t> bad{-1};
    std::vector<std::unique_ptr<Counts>> parts(static_cast<size_t>(std::clamp<int64_t>(threads, 1, chunks)));
    for (auto& p : parts) p = std::make_unique<Counts>();
    const auto many = static_cast<int64_t>(parts.size());
    parallel(many, static_cast<int>(many), [&](int64_t part) {
        for (int64_t i = shape.rows * part / many; i < shape.rows * (part + 1) / many; ++i) {
            const int64_t j = count_row<S>(q + i * shape.columns, shape, i, *parts[part]);
            if (j >= 0) {
                bad = i * shape.columns + j;
                return;
            }
        }
    });
    if (bad >= 0)
        throw std::invalid_argument("the trellis cannot reach the integer at row " +
                                    std::to_string(bad / shape.columns) + ", column " +
                                    std::to_string(bad % shape.columns));
    for (const auto& p : parts) {
        for (int c = 0; c < kContexts; ++c) {
            total.extra[c] += p->extra[c];
            for (int i = 0; i < kMaxCells; ++i) total.symbols[c][i] += p->symbols[c][i];
        }
    }
}

using CountArray = nb::ndarray<uint64_t, nb::shape<2, kBuckets, kMaxCells>, nb::c_contig, nb::device::cpu>;
using ExtraArray = nb::ndarray<uint64_t, nb::shape<2, kBuckets>, nb::c_contig, nb::device::cpu>;

template <class T>
void count(const Matrix<T>& q, const Vector<uint8_t>& row_class, const Vector<uint8_t>& col_class, int trellis,
           const CountArray& counts, const ExtraArray& extra, int threads) {
    const Shape shape = shape_of(q.shape(0), q.shape(1), row_class, col_class);
    nb::gil_scoped_release release;
    auto total = std::make_unique<Counts>();
    with_trellis(trellis, [&]<int S>() { count_into<S>(q.data(), shape, threads, *total); });
    for (int c = 0; c < kContexts; ++c) {
        extra.data()[c] += total->extra[c];
        for (int i = 0; i < kMaxCells; ++i) counts.data()[c * kMaxCells + i] += total->symbols[c][i];
    }
}

template <class T>
nb::bytes encode(const Matrix<T>& q, const Vector<uint8_t>& row_class, const Vector<uint8_t>& col_class, int trellis,
                 const Table& freq, int threads) {
    const Shape shape = shape_of(q.shape(0), q.shape(1), row_class, col_class);
    std::vector<uint8_t> out;
    {
        nb::gil_scoped_release release;
        auto total = std::make_unique<Counts>();
        std::array<std::unique_ptr<EncodeContext>, kContexts> contexts;
        std::vector<std::vector<uint8_t>> parts(static_cast<size_t>(shape.chunks()));
        with_trellis(trellis, [&]<int S>() {
            count_into<S>(q.data(), shape, threads, *total);
            for (int c = 0; c < kContexts; ++c) {
                const auto& used = total->symbols[c];
                if (std::all_of(used.begin(), used.end(), [](uint64_t v) { return v == 0; })) continue;
                const int bits = cell_bits(c % kBuckets);
                check_frequencies(freq.data() + c * kMaxCells, 1 << bits);
                contexts[c] = std::make_unique<EncodeContext>(freq.data() + c * kMaxCells, bits);
            }
            parallel(shape.chunks(), threads, [&](int64_t i) {
                parts[i] = encode_chunk<S>(q.data(), shape, i * shape.chunk(), contexts.data());
            });
        });
        for (const auto& p : parts) {
            if (p.size() > std::numeric_limits<uint32_t>::max()) throw std::invalid_argument("a chunk of over 4 GiB");
            for (int s = 0; s < 32; s += 8) out.push_back(static_cast<uint8_t>(p.size() >> s));
        }
        for (const auto& p : parts) out.insert(out.end(), p.begin(), p.end());
    }
    return nb::bytes(out.data(), out.size());
}

template <class T>
void decode(const Vector<uint8_t>& data, const Vector<uint8_t>& row_class, const Vector<uint8_t>& col_class,
            int trellis, const Table& freq, const nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>& out,
            int threads) {
    const Shape shape = shape_of(out.shape(0), out.shape(1), row_class, col_class);
    nb::gil_scoped_release release;
    const auto chunks = static_cast<size_t>(shape.chunks());
    const size_t size = data.shape(0);
    if (size / 4 < chunks) throw std::invalid_argument("shorter than its chunk table");
    std::vector<size_t> start(chunks + 1, 4 * chunks);
    for (size_t c = 0; c < chunks; ++c) {
        size_t length = 0;
        for (size_t i = 0; i < 4; ++i) length |= static_cast<size_t>(data.data()[4 * c + i]) << (8 * i);
        if (length > size - start[c]) throw std::invalid_argument("chunk lengths exceed the data");
        start[c + 1] = start[c] + length;
    }
    if (start[chunks] != size) throw std::invalid_argument("bytes after the last chunk");
    const auto decoder = std::make_unique<Decoder>(freq.data());
    std::atomic<int64_t> bad{-1};
    with_trellis(trellis, [&]<int S>() {
        parallel(static_cast<int64_t>(chunks), threads, [&](int64_t c) {
            if (bad < 0 && !decode_chunk<S, T>(data.data() + start[c], start[c + 1] - start[c], *decoder, shape,
                                               c * shape.chunk(), out.data()))
                bad = c;
        });
    });
    if (bad >= 0) throw std::invalid_argument("chunk " + std::to_string(bad) + " is damaged");
}

// ---- vectors and tables with the adaptive coder -----------------------------------------------------------

// mode 0: every value against `base`; mode 1: against the value before it, modelled by the last difference's size.
template <class Coder, class Get, class Put>
void code_vector(Coder& coder, size_t n, int mode, int64_t base, Get get, Put put) {
    IntModel first, model[4];
    mode = coder.code(mode, 32768);
    base = code_int(coder, first, base);
    int context = 0;
    for (size_t i = 0; i < n; ++i) {
        const int64_t r = code_int(coder, model[context], get(i) - base), value = base + r;
        put(i, value);
        if (mode) {
            base = value;
            context = std::min(3, static_cast<int>(std::bit_width(static_cast<uint64_t>(r < 0 ? -r : r) / 2)));
        }
    }
}

nb::bytes encode_vector(const Vector<int32_t>& v) {
    const int32_t* p = v.data();
    const size_t n = v.shape(0);
    if (n == 0) throw std::invalid_argument("an empty vector cannot be coded");
    std::vector<int32_t> sorted(p, p + n);
    std::nth_element(sorted.begin(), sorted.begin() + static_cast<int64_t>(n / 2), sorted.end());
    std::vector<uint8_t> best;
    for (int mode = 0; mode < 2; ++mode) {
        BitEncoder coder;
        code_vector(coder, n, mode, mode ? p[0] : sorted[n / 2], [&](size_t i) { return int64_t{p[i]}; },
                    [](size_t, int64_t) {});
        auto out = coder.finish();
        if (mode == 0 || out.size() < best.size()) best = std::move(out);
    }
    return nb::bytes(best.data(), best.size());
}

template <class T>
using Output = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void decode_vector(const Vector<uint8_t>& data, const Output<int32_t>& out) {
    BitDecoder coder(data.data(), data.shape(0));
    code_vector(coder, out.shape(0), 0, 0, [](size_t) { return int64_t{0}; }, [&](size_t i, int64_t value) {
        if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max())
            throw std::invalid_argument("a value beyond 32 bits");
        out.data()[i] = static_cast<int32_t>(value);
    });
    if (!coder.exhausted()) throw std::invalid_argument("bytes after the last value");
}

// Visits the levels of every used context in coding order (0, 1, -1, 2, -2, ..., K, -K, escape) with what a decoder
// expects there. visit(kind, context, index, expected) settles the level and returns how far off the expectation was.
enum Kind { kCentre, kOne, kPositive, kNegative = kPositive + 3, kEnd = kNegative + 3, kKinds };

template <class Used, class Visit>
void walk_levels(const uint8_t* levels, Used used, Visit visit) {
    for (int quantizer = 0; quantizer < 2; ++quantizer) {
        int centre = 0, drop = 16, end = 112;  // of the used bucket before: level(0), level(1) - level(0), escape
        for (int b = 0; b < kBuckets; ++b) {
            const int c = quantizer * kBuckets + b, cells = 1 << cell_bits(b), middle = cells / 2 - 1;
            if (!used(c)) continue;
            const auto at = [&](int h) { return int{levels[c * kMaxCells + middle + h]}; };
            const auto clip = [](int level) { return std::clamp(level, 0, kAbsent); };
            int off = visit(kCentre, c, middle, centre);
            for (int h = 1; h <= middle; ++h) {
                const int line = h == 1                   ? at(0) + drop
                                 : at(h - 1) == kAbsent   ? kAbsent
                                                          : 2 * at(h - 1) - at(h - 2);
                off = visit(h == 1 ? kOne : kPositive + std::min(off, 2), c, middle + h, clip(line));
                // With raw bits the coded part is a floor: -h mirrors h - 1.
                off = visit(kNegative + std::min(off, 2), c, middle - h, at(raw_bits(b) ? h - 1 : h));
            }
            visit(kEnd, c, cells - 1, end);
            centre = at(0);
            drop = at(1) - at(0);
            end = levels[c * kMaxCells + cells - 1];
        }
    }
}

template <class Coder>
void code_levels(Coder& coder, uint8_t* used, uint8_t* levels) {
    Bit flags[2];
    IntModel models[kKinds];
    int last = 0;
    const auto flag = [&](int c) {
        used[c] = static_cast<uint8_t>(coder.code(used[c], flags[last].coded()));
        flags[last].update(used[c]);
        return last = used[c];
    };
    walk_levels(levels, flag, [&](int kind, int c, int i, int expected) {
        uint8_t& level = levels[c * kMaxCells + i];
        const int64_t r = code_int(coder, models[kind], int64_t{level} - expected), value = expected + r;
        if (value < 0 || value > kAbsent) throw std::invalid_argument("a level outside 0..127");
        level = static_cast<uint8_t>(value);
        return static_cast<int>(r < 0 ? -r : r);
    });
}

// Levels for the counts of one context set: smooth where the counts are few, exact where they pay for it.
void fit_levels(const uint64_t* counts, uint8_t* used, uint8_t* levels) {
    std::array<double, kAbsent + 1> share;
    for (int l = 0; l <= kAbsent; ++l) share[l] = std::exp2(-l / 8.0);
    std::vector<double> p(kContexts * kMaxCells);
    std::array<double, kContexts> total{}, top{};
    for (int c = 0; c < kContexts; ++c) {
        const int cells = 1 << cell_bits(c % kBuckets), middle = cells / 2 - 1;
        const uint64_t* count = counts + c * kMaxCells;
        double sum = 0, outer = 0, steps = 0;
        for (int i = 0; i < cells; ++i) sum += static_cast<double>(count[i]);
        used[c] = sum > 0;
        if (!used[c]) continue;
        for (int h = 1; h <= middle; ++h) {
            const auto both = static_cast<double>(count[middle + h] + count[middle - h]);
            outer += both;
            steps += both * (h - 1);
        }
        // Two pseudo-counts of a two-sided geometric law with the sample's own zeros and mean.
        const double theta = (steps + 0.1) / (steps + outer + 0.5), away = (outer + 0.25) / (sum + 0.75), pseudo = 2;
        double tail = away / 2 * (1 - theta);
        const auto smooth = [&](int i, double law) {
            double& out = p[c * kMaxCells + i];
            out = (static_cast<double>(count[i]) + pseudo * law) / (sum + pseudo);
            top[c] = std::max(top[c], out);
        };
        smooth(middle, 1 - away);
        for (int h = 1; h <= middle; ++h, tail *= theta) {
            smooth(middle + h, tail);
            smooth(middle - h, tail);
        }
        smooth(cells - 1, 0.1 / (sum + 1));
        total[c] = sum;
    }
    walk_levels(levels, [&](int c) { return used[c]; }, [&](int kind, int c, int i, int expected) {
        const double mine = p[c * kMaxCells + i], floor = 1.0 / kTotal;
        const double target = 8 * std::log2(top[c] / mine);
        const int near = static_cast<int>(std::lround(std::clamp(target, 0.0, kAbsent - 1.0)));
        int best = expected;
        double least = std::numeric_limits<double>::infinity();
        const auto consider = [&](int l) {
            const int r = std::abs(l - expected);
            const double table = r ? 2.5 + 2 * std::log2(r) : 0.3;
            const double slots = std::max(floor, top[c] * share[l]);
            const double data = l == kAbsent && kind != kEnd
                                    ? total[c] * mine * (2 * kProbBits)
                                    : total[c] * (mine * -std::log2(slots) + slots / std::log(2.0));
            if (table + data < least) {
                least = table + data;
                best = l;
            }
        };
        for (int l = std::min(near, expected); l <= std::max(near, expected); ++l) consider(l);
        consider(kAbsent);
        levels[c * kMaxCells + i] = static_cast<uint8_t>(best);
        return std::abs(best - expected);
    });
}

using LevelArray = nb::ndarray<uint8_t, nb::shape<2, kBuckets, kMaxCells>, nb::c_contig, nb::device::cpu>;
using UsedArray = nb::ndarray<uint8_t, nb::shape<2, kBuckets>, nb::c_contig, nb::device::cpu>;
using FreqArray = nb::ndarray<uint16_t, nb::shape<2, kBuckets, kMaxCells>, nb::c_contig, nb::device::cpu>;

nb::bytes encode_levels(const UsedArray& used, const LevelArray& levels) {
    BitEncoder coder;
    code_levels(coder, used.data(), levels.data());
    const auto out = coder.finish();
    return nb::bytes(out.data(), out.size());
}

void decode_levels(const Vector<uint8_t>& data, const UsedArray& used, const LevelArray& levels) {
    BitDecoder coder(data.data(), data.shape(0));
    code_levels(coder, used.data(), levels.data());
    if (!coder.exhausted()) throw std::invalid_argument("bytes after the last level");
}

// A context without a table has the escape alone.
void all_frequencies(const UsedArray& used, const LevelArray& levels, const FreqArray& out) {
    for (int c = 0; c < kContexts; ++c) {
        const int cells = 1 << cell_bits(c % kBuckets);
        Freqs freq{};
        if (used.data()[c]) freq = frequencies(levels.data() + c * kMaxCells, cells);
        else freq[cells - 1] = kTotal;
        std::copy(freq.begin(), freq.end(), out.data() + c * kMaxCells);
    }
}

}  // namespace

}  // namespace sprat::rans

void register_rans(nb::module_& m) {
    using namespace sprat::rans;
    using namespace nb::literals;
    const auto typed = [&]<class T>(T) {
        m.def("count", &count<T>, "q"_a, "row_class"_a, "col_class"_a, "trellis"_a, "counts"_a, "extra"_a,
              "threads"_a = 1);
        m.def("encode", &encode<T>, "q"_a, "row_class"_a, "col_class"_a, "trellis"_a, "freq"_a, "threads"_a = 1);
        m.def("decode", &decode<T>, "data"_a, "row_class"_a, "col_class"_a, "trellis"_a, "freq"_a, "out"_a,
              "threads"_a = 1);
    };
    typed(int16_t{});
    typed(int32_t{});
    m.def("encode_vector", &encode_vector, "values"_a);
    m.def("decode_vector", &decode_vector, "data"_a, "out"_a);
    m.def("fit_levels", [](const CountArray& counts, const UsedArray& used, const LevelArray& levels) {
        fit_levels(counts.data(), used.data(), levels.data());
    }, "counts"_a, "used"_a, "levels"_a);
    m.def("encode_levels", &encode_levels, "used"_a, "levels"_a);
    m.def("decode_levels", &decode_levels, "data"_a, "used"_a, "levels"_a);
    m.def("frequencies", &all_frequencies, "used"_a, "levels"_a, "out"_a);
}
