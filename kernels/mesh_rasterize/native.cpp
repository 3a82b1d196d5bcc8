// Python bindings of mesh_rasterize.
#include "native.h"

#include "../bindings.h"

namespace dreamkit {
namespace {

using Numbers = Array<const int32_t>;
using NumbersOut = Array<int32_t>;

const int32_t* checked_numbers(const Numbers& array, const char* name, std::initializer_list<int64_t> shape,
                               int64_t low, int64_t high) {
  const int32_t* values = data_of(array, name, shape);
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  bool inside = true;
  for (int64_t i = 0; i < count; ++i) inside = inside && values[i] >= low && values[i] < high;
  if (!inside) throw std::invalid_argument(std::string(name) + " has a number that is out of range");
  return values;
}

// Views, height and width are those of an array [B, H, W, ...].
template <class A>
Mesh mesh_of(const Maybe<Input>& positions, const Numbers& faces, int64_t vertices, const A& pixels, int threads) {
  Mesh mesh{size_of(pixels, 0), vertices, size_of(faces, 0), nullptr, nullptr, size_of(pixels, 1), size_of(pixels, 2),
            threads};
  if (mesh.faces > INT32_MAX / 6) throw std::invalid_argument("faces are too many");
  mesh.positions = data_of(positions, "positions", {mesh.views, vertices, 4});
  mesh.corners = checked_numbers(faces, "faces", {mesh.faces, 3}, 0, vertices);
  return mesh;
}

const int32_t* checked_seen(const Mesh& mesh, const Numbers& seen) {
  return checked_numbers(seen, "seen", {mesh.views, mesh.height, mesh.width}, -1, mesh.faces);
}

void bind_rasterize(const Input& positions, const Numbers& faces, const NumbersOut& seen, const Output& barycentrics,
                    const Output& depth, int threads) {
  const Mesh mesh = mesh_of(positions, faces, size_of(positions, 1), seen, threads);
  if (mesh.height > 1 << 20 || mesh.width > 1 << 20) throw std::invalid_argument("the image is too large");
  int32_t* found = data_of(seen, "seen", {mesh.views, mesh.height, mesh.width});
  float* weights = data_of(barycentrics, "barycentrics", {mesh.views, mesh.height, mesh.width, 3});
  float* nearest = data_of(depth, "depth", {mesh.views, mesh.height, mesh.width});
  nb::gil_scoped_release release;
  mesh_rasterize(mesh, found, weights, nearest);
}

void bind_rasterize_backward(const Input& positions, const Numbers& faces, const Numbers& seen,
                             const Input& d_barycentrics, const Output& d_positions, int threads) {
  const Mesh mesh = mesh_of(positions, faces, size_of(positions, 1), seen, threads);
  const int32_t* found = checked_seen(mesh, seen);
  const float* incoming = data_of(d_barycentrics, "d_barycentrics", {mesh.views, mesh.height, mesh.width, 3});
  float* result = data_of(d_positions, "d_positions", {mesh.views, mesh.vertices, 4});
  nb::gil_scoped_release release;
  mesh_rasterize_backward(mesh, found, incoming, result);
}

Attributes attributes_of(const Mesh& mesh, const Input& attributes) {
  const int64_t sets = size_of(attributes, 0), channels = size_of(attributes, 2);
  if (sets != 1 && sets != mesh.views) throw std::invalid_argument("attributes has the wrong shape");
  return {sets, channels, data_of(attributes, "attributes", {sets, mesh.vertices, channels})};
}

void bind_interpolate(const Input& attributes, const Numbers& faces, const Numbers& seen, const Input& barycentrics,
                      const Output& image, int threads) {
  const Mesh mesh = mesh_of(std::nullopt, faces, size_of(attributes, 1), seen, threads);
  const Attributes values = attributes_of(mesh, attributes);
  const int32_t* found = checked_seen(mesh, seen);
  const float* weights = data_of(barycentrics, "barycentrics", {mesh.views, mesh.height, mesh.width, 3});
  float* result = data_of(image, "image", {mesh.views, mesh.height, mesh.width, values.channels});
  nb::gil_scoped_release release;
  mesh_interpolate(mesh, values, found, weights, result);
}

void bind_interpolate_backward(const Input& attributes, const Numbers& faces, const Numbers& seen,
                               const Input& barycentrics, const Input& d_image, const Maybe<Output>& d_attributes,
                               const Maybe<Output>& d_barycentrics, int threads) {
  const Mesh mesh = mesh_of(std::nullopt, faces, size_of(attributes, 1), seen, threads);
  const Attributes values = attributes_of(mesh, attributes);
  const int32_t* found = checked_seen(mesh, seen);
  const float* weights = data_of(barycentrics, "barycentrics", {mesh.views, mesh.height, mesh.width, 3});
  const float* incoming = data_of(d_image, "d_image", {mesh.views, mesh.height, mesh.width, values.channels});
  float* of_attributes = data_of(d_attributes, "d_attributes", {values.sets, mesh.vertices, values.channels});
  float* of_weights = data_of(d_barycentrics, "d_barycentrics", {mesh.views, mesh.height, mesh.width, 3});
  nb::gil_scoped_release release;
  mesh_interpolate_backward(mesh, values, found, weights, incoming, of_attributes, of_weights);
}

void bind_edges(const Numbers& faces, int64_t vertices, const NumbersOut& edges) {
  const int64_t count = size_of(faces, 0);
  if (count > INT32_MAX / 6) throw std::invalid_argument("faces are too many");
  const int32_t* corners = checked_numbers(faces, "faces", {count, 3}, 0, vertices);
  int32_t* result = data_of(edges, "edges", {count, 3});
  nb::gil_scoped_release release;
  mesh_edges(corners, count, std::max<int64_t>(vertices, 0), result);
}

void bind_antialias(const Input& image, const Numbers& seen, const Input& depth, const Input& positions,
                    const Numbers& faces, const Numbers& edges, const Output& result, const NumbersOut& silhouettes,
                    int threads) {
  const Mesh mesh = mesh_of(positions, faces, size_of(positions, 1), seen, threads);
  const int64_t channels = size_of(image, 3);
  const float* colors = data_of(image, "image", {mesh.views, mesh.height, mesh.width, channels});
  const int32_t* found = checked_seen(mesh, seen);
  const float* nearest = data_of(depth, "depth", {mesh.views, mesh.height, mesh.width});
  const int32_t* beyond = checked_numbers(edges, "edges", {mesh.faces, 3}, -1, 3 * mesh.faces);
  float* blended = data_of(result, "result", {mesh.views, mesh.height, mesh.width, channels});
  int32_t* crossed = data_of(silhouettes, "silhouettes", {2, mesh.views, mesh.height, mesh.width});
  nb::gil_scoped_release release;
  mesh_silhouettes(mesh, beyond, found, nearest, crossed);
  mesh_blend(mesh, colors, channels, crossed, blended);
}

void bind_antialias_backward(const Input& image, const Numbers& silhouettes, const Input& positions,
                             const Numbers& faces, const Input& d_result, const Output& d_image,
                             const Maybe<Output>& d_positions, int threads) {
  const Mesh mesh = mesh_of(positions, faces, size_of(positions, 1), image, threads);
  const int64_t channels = size_of(image, 3);
  const float* colors = data_of(image, "image", {mesh.views, mesh.height, mesh.width, channels});
  const int32_t* crossed =
      checked_numbers(silhouettes, "silhouettes", {2, mesh.views, mesh.height, mesh.width}, -1, 6 * mesh.faces);
  for (int64_t line = 0; line < mesh.views * mesh.height; ++line) {  // nothing lies beyond the last column or row
    const bool last_row = line % mesh.height == mesh.height - 1;
    const int32_t* below = crossed + (mesh.views * mesh.height + line) * mesh.width;
    bool outside = mesh.width > 0 && crossed[(line + 1) * mesh.width - 1] >= 0;
    for (int64_t column = 0; last_row && column < mesh.width; ++column) outside = outside || below[column] >= 0;
    if (outside) throw std::invalid_argument("silhouettes has one beyond the image");
  }
  const float* incoming = data_of(d_result, "d_result", {mesh.views, mesh.height, mesh.width, channels});
  float* of_image = data_of(d_image, "d_image", {mesh.views, mesh.height, mesh.width, channels});
  float* of_positions = data_of(d_positions, "d_positions", {mesh.views, mesh.vertices, 4});
  nb::gil_scoped_release release;
  mesh_blend_backward(mesh, colors, channels, crossed, incoming, of_image, of_positions);
}

}  // namespace

void bind_mesh_rasterize(nb::module_& module) {
  define(module, "mesh_rasterize", &bind_rasterize);
  define(module, "mesh_rasterize_backward", &bind_rasterize_backward);
  define(module, "mesh_interpolate", &bind_interpolate);
  define(module, "mesh_interpolate_backward", &bind_interpolate_backward);
  define(module, "mesh_edges", &bind_edges);
  define(module, "mesh_antialias", &bind_antialias);
  define(module, "mesh_antialias_backward", &bind_antialias_backward);
}

}  // namespace dreamkit
