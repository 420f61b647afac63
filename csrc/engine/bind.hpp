// What the files that bind the engine to Python share. run/native.py checks what it hands over; there every size is checked
// again, so that no call from Python can read or write outside its arrays.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

namespace sprat::engine {

namespace nb = nanobind;

template <class T>
using Array = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

inline void require(bool good, const std::string& message) {
    if (!good) throw std::invalid_argument(message);
}

void register_matrices(nb::module_& m);
void register_caches(nb::module_& m);
void register_model(nb::module_& m);

}  // namespace sprat::engine
