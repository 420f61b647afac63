// sprat._core's engine: packed matrices, sessions' caches, a model. run/native.py checks what it hands over; here every
// size is checked again, so that no call from Python can read or write outside its arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <limits>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "bandwidth.hpp"
#include "model.hpp"
#include "pack.hpp"
#include "stored.hpp"

namespace nb = nanobind;

namespace sprat::engine {

namespace {

template <class T>
using Array = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool good, const std::string& message) {
    if (!good) throw std::invalid_argument(message);
}

template <class T>
std::shared_ptr<Packed> pack_matrix(const Matrix<const T>& q, const Array<const float>& row,
                                    const Array<const float>& column, int64_t output, int parts,
                                    std::shared_ptr<Arena> arena) {
    const size_t limit = size_t{1} << 30;
    require(q.shape(0) > 0 && q.shape(1) > 0 && q.shape(0) < limit && q.shape(1) < limit, "q has an impossible shape");
    require(row.shape(0) == q.shape(0) && column.shape(0) == q.shape(1),
            "a scale is not as long as q's rows or columns");
    require(output >= 0 && output < static_cast<int64_t>(limit) && arena, "an output or an arena that cannot be");
    require(parts >= 1 && parts <= 1024, "parts must be 1..1024");
    nb::gil_scoped_release release;
    return pack(q.data(), static_cast<int32_t>(q.shape(0)), static_cast<int32_t>(q.shape(1)), row.data(), column.data(),
                static_cast<int32_t>(output), parts, std::move(arena));
}

// The entries to `file`, anything with `write`.
void write_entries(const Packed& packed, const nb::object& file) {
    for (const Chunk& chunk : packed.chunks) {
        auto* data = reinterpret_cast<char*>(const_cast<uint8_t*>(chunk.data));
        file.attr("write")(nb::steal(PyMemoryView_FromMemory(data, static_cast<Py_ssize_t>(chunk.bytes), PyBUF_READ)));
    }
}

// The matrix of a head; its entries come from `file` (anything with `readinto`, `most` bytes of it), straight to where they
// stay.
std::shared_ptr<Packed> restore(const nb::bytes& head, const nb::object& file, size_t most,
                                std::shared_ptr<Arena> arena) {
    require(arena != nullptr, "restore: no arena");
    Restored found;
    {
        const auto* data = reinterpret_cast<const uint8_t*>(head.data());
        const size_t size = head.size();
        nb::gil_scoped_release release;
        found = from_head(data, size);
        require(found.bytes <= most, "a stored matrix that is cut off");
    }
    uint8_t* const data = arena->take(found.bytes);
    const auto room = nb::steal(
        PyMemoryView_FromMemory(reinterpret_cast<char*>(data), static_cast<Py_ssize_t>(found.bytes), PyBUF_WRITE));
    const auto read = nb::cast<size_t>(file.attr("readinto")(room));
    nb::gil_scoped_release release;
    require(read == found.bytes, "a stored matrix that is cut off");
    uint64_t sum = 0;
    uint8_t* at = data;
    for (Chunk& chunk : found.packed->chunks) {
        sum = checksum(at, chunk.bytes, sum);
        chunk.data = at;
        at += chunk.bytes;
    }
    require(sum == found.checksum, "a stored matrix that is damaged");
    found.packed->arena = std::move(arena);
    return std::move(found.packed);
}

std::vector<float> floats(const Array<const float>& a) { return {a.data(), a.data() + a.shape(0)}; }

Linear* linear_of(Model& model, int layer, const std::string& name) {
    if (name == "head") return &model.head;
    require(layer >= 0 && layer < model.shape.layers, "no such layer");
    Layer& l = model.layers[static_cast<size_t>(layer)];
    if (name == "qkv") return &l.qkv;
    if (name == "o") return &l.o;
    if (name == "gate_up") return &l.gate_up;
    require(name == "down", "no linear map '" + name + "'");
    return &l.down;
}

void set_linear(Model& model, int layer, const std::string& name, std::vector<std::shared_ptr<Packed>> parts) {
    Linear& linear = *linear_of(model, layer, name);
    const Shape& s = model.shape;
    const int64_t query = int64_t{s.heads} * s.dimension, both = query + 2 * int64_t{s.kv_heads} * s.dimension;
    const int64_t in = name == "o" ? query : name == "down" ? s.inner : s.hidden;
    const int64_t out = name == "qkv"       ? both
                        : name == "gate_up" ? 2 * int64_t{s.inner}
                        : name == "head"    ? s.vocabulary
                                            : s.hidden;
    std::vector<bool> filled(static_cast<size_t>(out));
    int64_t rows = 0;
    for (const auto& part : parts) {
        require(part && part->columns == in, name + ": a matrix has the wrong number of columns");
        for (int64_t r = part->output; r < int64_t{part->output} + part->rows; ++r, ++rows) {
            require(r < out && !filled[static_cast<size_t>(r)], name + ": rows that do not fit its outputs");
            filled[static_cast<size_t>(r)] = true;
        }
    }
    require(rows == out, name + ": outputs that no row gives");
    linear.parts = std::move(parts);
    linear.outputs = static_cast<int>(out);
}

void set_vector(Model& model, int layer, const std::string& name, const Array<const float>& values) {
    const Shape& s = model.shape;
    const auto check = [&](int64_t expected) {
        require(static_cast<int64_t>(values.shape(0)) == expected, name + ": a vector of the wrong length");
    };
    const auto hidden = [&](std::vector<float>& to) {
        check(s.hidden);
        to = floats(values);
    };
    if (name == "final_norm") return hidden(model.final_norm);
    if (name.ends_with("_bias")) {
        Linear& linear = *linear_of(model, layer, name.substr(0, name.size() - 5));
        require(linear.outputs > 0, name + ": its map is not there yet");
        check(linear.outputs);
        linear.bias = floats(values);
        return;
    }
    require(layer >= 0 && layer < s.layers, "no such layer");
    Layer& l = model.layers[static_cast<size_t>(layer)];
    if (name == "input_norm") return hidden(l.input_norm);
    if (name == "post_attention_norm") return hidden(l.post_attention_norm);
    if (name == "mlp_norm") return hidden(l.mlp_norm);
    if (name == "post_mlp_norm") return hidden(l.post_mlp_norm);
    require(name == "q_norm" || name == "k_norm", "no vector '" + name + "'");
    check(s.dimension);
    (name == "q_norm" ? l.q_norm : l.k_norm) = floats(values);
}

void set_layer(Model& model, int layer, int window, int rope) {
    require(layer >= 0 && layer < model.shape.layers && window >= 0 && rope >= 0 &&
                static_cast<size_t>(rope) < model.ropes.size(),
            "a layer's window or rope is out of range");
    model.layers[static_cast<size_t>(layer)].window = window;
    model.layers[static_cast<size_t>(layer)].rope = rope;
}

// Where each row of a table is stored.
std::vector<int32_t> stored_rows(const Packed& packed) {
    std::vector<int32_t> where(static_cast<size_t>(packed.rows), -1);
    for (const Chunk& chunk : packed.chunks)
        for (int32_t stored = chunk.first * kRows; stored < chunk.first * kRows + chunk.rows; ++stored)
            where[static_cast<size_t>(chunk.first * kRows + packed.place[static_cast<size_t>(stored)])] = stored;
    return where;
}

void set_embedding(Model& model, std::shared_ptr<Packed> packed) {
    require(packed && packed->columns == model.shape.hidden && packed->rows == model.shape.vocabulary &&
                packed->output == 0,
            "embedding: the wrong shape");
    model.embedding_row = stored_rows(*packed);
    model.embedding = std::move(packed);
}

void set_ngrams(Model& model, std::shared_ptr<Packed> packed, int order) {
    require(packed && packed->rows > 0 && packed->columns <= model.shape.hidden && packed->output == 0 &&
                (order == 2 || order == 3),
            "ngrams: the wrong shape");
    model.ngrams = {packed, stored_rows(*packed), order};
}

// Throws where something is missing; a model must pass before its first step.
void check_complete(const Model& m) {
    bool good = m.embedding && m.head.outputs && !m.final_norm.empty() && !m.ropes.empty();
    for (const Layer& l : m.layers)
        good = good && l.qkv.outputs && l.o.outputs && l.gate_up.outputs && l.down.outputs && !l.input_norm.empty() &&
               !l.mlp_norm.empty();
    require(good, "the model is not complete");
}

void step(Model& model, const std::vector<Cache*>& caches, const std::vector<Array<const int32_t>>& ids, bool all,
          const Matrix<float>& out) {
    check_complete(model);
    require(caches.size() == ids.size(), "as many id lists as sessions");
    std::vector<Part> parts;
    size_t rows = 0;
    for (size_t i = 0; i < caches.size(); ++i) {
        require(ids[i].shape(0) < (size_t{1} << 30), "too many tokens");
        require(caches[i]->layers() == model.shape.layers && caches[i]->heads() == model.shape.kv_heads &&
                    caches[i]->dimension() == model.shape.dimension,
                "a session of another model");
        parts.push_back({caches[i], ids[i].data(), static_cast<int>(ids[i].shape(0))});
        rows += all ? ids[i].shape(0) : 1;
    }
    require(out.shape(0) == rows && out.shape(1) == static_cast<size_t>(model.shape.vocabulary),
            "out has the wrong shape");
    nb::gil_scoped_release release;
    const std::lock_guard lock(model.mutex());
    model.step(parts, all, out.data());
}

int whole(const nb::dict& d, const char* key, int least, int most) {
    require(d.contains(key), std::string(key) + " is missing");
    const int64_t value = nb::cast<int64_t>(d[key]);
    require(value >= least && value <= most, std::string(key) + " is out of range");
    return static_cast<int>(value);
}

Shape shape_of(const nb::dict& d) {
    Shape s;
    s.layers = whole(d, "layers", 1, 4096);
    s.hidden = whole(d, "hidden", 1, 1 << 20);
    s.heads = whole(d, "heads", 1, 1 << 16);
    s.kv_heads = whole(d, "kv_heads", 1, s.heads);
    require(s.heads % s.kv_heads == 0, "heads is no multiple of kv_heads");
    s.dimension = whole(d, "dimension", 2, kMaxDimension);
    require(s.dimension % 2 == 0, "dimension is odd");
    s.inner = whole(d, "inner", 1, 1 << 22);
    s.vocabulary = whole(d, "vocabulary", 1, 1 << 26);
    s.eps = nb::cast<float>(d["eps"]);
    s.embed_scale = nb::cast<float>(d["embed_scale"]);
    s.softcap = nb::cast<float>(d["softcap"]);
    s.attention_scale = nb::cast<float>(d["attention_scale"]);
    s.gelu = nb::cast<bool>(d["gelu"]);
    return s;
}

// Of one layer and head, for tests: position `at` of a session's cache, and queries (n, dimension) over it of which
// query i sees the positions [first[i], last[i]).
void put(Cache& cache, int layer, int head, int at, const Array<const float>& key, const Array<const float>& value) {
    const auto dimension = static_cast<size_t>(cache.dimension());
    require(layer >= 0 && layer < cache.layers() && head >= 0 && head < cache.heads() && at >= 0 &&
                at < cache.capacity() && key.shape(0) == dimension && value.shape(0) == dimension,
            "put: out of range");
    cache.put(layer, head, at, key.data(), value.data());
    cache.length = std::max(cache.length, at + 1);
}

void attend_to(Cache& cache, int layer, int head, float scale, const Matrix<const float>& q,
               const Array<const int32_t>& first, const Array<const int32_t>& last, const std::string& kernel,
               const Matrix<float>& out) {
    const auto dimension = static_cast<size_t>(cache.dimension());
    const size_t n = q.shape(0);
    require(layer >= 0 && layer < cache.layers() && head >= 0 && head < cache.heads() && n >= 1 && n <= kQueries &&
                q.shape(1) == dimension && out.shape(0) == n && out.shape(1) == dimension && first.shape(0) == n &&
                last.shape(0) == n,
            "attend: shapes that do not fit");
    Queries queries;
    queries.count = static_cast<int>(n);
    for (size_t i = 0; i < n; ++i) {
        queries.q[i] = q.data() + i * dimension;
        queries.out[i] = out.data() + i * dimension;
        queries.first[i] = first.data()[i];
        queries.last[i] = last.data()[i];
        require(queries.first[i] >= 0 && queries.first[i] < queries.last[i] && queries.last[i] <= cache.length,
                "attend: positions that are not there");
    }
    Scratch scratch;
    attend(cache, layer, head, scale, queries, choose_kernel(kernel), scratch);
}

// One matrix alone, for tests and measurements.
struct Product {
    Linear linear;
    Pool pool;
    Compute compute;
    Product(std::shared_ptr<Packed> packed, int threads, const Kernel& kernel, bool exact) : pool(threads) {
        linear.outputs = packed->output + packed->rows;
        linear.parts = {std::move(packed)};
        compute.kernel = &kernel;
        compute.pool = &pool;
        compute.exact = exact;
        compute.unpacked.resize(static_cast<size_t>(threads));
        compute.results.resize(static_cast<size_t>(threads));
    }
};

void multiply(Product& product, const Matrix<const float>& x, const Matrix<float>& y) {
    require(x.shape(1) == static_cast<size_t>(product.linear.parts[0]->columns) &&
                y.shape(1) == static_cast<size_t>(product.linear.outputs) && x.shape(0) == y.shape(0) &&
                x.shape(0) > 0 && x.shape(0) < (size_t{1} << 20),
            "product: shapes that do not fit");
    nb::gil_scoped_release release;
    product.linear.apply(product.compute, x.data(), x.shape(1), static_cast<int>(x.shape(0)), y.data(), y.shape(1));
}

// Bytes of the linear maps, and of the head, each as streamed for one token.
std::pair<size_t, size_t> layout_bytes(const Model& m) {
    size_t maps = 0;
    for (const Layer& l : m.layers) maps += l.qkv.bytes() + l.o.bytes() + l.gate_up.bytes() + l.down.bytes();
    return {maps, m.head.bytes()};
}

}  // namespace

}  // namespace sprat::engine

void register_engine(nb::module_& m) {
    using namespace sprat::engine;
    nb::class_<Arena>(m, "Arena").def(nb::init<>());
    nb::class_<Packed>(m, "Packed")
        .def_ro("rows", &Packed::rows)
        .def_ro("columns", &Packed::columns)
        .def_prop_ro("nbytes", &Packed::bytes)
        .def_prop_ro("entry_bytes", &Packed::entry_bytes)
        .def_prop_ro("chunks", [](const Packed& p) { return p.chunks.size(); });
    nb::class_<Cache>(m, "Cache")
        .def("__init__",
             [](Cache* cache, int layers, int heads, int dimension, int capacity, const std::string& precision) {
                 require(layers >= 1 && layers <= 4096 && heads >= 1 && heads <= 1 << 16 && dimension >= 1 &&
                             dimension <= kMaxDimension && capacity >= 1 && capacity <= 1 << 30,
                         "a cache that cannot be");
                 new (cache) Cache(layers, heads, dimension, capacity, precision_of(precision));
             })
        .def_prop_ro("length", [](const Cache& c) { return c.length; })
        .def_prop_ro("capacity", &Cache::capacity)
        .def_prop_ro("nbytes", &Cache::bytes)
        .def("rewind", [](Cache& c, int length) {
            require(length >= 0 && length <= c.length, "rewind reaches outside the text");
            c.length = length;
        })
        .def("put", &put)
        .def("attend", &attend_to);
    nb::class_<Model>(m, "Model")
        .def("__init__",
             [](Model* model, const nb::dict& shape, int threads, const std::string& kernel, bool exact) {
                 require(threads >= 1 && threads <= 1024, "threads must be 1..1024");
                 new (model) Model(shape_of(shape), threads, choose_kernel(kernel), exact);
             })
        .def("add_rope",
             [](Model& model, const Array<const float>& frequency, float factor) {
                 require(frequency.shape(0) == static_cast<size_t>(model.shape.dimension) / 2, "rope: wrong length");
                 model.ropes.push_back({floats(frequency), factor});
             })
        .def("set_layer", &set_layer)
        .def("set_linear", &set_linear)
        .def("set_vector", &set_vector)
        .def("set_embedding", &set_embedding)
        .def("set_ngrams", &set_ngrams)
        .def("step", &step)
        .def_prop_ro("threads", &Model::threads)
        .def_prop_ro("kernel", &Model::kernel)
        .def_prop_ro("bytes", [](const Model& model) {
            const auto [maps, head] = layout_bytes(model);
            const auto bytes = [](const auto& table) { return table ? table->bytes() : 0; };
            return nb::make_tuple(maps, head, bytes(model.embedding) + bytes(model.ngrams.table));
        });
    nb::class_<Product>(m, "Product")
        .def("__init__",
             [](Product* product, std::shared_ptr<Packed> packed, int threads, const std::string& kernel, bool exact) {
                 require(packed && threads >= 1 && threads <= 1024, "a matrix and 1..1024 threads");
                 new (product) Product(std::move(packed), threads, choose_kernel(kernel), exact);
             })
        .def("multiply", &multiply);
    m.def("pack", &pack_matrix<int16_t>);
    m.def("pack", &pack_matrix<int32_t>);
    m.def("head", [](const Packed& packed) {
        const std::vector<uint8_t> head = head_of(packed);
        return nb::bytes(head.data(), head.size());
    });
    m.def("write_entries", &write_entries);
    m.def("restore", &restore);
    m.def("expand_row", [](const Packed& packed, int stored, const Array<float>& out) {
        require(stored >= 0 && stored < packed.blocks * kRows && out.shape(0) == static_cast<size_t>(packed.columns),
                "expand_row: out of range");
        expand_row(packed, stored, out.data());
    });
    // What loading freed goes back to the system, where the allocator would keep it.
    m.def("trim_memory", [] {
#if defined(__GLIBC__)
        malloc_trim(0);
#endif
    });
    m.def("read_bandwidth", [](int64_t bytes, int threads, int rounds) {
        require(bytes > 0 && bytes <= (int64_t{1} << 40) && threads >= 1 && threads <= 1024 && rounds >= 1 &&
                    rounds <= 10000,
                "read_bandwidth: out of range");
        nb::gil_scoped_release release;
        return read_bandwidth(static_cast<size_t>(bytes), threads, rounds);
    });
    m.def("kernels", [] {
        std::vector<std::string> names;
        for (const Kernel* kernel : {avx512_kernel(), avx2_kernel(), neon_kernel(), &kPortable})
            if (kernel) names.emplace_back(kernel->name);
        return names;
    });
}
