#include "kernels.hpp"
namespace sprat::engine {
const Kernel* avx2_kernel() { return nullptr; }
}  // namespace sprat::engine
