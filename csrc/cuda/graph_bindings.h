#pragma once

#include <pybind11/pybind11.h>

namespace pndm {

void bind_graph(pybind11::module_& m);

}  // namespace pndm
