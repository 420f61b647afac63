// Packed matrices: made, stored, read back, and one of them multiplied alone.
#include "bind.hpp"
#include "linear.hpp"
#include "pack.hpp"
#include "pool.hpp"
#include "stored.hpp"

namespace sprat::engine {

namespace {

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

}  // namespace

void register_matrices(nb::module_& m) {
    nb::class_<Arena>(m, "Arena").def(nb::init<>());
    nb::class_<Packed>(m, "Packed")
        .def_ro("rows", &Packed::rows)
        .def_ro("columns", &Packed::columns)
        .def_prop_ro("nbytes", &Packed::bytes)
        .def_prop_ro("entry_bytes", &Packed::entry_bytes)
        .def_prop_ro("chunks", [](const Packed& p) { return p.chunks.size(); });
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
    m.def("expand_row", [](const Packed& packed, int row, const Array<float>& out) {
        require(row >= 0 && row < packed.rows && out.shape(0) == static_cast<size_t>(packed.columns),
                "expand_row: out of range");
        expand_row(packed, row, out.data());
    });
}

}  // namespace sprat::engine
