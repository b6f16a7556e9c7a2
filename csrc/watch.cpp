#include "watch.h"

#include <pybind11/stl.h>

#include <utility>

namespace py = pybind11;

namespace pndm {
namespace {

// Types whose comparison and destruction run no Python code.
bool plain(PyObject* value) {
  return value == Py_None || PyLong_CheckExact(value) || PyFloat_CheckExact(value) ||
         PyBool_Check(value) || PyUnicode_CheckExact(value) || PyBytes_CheckExact(value) ||
         PyComplex_CheckExact(value);
}

// Identical, or plain and equal: then the new object is taken, to be identical next time.
bool same_plain(py::object& was, PyObject* now) {
  if (was.ptr() == now) return true;
  if (Py_TYPE(was.ptr()) != Py_TYPE(now) || !plain(now)) return false;
  const int equal = PyObject_RichCompareBool(was.ptr(), now, Py_EQ);
  if (equal < 0) throw py::error_already_set();
  if (equal) was = py::reinterpret_borrow<py::object>(now);
  return equal;
}

// What a weak reference refers to, borrowed; None when that is gone.
PyObject* referent(const py::object& reference) {
  return reinterpret_cast<PyWeakReference*>(reference.ptr())->wr_object;
}

// A weak reference, or nothing where the type has none.
py::object weak(PyObject* value) {
  PyObject* reference = PyWeakref_NewRef(value, nullptr);
  if (!reference) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
    PyErr_Clear();
  }
  return py::reinterpret_steal<py::object>(reference);
}

[[noreturn]] void refuse(PyObject* object) {
  throw py::type_error(
      std::string("Watch: objects must have weak references and a __dict__, got ") +
      Py_TYPE(object)->tp_name);
}

py::object attributes(PyObject* object) {
  PyObject* found = PyObject_GenericGetDict(object, nullptr);
  if (!found) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
    PyErr_Clear();
    refuse(object);
  }
  return py::reinterpret_steal<py::object>(found);
}

// A number that no other dict has and that every change replaces (PEP 509); 0 where there is none.
// Python 3.13 writes into an object's attributes without a new one, later it is gone.
uint64_t version_of([[maybe_unused]] PyObject* table) {
#if PY_VERSION_HEX < 0x030D0000
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  if (PyDict_Check(table)) return reinterpret_cast<PyDictObject*>(table)->ma_version_tag;
#pragma GCC diagnostic pop
#endif
  return 0;
}

size_t size_of(PyObject* table) {
  return PyDict_Check(table) ? PyDict_GET_SIZE(table) : PyList_GET_SIZE(table);
}

}  // namespace

Watch::Watch(const py::iterable& objects, const std::unordered_set<std::string>& unread) {
  for (const py::handle object : objects) {
    py::object reference = weak(object.ptr());
    if (!reference) refuse(object.ptr());
    const size_t first = tables_.size();
    remember(attributes(object.ptr()), unread, /*inside=*/false);
    objects_.push_back({std::move(reference), first, tables_.size()});
  }
}

void Watch::remember(const py::object& table, const std::unordered_set<std::string>& unread,
                     bool inside) {
  // a copy: making weak references may run the collector, and so anything
  const bool keyed = PyDict_Check(table.ptr());
  const auto items = py::reinterpret_steal<py::list>(keyed ? PyDict_Items(table.ptr())
                                                           : PySequence_List(table.ptr()));
  if (!items) throw py::error_already_set();
  tables_.push_back({py::type::of(table), values_.size(), items.size()});
  std::vector<py::object> below;
  for (const py::handle item : items) {
    py::object key, value = py::reinterpret_borrow<py::object>(item);
    if (keyed) {
      key = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(item.ptr(), 0));
      value = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(item.ptr(), 1));
    }
    Value made{Value::kUnread, {}, {}};
    if (inside || !PyUnicode_CheckExact(key.ptr()) || !unread.count(key.cast<std::string>())) {
      made = value_of(value, inside);
    }
    if (made.kind == Value::kTable) below.push_back(value);
    made.key = std::move(key);
    values_.push_back(std::move(made));
  }
  const size_t first = tables_.back().first;
  for (size_t i = first, next = 0; next < below.size(); ++i) {
    if (values_[i].kind != Value::kTable) continue;
    values_[i].table = tables_.size();
    remember(below[next++], unread, /*inside=*/true);
  }
}

Watch::Value Watch::value_of(const py::object& value, bool inside) const {
  if (plain(value.ptr())) return {Value::kHeld, {}, value};
  if (!inside && (PyDict_Check(value.ptr()) || PyList_Check(value.ptr()))) {
    return {Value::kTable, {}, {}};
  }
  if (py::object reference = weak(value.ptr())) return {Value::kWeak, {}, std::move(reference)};
  return {Value::kHeld, {}, value};
}

bool Watch::changed() {
  for (const Object& object : objects_) {
    PyObject* const found = referent(object.reference);
    if (found == Py_None || Py_REFCNT(found) == 0) return true;  // gone, or going
    const auto held = py::reinterpret_borrow<py::object>(found);
    const py::object now = attributes(found);
    Table& own = tables_[object.first];
    if (!own.untouched(now.ptr())) {
      if (!same(own, now.ptr())) return true;
      continue;
    }
    for (size_t i = object.first + 1; i < object.last; ++i) {
      Table& table = tables_[i];
      if (!table.untouched(table.seen) && !same(table, table.seen)) return true;
    }
  }
  return false;
}

bool Watch::Table::untouched(PyObject* now) const {
  return version && seen == now && version == version_of(now);
}

bool Watch::same(Table& table, PyObject* now) {
  if (table.type.ptr() != reinterpret_cast<PyObject*>(Py_TYPE(now))) return false;
  if (table.size != size_of(now)) return false;
  Value* const values = values_.data() + table.first;
  if (PyDict_Check(now)) {
    Py_ssize_t position = 0;
    PyObject *key, *value;
    for (size_t i = 0; i < table.size && PyDict_Next(now, &position, &key, &value); ++i) {
      if (!same_plain(values[i].key, key) || !same(values[i], value)) return false;
    }
  } else {
    for (size_t i = 0; i < table.size; ++i) {
      if (!same(values[i], PyList_GET_ITEM(now, i))) return false;
    }
  }
  table.seen = now;
  table.version = version_of(now);
  return true;
}

bool Watch::same(Value& value, PyObject* now) {
  switch (value.kind) {
    case Value::kUnread:
      return true;
    case Value::kWeak:
      return referent(value.was) == now;
    case Value::kTable:
      return same(tables_[value.table], now);
    default:
      return same_plain(value.was, now);
  }
}

void Watch::clear() noexcept {
  std::vector<Value> gone;  // what is freed may run anything: not while it is still ours
  gone.swap(values_);
  objects_.clear();
}

int Watch::traverse(visitproc visit, void* arg) const {
  for (const Object& object : objects_) Py_VISIT(object.reference.ptr());
  for (const Table& table : tables_) Py_VISIT(table.type.ptr());
  for (const Value& value : values_) {
    Py_VISIT(value.key.ptr());
    Py_VISIT(value.was.ptr());
  }
  return 0;
}

namespace {

Watch* watch_in(PyObject* self) {
  const auto found = reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder();
  return found.holder_constructed() ? found.value_ptr<Watch>() : nullptr;  // not while it is made
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const Watch* watch = watch_in(self);
  return watch ? watch->traverse(visit, arg) : 0;
}

int clear(PyObject* self) {
  if (Watch* watch = watch_in(self)) watch->clear();
  return 0;
}

void collected(PyHeapTypeObject* type) {
  type->ht_type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type->ht_type.tp_traverse = traverse;
  type->ht_type.tp_clear = clear;
}

}  // namespace

void bind_watch(py::module_& m) {
  using py::literals::operator""_a;
  py::class_<Watch>(m, "Watch", py::custom_type_setup(&collected),
                    "What objects' attributes were, and what dicts and lists among them held.")
      .def(py::init<const py::iterable&, const std::unordered_set<std::string>&>(), "objects"_a,
           "unread"_a, "Attributes named in `unread` must be there, and may change.")
      .def("changed", &Watch::changed, "Whether anything is another than at the start.");
}

}  // namespace pndm
