// A lattice's integers into the run layout.
#pragma once

#include "layout.hpp"

namespace sprat::engine {

// q: (rows, columns); row_scale: (rows); column_scale: (columns); `output`: where the first row's result goes.
// `parts`: into how many chunks the rows are cut at least, for as many threads.
template <class T>
std::shared_ptr<Packed> pack(const T* q, int32_t rows, int32_t columns, const float* row_scale,
                             const float* column_scale, int32_t output, int parts,
                             std::shared_ptr<Arena> arena);

// One row of the matrix as it is used, W[row] in float32: out (columns).
void expand_row(const Packed& packed, int32_t row, float* out);

}  // namespace sprat::engine
