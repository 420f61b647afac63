// Entropy coder of integer lattices: static rANS tables per (quantizer, bucket), eight interleaved states.
//
// Source: J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); F. Giesen, "Interleaved entropy coders"
// (arXiv 1402.3392); M. Vose's alias method, so that a table of N symbols costs N cells and stays in cache.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <atomic>
#include <memory>

#include "bitcoder.hpp"
#include "levels.hpp"
#include "rans_decode.hpp"
#include "rans_encode.hpp"

namespace nb = nanobind;

namespace sprat::rans {

namespace {

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
        const int64_t all = shape.chunks();
        parallel((all + kTogether - 1) / kTogether, threads, [&](int64_t pair) {
            if (bad >= 0) return;
            const int64_t first = pair * kTogether;
            const int count = static_cast<int>(std::min<int64_t>(kTogether, all - first));
            Stream streams[kTogether];
            for (int i = 0; i < count; ++i) {
                const int64_t c = first + i;
                if (!streams[i].begin(data.data() + start[c], start[c + 1] - start[c], shape, c * shape.chunk())) {
                    bad = c;
                    return;
                }
            }
            if (!decode_chunks<S, T>(*decoder, shape, streams, count, out.data())) bad = first;
        });
    });
    if (bad >= 0) throw std::invalid_argument("chunk " + std::to_string(bad) + " or the one after it is damaged");
}

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
