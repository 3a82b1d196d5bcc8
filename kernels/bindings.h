// What the bindings of every operation share: typed arrays and checks of their shapes.
//
// The arrays come from the native.py of an operation, which allocates them; dtype, device and contiguity are checked by
// the typed ndarrays and shapes here, so that not even a direct caller can reach memory outside an array.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace nb = nanobind;

namespace dreamkit {

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using Input = Array<const float>;
using Output = Array<float>;
template <class A>
using Maybe = std::optional<A>;

template <class A>
auto data_of(const A& array, const char* name, std::initializer_list<int64_t> shape) -> decltype(array.data()) {
  bool matches = array.ndim() == shape.size();
  size_t axis = 0;
  for (const int64_t size : shape) {
    matches = matches && static_cast<int64_t>(array.shape(axis)) == size;
    ++axis;
  }
  if (!matches) throw std::invalid_argument(std::string(name) + " has the wrong shape");
  return array.data();
}

template <class A>
auto data_of(const Maybe<A>& array, const char* name, std::initializer_list<int64_t> shape)
    -> decltype(array->data()) {
  return array.has_value() ? data_of(*array, name, shape) : nullptr;
}

template <class A>
int64_t size_of(const A& array, size_t axis) {
  if (axis >= array.ndim()) throw std::invalid_argument("an array has too few dimensions");
  return static_cast<int64_t>(array.shape(axis));
}

template <class T>
struct IsMaybe : std::false_type {};
template <class T>
struct IsMaybe<std::optional<T>> : std::true_type {};

template <class T>
auto argument() {
  if constexpr (IsMaybe<std::decay_t<T>>::value) {
    return nb::arg().noconvert().none();
  } else {
    return nb::arg().noconvert();
  }
}

// Arguments are positional and never converted: a copy of an output array would swallow the results.
template <class Result, class... Arguments>
void define(nb::module_& module, const char* name, Result (*function)(Arguments...)) {
  module.def(name, function, argument<Arguments>()...);
}

// One for each operation, in its native.cpp.
void bind_adam(nb::module_& module);
void bind_gaussian_rasterize(nb::module_& module);
void bind_hash_grid(nb::module_& module);
void bind_mesh_rasterize(nb::module_& module);
void bind_modulate(nb::module_& module);
void bind_noise_residual(nb::module_& module);
void bind_ssim(nb::module_& module);
void bind_stream_attention(nb::module_& module);
void bind_volume_render(nb::module_& module);

}  // namespace dreamkit
