#include "cuda/graph_bindings.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "cuda/condition.h"
#include "cuda/graph.h"

namespace py = pybind11;

namespace pndm {
namespace {

using cuda::Driver;
using cuda::Iteration;

cuda::Graph graph_at(uintptr_t address) {
  if (!address) throw py::value_error("graph must be an address, got 0");
  return reinterpret_cast<cuda::Graph>(address);
}

std::unique_ptr<Iteration> make_iteration(std::shared_ptr<const Driver> driver, uintptr_t graph,
                                          uintptr_t active, uintptr_t budget, uintptr_t cancel,
                                          const std::optional<py::function>& assemble) {
  const cuda::Control control{active, budget, cancel};
  const bool loop = active || budget || cancel;
  if (loop && !(active && budget && cancel)) {
    throw py::value_error("active, budget and cancel must be three addresses, or none");
  }
  const cuda::Graph captured = graph_at(graph);
  cuda::Assemble assembled;
  if (assemble) {
    assembled = [&assemble](const std::string& ptx) -> std::string {
      py::gil_scoped_acquire held;
      return py::cast<std::string>((*assemble)(ptx));
    };
  }
  py::gil_scoped_release released;
  return std::make_unique<Iteration>(std::move(driver), captured, loop ? &control : nullptr,
                                     assembled);
}

int64_t launch(const Iteration& iteration, int64_t rows, uintptr_t stream, bool cancelable) {
  py::gil_scoped_release released;
  return iteration.launch(rows, reinterpret_cast<cuda::Stream>(stream), cancelable);
}

}  // namespace

void bind_graph(py::module_& m) {
  using py::literals::operator""_a;
  py::class_<Driver, std::shared_ptr<Driver>>(m, "Driver", "The CUDA driver, found at run time.")
      .def(py::init([](const std::string& library) {
             return std::const_pointer_cast<Driver>(Driver::load(library));
           }),
           "library"_a = "libcuda.so.1")
      .def_readonly("version", &Driver::version)
      .def_property_readonly("without_while", &Driver::without_while,
                             "Why WHILE nodes cannot be had; empty where they can.")
      .def(
          "census",
          [](const Driver& driver, uintptr_t graph) {
            cuda::Census found = cuda::census(driver, graph_at(graph));
            return py::make_tuple(found.nodes, found.obstacle);
          },
          "graph"_a, "Nodes by type, and why they cannot stand in a WHILE body, if they cannot.");
  py::class_<Iteration>(m, "Iteration",
                        "A captured iteration: launched for each row, or, with the addresses of "
                        "its control words, once for many.")
      .def(py::init(&make_iteration), "driver"_a.none(false), "graph"_a, py::kw_only(),
           "active"_a = 0, "budget"_a = 0, "cancel"_a = 0, "assemble"_a = py::none())
      .def("launch", &launch, "rows"_a, "stream"_a, "cancelable"_a = false,
           "Enqueue that many rows on a stream; only a cancelable loop reads its cancel word. "
           "Returns how many launches that took.")
      .def("close", &Iteration::close, py::call_guard<py::gil_scoped_release>(),
           "Destroy what the driver holds; nothing may be running.")
      .def_property_readonly("nodes", [](const Iteration& i) { return i.made_of.nodes; });
  m.attr("CONDITION_PTX") = cuda::kConditionPtx;
}

}  // namespace pndm
