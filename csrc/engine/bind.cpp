// sprat._core's engine: packed matrices, sessions' caches, a model, each bound in a file of its own; here what they run on.
#include "bind.hpp"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "bandwidth.hpp"
#include "kernels.hpp"

void register_engine(nanobind::module_& m) {
    using namespace sprat::engine;
    register_matrices(m);
    register_caches(m);
    register_model(m);
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
