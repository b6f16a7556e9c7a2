// What objects' attributes were, and what the dicts and lists among them held.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <unordered_set>
#include <vector>

namespace pndm {

// Objects, and all values that can be, are held by weak references: whoever keeps a watch for an
// object keeps no object alive by it. The rest is shown to Python's cycle collector.
class Watch {
 public:
  Watch(const pybind11::iterable& objects, const std::unordered_set<std::string>& unread);

  // Whether anything is another than at the start. No Python code runs in here: what is compared
  // cannot change meanwhile.
  bool changed();

  int traverse(visitproc visit, void* argument) const;
  void clear() noexcept;

 private:
  struct Value {
    enum { kUnread, kWeak, kHeld, kTable } kind;
    pybind11::object key;  // in a dict
    pybind11::object was;  // the value, or a weak reference to it
    size_t table = 0;
  };

  // Attributes of an object, or a dict or list among them.
  struct Table {
    pybind11::object type;
    size_t first, size;        // in values_
    PyObject* seen = nullptr;  // borrowed: there for as long as its owner is untouched
    uint64_t version = 0;

    bool untouched(PyObject* now) const;
  };

  struct Object {
    pybind11::object reference;
    size_t first, last;  // in tables_: its attributes, then the tables among them
  };

  void remember(const pybind11::object& table, const std::unordered_set<std::string>& unread,
                bool inside);
  Value value_of(const pybind11::object& value, bool inside) const;
  bool same(Table& table, PyObject* now);
  bool same(Value& value, PyObject* now);

  std::vector<Object> objects_;
  std::vector<Table> tables_;
  std::vector<Value> values_;
};

void bind_watch(pybind11::module_& m);

}  // namespace pndm
