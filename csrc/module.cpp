// sprat._core: the native half of coding/ and methods/.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void register_rans(nb::module_& m);
void register_waterlevel(nb::module_& m);

NB_MODULE(_core, m) {
    m.doc() = "Native core of sprat: entropy coder and water-level rounding.";
    register_rans(m);
    register_waterlevel(m);
}
