// How fast memory is read, for comparison with what decoding streams.
#pragma once

#include <cstddef>

namespace sprat::engine {

// Bytes a second of reading `bytes` (rounded to whole pages of 2 MiB a thread) once with `threads` threads from large
// pages, the median of `rounds` rounds.
double read_bandwidth(size_t bytes, int threads, int rounds);

}  // namespace sprat::engine
