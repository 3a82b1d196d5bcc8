// Python bindings of gaussian_rasterize.
#include "native.h"

#include "../bindings.h"

namespace dreamkit {
namespace {

using Radii = Array<const int32_t>;

template <class Row, class A>
auto rows_of(const A& array, const char* name, int64_t views, int64_t count) -> Row* {
  return reinterpret_cast<Row*>(data_of(array, name, {views, count, 8}));
}

// Numbers that `project` takes besides tensors, in one tuple: see native.py.
struct ProjectionOptions {
  float width, height, near, far, eps2d, radius_clip;
  bool antialiased, orthographic;
  int threads;
};

ProjectionInputs projection_inputs(const Input& means, const Input& quaternions, const Input& scales,
                                   const Input& opacities, const Input& colors, const Input& view_matrices,
                                   const Input& intrinsics, const ProjectionOptions& o) {
  const int64_t views = size_of(view_matrices, 0), count = size_of(means, 0), color_size = size_of(colors, 1);
  return {views,
          count,
          color_size,
          data_of(means, "means", {count, 3}),
          data_of(quaternions, "quaternions", {count, 4}),
          data_of(scales, "scales", {count, 3}),
          data_of(opacities, "opacities", {count}),
          data_of(colors, "colors", {count, color_size}),
          data_of(view_matrices, "view_matrices", {views, 4, 4}),
          data_of(intrinsics, "intrinsics", {views, 3, 3}),
          o.width,
          o.height,
          o.near,
          o.far,
          o.eps2d,
          o.radius_clip,
          o.antialiased,
          o.orthographic,
          o.threads};
}

void bind_project_forward(const Input& means, const Input& quaternions, const Input& scales, const Input& opacities,
                          const Input& colors, const Input& view_matrices, const Input& intrinsics,
                          const ProjectionOptions& options, const Output& means2d, const Output& geometry,
                          const Output& splats, const Array<int32_t>& radii) {
  const ProjectionInputs in =
      projection_inputs(means, quaternions, scales, opacities, colors, view_matrices, intrinsics, options);
  const ProjectionOutputs out{data_of(means2d, "means2d", {in.views, in.count, 2}),
                              rows_of<Geometry>(geometry, "geometry", in.views, in.count),
                              rows_of<Splat>(splats, "splats", in.views, in.count),
                              data_of(radii, "radii", {in.views, in.count})};
  nb::gil_scoped_release release;
  project_forward(in, out);
}

void bind_project_backward(const Input& means, const Input& quaternions, const Input& scales, const Input& opacities,
                           const Input& colors, const Input& view_matrices, const Input& intrinsics,
                           const ProjectionOptions& options, const Radii& radii, const Input& means2d,
                           const Input& geometry, const Output& d_means, const Output& d_quaternions,
                           const Output& d_scales, const Output& d_opacities, const Maybe<Output>& d_view_matrices) {
  const ProjectionInputs in =
      projection_inputs(means, quaternions, scales, opacities, colors, view_matrices, intrinsics, options);
  const int32_t* radii_data = data_of(radii, "radii", {in.views, in.count});
  const ProjectionGradients gradients{data_of(means2d, "means2d gradient", {in.views, in.count, 2}),
                                      rows_of<const Geometry>(geometry, "geometry gradient", in.views, in.count),
                                      data_of(d_means, "d_means", {in.count, 3}),
                                      data_of(d_quaternions, "d_quaternions", {in.count, 4}),
                                      data_of(d_scales, "d_scales", {in.count, 3}),
                                      data_of(d_opacities, "d_opacities", {in.count}),
                                      data_of(d_view_matrices, "d_view_matrices", {in.views, 4, 4})};
  nb::gil_scoped_release release;
  project_backward(in, radii_data, gradients);
}

ShadeInputs shade_inputs(const Input& means, const Input& coefficients, const Input& view_matrices,
                         const Radii& radii, int degree, int threads) {
  const int64_t views = size_of(view_matrices, 0), count = size_of(means, 0), bases = size_of(coefficients, 1);
  if (degree < 0 || degree > 3 || (degree + 1) * (degree + 1) > bases) throw std::invalid_argument("degree");
  return {views,
          count,
          static_cast<int>(bases),
          degree,
          data_of(means, "means", {count, 3}),
          data_of(coefficients, "coefficients", {count, bases, 3}),
          data_of(view_matrices, "view_matrices", {views, 4, 4}),
          data_of(radii, "radii", {views, count}),
          threads};
}

void bind_shade_forward(const Input& means, const Input& coefficients, const Input& view_matrices, const Radii& radii,
                        const Output& colors, int degree, int threads) {
  const ShadeInputs in = shade_inputs(means, coefficients, view_matrices, radii, degree, threads);
  float* result = data_of(colors, "colors", {in.views, in.count, 3});
  nb::gil_scoped_release release;
  shade_forward(in, result);
}

void bind_shade_backward(const Input& means, const Input& coefficients, const Input& view_matrices,
                         const Radii& radii, const Input& colors, const Output& d_means,
                         const Output& d_coefficients, const Maybe<Output>& d_view_matrices, int degree,
                         int threads) {
  const ShadeInputs in = shade_inputs(means, coefficients, view_matrices, radii, degree, threads);
  const ShadeGradients gradients{data_of(colors, "colors gradient", {in.views, in.count, 3}),
                                 data_of(d_means, "d_means", {in.count, 3}),
                                 data_of(d_coefficients, "d_coefficients", {in.count, in.bases, 3}),
                                 data_of(d_view_matrices, "d_view_matrices", {in.views, 4, 4})};
  nb::gil_scoped_release release;
  shade_backward(in, gradients);
}

CompositeInputs composite_inputs(const Input& splats, const Input& geometry, const Radii& radii, const Input& colors,
                                 const Maybe<Input>& background, int64_t width, int64_t height, int threads) {
  const int64_t views = size_of(splats, 0), count = size_of(splats, 1);
  const int64_t color_views = size_of(colors, 0), channels = size_of(colors, 2);
  if (width < 1 || height < 1) throw std::invalid_argument("width and height must be positive");
  const bool shared = color_views != views;
  if (shared && color_views != 1) throw std::invalid_argument("colors has the wrong shape");
  return {views,
          count,
          width,
          height,
          channels,
          shared,
          rows_of<const Splat>(splats, "splats", views, count),
          rows_of<const Geometry>(geometry, "geometry", views, count),
          data_of(radii, "radii", {views, count}),
          data_of(colors, "colors", {color_views, count, channels}),
          data_of(background, "background", {views, channels}),
          threads};
}

CompositeState bind_composite_forward(const Input& splats, const Input& geometry, const Radii& radii,
                                      const Input& colors, const Maybe<Input>& background, const Output& image,
                                      const Output& alpha, const Output& depth, const Output& normal,
                                      const Maybe<Output>& median, int threads) {
  const int64_t height = size_of(image, 1), width = size_of(image, 2);
  const CompositeInputs in = composite_inputs(splats, geometry, radii, colors, background, width, height, threads);
  const CompositeOutputs out{data_of(image, "image", {in.views, height, width, in.channels}),
                             data_of(alpha, "alpha", {in.views, height, width, 1}),
                             data_of(depth, "depth", {in.views, height, width, 1}),
                             data_of(normal, "normal", {in.views, height, width, 3}),
                             data_of(median, "median", {in.views, height, width, 1})};
  nb::gil_scoped_release release;
  return composite_forward(in, out);
}

void bind_composite_backward(const CompositeState& state, const Input& splats, const Input& geometry,
                             const Radii& radii, const Input& colors, const Maybe<Input>& background,
                             const Maybe<Input>& image, const Maybe<Input>& alpha, const Maybe<Input>& depth,
                             const Maybe<Input>& normal, const Output& d_means2d, const Output& d_geometry,
                             const Output& d_colors, const Maybe<Output>& d_background, const Maybe<Output>& absolute,
                             int threads) {
  const int64_t height = state.height, width = state.width;
  const CompositeInputs in = composite_inputs(splats, geometry, radii, colors, background, width, height, threads);
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
      rows_of<Geometry>(d_geometry, "d_geometry", views, count),
      data_of(d_colors, "d_colors", {in.shared_colors ? 1 : views, count, channels}),
      data_of(d_background, "d_background", {views, channels}),
      data_of(absolute, "absolute", {views, count, 2})};
  nb::gil_scoped_release release;
  composite_backward(in, state, gradients);
}

}  // namespace

void bind_gaussian_rasterize(nb::module_& module) {
  nb::class_<CompositeState>(module, "CompositeState", "Tile lists and transmittances kept for the backward pass.");
  nb::class_<ProjectionOptions>(module, "ProjectionOptions", "Numbers that projection takes besides arrays.")
      .def("__init__",
           [](ProjectionOptions* self, float width, float height, float near, float far, float eps2d,
              float radius_clip, bool antialiased, bool orthographic, int threads) {
             new (self) ProjectionOptions{width,       height,       near,   far, eps2d, radius_clip,
                                          antialiased, orthographic, threads};
           });
  define(module, "project_forward", &bind_project_forward);
  define(module, "project_backward", &bind_project_backward);
  define(module, "shade_forward", &bind_shade_forward);
  define(module, "shade_backward", &bind_shade_backward);
  define(module, "composite_forward", &bind_composite_forward);
  define(module, "composite_backward", &bind_composite_backward);
}

}  // namespace dreamkit
