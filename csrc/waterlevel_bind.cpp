// Python's way to round_block: every shape is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <initializer_list>
#include <optional>
#include <stdexcept>

#include "waterlevel.hpp"

namespace nb = nanobind;

namespace {

using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Inverses = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Sets = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class Array>
bool fits(const Array& a, std::initializer_list<int64_t> shape) {
    size_t axis = 0;
    for (int64_t size : shape)
        if (static_cast<int64_t>(a.shape(axis++)) != size) return false;
    return true;
}

// The pattern of zeros, once its parts belong together and to `block`.
void set_pattern(sprat::Block& block, int group, int removed, const std::optional<Sets>& sets,
                 const std::optional<Inverses>& inverse) {
    if (!group) return;
    if (group < 2 || removed < 1 || removed >= group || block.cols % group || sets.has_value() != inverse.has_value())
        throw std::invalid_argument("round_block: a pattern that the block cannot have");
    block.group = group;
    block.removed = removed;
    if (!sets) return;
    const auto count = static_cast<int64_t>(sets->shape(0));
    if (count < 1 || !fits(*sets, {count, removed}) || !fits(*inverse, {block.cols / group, count, removed, removed}))
        throw std::invalid_argument("round_block: the arrays' shapes do not belong together");
    for (int64_t i = 0; i < count * removed; ++i)
        if (sets->data()[i] < (i % removed ? sets->data()[i - 1] + 1 : 0) || sets->data()[i] >= group)
            throw std::invalid_argument("round_block: a set that is not ascending columns of a group");
    block.sets = static_cast<int>(count);
    block.set = sets->data();
    block.inverse = inverse->data();
}

}  // namespace

void register_waterlevel(nb::module_& m) {
    m.def(
        "round_block",
        [](Matrix w, Matrix feedback, Floats inverse_u, Floats step, Floats row_lambda, Bytes row_class, Bytes col_class,
           Tables bits, int offset, int states, nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> state,
           nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> q,
           nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> error, int threads, std::optional<Mask> keep,
           int group, int removed, std::optional<Sets> sets, std::optional<Inverses> inverse, bool compact, int limit,
           bool zero) {
            const int64_t rows = w.shape(0), cols = w.shape(1);
            if (cols < 1 || cols > sprat::kMaxCols || !fits(feedback, {cols, cols}) || !fits(inverse_u, {cols}) ||
                !fits(step, {cols}) || !fits(row_lambda, {rows}) || !fits(row_class, {rows}) ||
                !fits(col_class, {cols}) || !fits(state, {rows}) || !fits(q, {rows, cols}) ||
                !fits(error, {rows, cols}) || bits.shape(0) != 2 || bits.shape(1) < 1 || bits.shape(2) % 2 != 1 ||
                (keep && !fits(*keep, {rows, cols})))
                throw std::invalid_argument("round_block: the arrays' shapes do not belong together");
            const auto& t = sprat::trellis(states);
            for (int64_t i = 0; i < rows; ++i)
                if (state.data()[i] >= states) throw std::invalid_argument("round_block: a state outside the trellis");
            if (limit < 0 || (limit && states > 1) || (!limit && !zero))
                throw std::invalid_argument("round_block: a limit of the integers needs one state; no zeros, a limit");
            sprat::Block block{w.data(), cols, rows, cols, feedback.data(), inverse_u.data(), step.data(),
                               row_lambda.data(), row_class.data(), col_class.data(), bits.data(),
                               static_cast<int>(bits.shape(1)), offset, static_cast<int>(bits.shape(2) / 2),
                               state.data(), q.data(), cols, error.data()};
            block.keep = keep ? keep->data() : nullptr;
            block.compact = compact;
            block.limit = limit;
            block.zero = zero;
            set_pattern(block, group, removed, sets, inverse);
            nb::gil_scoped_release release;
            sprat::round_block(block, t, threads);
        },
        nb::arg("w"), nb::arg("feedback"), nb::arg("inverse_u"), nb::arg("step"), nb::arg("row_lambda"),
        nb::arg("row_class"), nb::arg("col_class"), nb::arg("bits"), nb::arg("offset"), nb::arg("states"), nb::arg("state"),
        nb::arg("q"), nb::arg("error"), nb::arg("threads") = 1, nb::arg("keep") = nb::none(), nb::arg("group") = 0,
        nb::arg("removed") = 0, nb::arg("sets") = nb::none(), nb::arg("inverse") = nb::none(), nb::arg("compact") = false,
        nb::arg("limit") = 0, nb::arg("zero") = true);
}
