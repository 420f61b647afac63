// sprat._core: the native half of coding/, methods/ and run/.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void register_rans(nb::module_& m);
void register_waterlevel(nb::module_& m);
void register_engine(nb::module_& m);

NB_MODULE(_core, m) {
    m.doc() = "Native core of sprat: entropy coder, water-level rounding, engine.";
    register_rans(m);
    register_waterlevel(m);
    register_engine(m);
}
