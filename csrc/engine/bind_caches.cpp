// A session's cache of keys and values; `put` and `attend` are for tests.
#include "attention.hpp"
#include "bind.hpp"
#include "cache.hpp"

namespace sprat::engine {

namespace {

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

}  // namespace

void register_caches(nb::module_& m) {
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
}

}  // namespace sprat::engine
