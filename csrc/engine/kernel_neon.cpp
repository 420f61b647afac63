#include "kernels.hpp"
namespace sprat::engine {
const Kernel* neon_kernel() { return nullptr; }
}  // namespace sprat::engine
