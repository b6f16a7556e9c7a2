#include "cuda/driver.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <stdexcept>

namespace pndm::cuda {
namespace {

// cuGetProcAddress of CUDA 12: name without version suffix, interface, flags, what was found.
using GetProcAddress = Status (*)(const char*, void**, int, unsigned long long, int*);

void* find(GetProcAddress get, const char* name, int interface) {
  void* address = nullptr;
  int found = 0;
  return get(name, &address, interface, 0, &found) == kSuccess && found == 0 ? address : nullptr;
}

}  // namespace

std::shared_ptr<const Driver> Driver::load(const std::string& library) {
  static std::mutex mutex;
  static auto& loaded = *new std::map<std::string, std::shared_ptr<const Driver>>;
  std::lock_guard<std::mutex> lock(mutex);
  auto& driver = loaded[library];
  if (!driver) driver.reset(new Driver(library));
  return driver;
}

Driver::Driver(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) throw std::runtime_error(std::string("no CUDA driver: ") + dlerror());
  const auto get = reinterpret_cast<GetProcAddress>(dlsym(handle, "cuGetProcAddress_v2"));
  if (!get) {
    throw std::runtime_error(library +
                             " has no cuGetProcAddress_v2: drivers before CUDA 12 do not");
  }
  std::string missing;
#define PNDM_FIND(name, interface, parameters)                                     \
  name = reinterpret_cast<Status(*) parameters>(find(get, "cu" #name, interface)); \
  if (!name) missing += " cu" #name;
  PNDM_DRIVER_FUNCTIONS(PNDM_FIND)
  if (!missing.empty()) throw std::runtime_error(library + " lacks" + missing);
  PNDM_CONDITIONAL_FUNCTIONS(PNDM_FIND)  // what is missing here is told by without_while
#undef PNDM_FIND
  check(DriverGetVersion(&version), "cuDriverGetVersion");
}

void Driver::check(Status status, const char* call) const {
  if (status == kSuccess) return;
  const char *name = nullptr, *text = nullptr;
  GetErrorName(status, &name);
  GetErrorString(status, &text);
  throw std::runtime_error(std::string(call) + ": " + (name ? name : "an unknown status") + " (" +
                           std::to_string(status) + (text ? std::string(", ") + text : "") + ")");
}

std::string Driver::without_while() const {
  if (version >= kWhileVersion) {
    if (!GraphConditionalHandleCreate) return "the driver lacks cuGraphConditionalHandleCreate";
    return GraphAddNode ? "" : "the driver lacks cuGraphAddNode";
  }
  return "WHILE nodes need a driver of CUDA 12.4, got " + std::to_string(version / 1000) + "." +
         std::to_string(version % 1000 / 10);
}

}  // namespace pndm::cuda
