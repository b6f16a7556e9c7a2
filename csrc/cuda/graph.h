// What torch captured of one (network, row) iteration, launched without the interpreter: once for
// each row, or once for a trajectory as the body of a WHILE node.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "cuda/driver.h"

namespace pndm::cuda {

// A handle with the function that destroys it.
template <class Handle>
class Owned {
 public:
  using Destroy = Status (*)(Handle);
  Owned() = default;
  Owned(Handle handle, Destroy destroy) : handle_(handle), destroy_(destroy) {}
  Owned(Owned&& other) noexcept { *this = std::move(other); }
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(destroy_, other.destroy_);
    return *this;
  }
  ~Owned() { reset(); }
  // The status is dropped: at a process's end the driver may be gone before we are.
  void reset() {
    if (handle_) destroy_(handle_);
    handle_ = nullptr;
  }
  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
  Destroy destroy_ = nullptr;
};

// What a graph is made of.
struct Census {
  std::map<std::string, int64_t> nodes;  // by type, those of child graphs included
  std::string obstacle;                  // why it cannot stand in a WHILE node's body, or nothing
};

Census census(const Driver& driver, Graph graph);

// Addresses that the WHILE node's condition reads: it goes on while samples are active, rows are
// left in the budget, which it counts down, and nobody has cancelled a launch that can be.
struct Control {
  Address active;  // int32, device
  Address budget;  // int32, device
  Address cancel;  // int32, pinned host memory
};

// Machine code of PTX, made without the driver; throws where it cannot be had.
using Assemble = std::function<std::string(const std::string&)>;

class Iteration {
 public:
  // The graph and all memory that it names must outlive this; `control` null: one launch per row.
  // `assemble` is asked where the driver does not compile the condition; it may be empty.
  // Throws std::runtime_error where the driver refuses, with its reason.
  Iteration(std::shared_ptr<const Driver> driver, Graph graph, const Control* control,
            const Assemble& assemble = {});
  ~Iteration() { close(); }
  Iteration(const Iteration&) = delete;
  Iteration& operator=(const Iteration&) = delete;

  // Enqueues that many rows, fewer than kCancelable; does not wait. `cancelable`, of a loop alone:
  // it reads the cancel word.
  int64_t launch(int64_t rows, Stream stream, bool cancelable) const;

  // Destroys the executable graph, then the graph that was built, then the condition's module.
  // Nothing may be running. A second call does nothing.
  void close();

  Census made_of;

 private:
  void build_loop(Graph body, const Control& control, const Assemble& assemble);

  std::shared_ptr<const Driver> driver_;
  Context context_ = nullptr;
  Address budget_ = 0;
  Owned<Module> module_;
  Owned<Graph> loop_;
  Owned<Exec> exec_;
};

}  // namespace pndm::cuda
