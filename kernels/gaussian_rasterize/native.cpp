// Python bindings of the native kernels (module dreamkit_kernels._native).
//
// The arrays come from op.py, which has checked dtype, device and contiguity; the typed ndarrays check them again, and
// the shapes are checked here, so that a direct caller can't reach memory outside an array.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "native.h"

namespace nb = nanobind;

namespace dreamkit {
namespace {

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using Input = Array<const float>;
using Output = Array<float>;
template <class A>
using Maybe = std::optional<A>;

template <class A>
auto data_of(const A& array, const char* name, std::initializer_list<int64_t> shape) {
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

CompositeInputs composite_inputs(const Input& means2d, const Input& conics, const Input& opacities,
                                 const Input& depths, const Input& normals, const Input& colors,
                                 const Maybe<Input>& background, int64_t width, int64_t height, int threads) {
  if (means2d.ndim() != 3 || colors.ndim() != 3) throw std::invalid_argument("means2d and colors must be 3D");
  const int64_t views = means2d.shape(0), count = means2d.shape(1);
  const int64_t color_views = colors.shape(0), channels = colors.shape(2);
  if (width < 1 || height < 1) throw std::invalid_argument("width and height must be positive");
  if (color_views != views && color_views != 1) throw std::invalid_argument("colors has the wrong shape");
  return {views,
          count,
          width,
          height,
          channels,
          color_views != views || views == 1,
          data_of(means2d, "means2d", {views, count, 2}),
          data_of(conics, "conics", {views, count, 3}),
          data_of(opacities, "opacities", {views, count}),
          data_of(depths, "depths", {views, count}),
          data_of(normals, "normals", {views, count, 3}),
          data_of(colors, "colors", {color_views, count, channels}),
          data_of(background, "background", {views, channels}),
          threads};
}

CompositeState bind_forward(const Input& means2d, const Input& conics, const Input& opacities, const Input& depths,
                            const Input& normals, const Input& colors, const Maybe<Input>& background,
                            const Output& image, const Output& alpha, const Output& depth, const Output& normal,
                            int threads) {
  if (image.ndim() != 4) throw std::invalid_argument("image must be 4D");
  const int64_t height = image.shape(1), width = image.shape(2);
  const CompositeInputs in = composite_inputs(means2d, conics, opacities, depths, normals, colors, background, width,
                                              height, threads);
  const CompositeOutputs out{data_of(image, "image", {in.views, height, width, in.channels}),
                             data_of(alpha, "alpha", {in.views, height, width, 1}),
                             data_of(depth, "depth", {in.views, height, width, 1}),
                             data_of(normal, "normal", {in.views, height, width, 3})};
  nb::gil_scoped_release release;
  return composite_forward(in, out);
}

void bind_backward(const CompositeState& state, const Input& means2d, const Input& conics, const Input& opacities,
                   const Input& depths, const Input& normals, const Input& colors, const Maybe<Input>& background,
                   const Maybe<Input>& image, const Maybe<Input>& alpha, const Maybe<Input>& depth,
                   const Maybe<Input>& normal, const Output& d_means2d, const Output& d_conics,
                   const Output& d_opacities, const Output& d_depths, const Output& d_normals,
                   const Output& d_colors, const Maybe<Output>& d_background, int threads) {
  const int64_t height = state.height, width = state.width;
  const CompositeInputs in = composite_inputs(means2d, conics, opacities, depths, normals, colors, background, width,
                                              height, threads);
  if (in.views != state.views || in.count != state.count || in.channels != state.channels) {
    throw std::invalid_argument("the inputs are not those of the forward pass");
  }
  const int64_t views = in.views, count = in.count, channels = in.channels;
  const CompositeGradients gradients{
      data_of(image, "image gradient", {views, height, width, channels}),
      data_of(alpha, "alpha gradient", {views, height, width, 1}),
      data_of(depth, "depth gradient", {views, height, width, 1}),
      data_of(normal, "normal gradient", {views, height, width, 3}),
      data_of(d_means2d, "d_means2d", {views, count, 2}),
      data_of(d_conics, "d_conics", {views, count, 3}),
      data_of(d_opacities, "d_opacities", {views, count}),
      data_of(d_depths, "d_depths", {views, count}),
      data_of(d_normals, "d_normals", {views, count, 3}),
      data_of(d_colors, "d_colors", {static_cast<int64_t>(colors.shape(0)), count, channels}),
      data_of(d_background, "d_background", {views, channels})};
  nb::gil_scoped_release release;
  composite_backward(in, state, gradients);
}

}  // namespace
}  // namespace dreamkit

NB_MODULE(_native, module) {
  using namespace dreamkit;
  nb::set_leak_warnings(false);  // a graph alive at exit keeps its state
  module.doc() = "Native CPU kernels of DreamKit. Called through dreamkit_kernels, which checks the arguments.";
  module.def("instruction_set", &instruction_set_name, "The SIMD instruction set in use: baseline, avx2 or avx512.");
  nb::class_<CompositeState>(module, "CompositeState", "Tile lists and transmittances kept for the backward pass.");
  module.def("composite_forward", &bind_forward, nb::arg("means2d"), nb::arg("conics"), nb::arg("opacities"),
             nb::arg("depths"), nb::arg("normals"), nb::arg("colors"), nb::arg("background").none(),
             nb::arg("image"), nb::arg("alpha"), nb::arg("depth"), nb::arg("normal"), nb::arg("threads"));
  module.def("composite_backward", &bind_backward, nb::arg("state"), nb::arg("means2d"), nb::arg("conics"),
             nb::arg("opacities"), nb::arg("depths"), nb::arg("normals"), nb::arg("colors"),
             nb::arg("background").none(), nb::arg("image_gradient").none(), nb::arg("alpha_gradient").none(),
             nb::arg("depth_gradient").none(), nb::arg("normal_gradient").none(), nb::arg("d_means2d"),
             nb::arg("d_conics"), nb::arg("d_opacities"), nb::arg("d_depths"), nb::arg("d_normals"),
             nb::arg("d_colors"), nb::arg("d_background").none(), nb::arg("threads"));
}
