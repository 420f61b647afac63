// A lattice's integers into the run layout.
#pragma once

#include "layout.hpp"

namespace sprat::engine {

// q: (rows, columns); row_scale: (rows); column_scale: (columns); out_index: (rows) where each row's result goes.
// `parts`: into how many like chunks the rows are dealt at least, for as many threads.
template <class T>
std::shared_ptr<Packed> pack(const T* q, int32_t rows, int32_t columns, const float* row_scale,
                             const float* column_scale, const int32_t* out_index, int parts);

// One row of the matrix as it is used, W[row] in float32: out (columns). `stored`: the row's place in the layout.
void expand_row(const Packed& packed, int32_t stored, float* out);

}  // namespace sprat::engine
