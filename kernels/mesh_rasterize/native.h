// Shared by the native kernels of mesh_rasterize. The definitions are in reference.py.
#pragma once

#include <algorithm>
#include <cmath>

#include "../common.h"

namespace dreamkit {

struct Mesh {
  int64_t views, vertices, faces;
  const float* positions;  // [B, V, 4] clip space
  const int32_t* corners;  // [F, 3]
  int64_t height, width;
  int threads;

  int64_t area() const { return height * width; }
  int useful_threads() const {  // below this, waking the threads costs as much as the work
    return views * (faces + area()) < 4096 ? 1 : std::max(1, threads);
  }
};

// A view is cut into bands whose sums are added afterwards. Their number depends on the sizes only, so that the bits do
// not depend on the threads.
inline int64_t band_count(int64_t views, int64_t height, int64_t width, int64_t vertices) {
  const int64_t affordable = height * width / std::max<int64_t>(vertices, 1);
  return std::max<int64_t>(1, std::min({8 / std::max<int64_t>(views, 1), affordable, height}));
}

struct Double3 {
  double x, y, z;
};

inline Double3 operator+(const Double3& a, const Double3& b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
inline Double3 operator-(const Double3& a, const Double3& b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
inline Double3 operator*(double s, const Double3& a) { return {s * a.x, s * a.y, s * a.z}; }
inline double dot(const Double3& a, const Double3& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
// The products of float32 numbers are exact, so cross(a, b) is exactly -cross(b, a), with fused operations too.
inline Double3 cross(const Double3& a, const Double3& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

// The determinant of a face, 0 if it is not drawn: without an area, or with NaN or infinity.
inline double determinant(const Double3& q, const Double3& n) {
  constexpr double degenerate = 1e-14;  // as in reference.py
  const double size = std::abs(q.x * n.x) + std::abs(q.y * n.y) + std::abs(q.z * n.z), det = dot(q, n);
  return std::abs(det) > degenerate * size ? det : 0.0;
}

// A centre is on an edge if the edge function n . P is no larger; ROUNDING of reference.py.
inline double rounding_of(const Double3& n) { return 1e-14 * (std::abs(n.x) + std::abs(n.y) + std::abs(n.z)); }

// q = (x, y, w) of a vertex.
inline Double3 homogeneous(const Mesh& mesh, int64_t view, int32_t vertex) {
  const float* p = mesh.positions + (view * mesh.vertices + vertex) * 4;
  return {p[0], p[1], p[3]};
}

inline double centre_x(const Mesh& mesh, int64_t column) {
  return static_cast<double>(2 * column + 1) / static_cast<double>(mesh.width) - 1.0;
}
inline double centre_y(const Mesh& mesh, int64_t row) {
  return 1.0 - static_cast<double>(2 * row + 1) / static_cast<double>(mesh.height);
}

// Gradients of vertices of one view, summed up in double: [V, 3] for x, y and w.
inline void add_to(double* sums, int32_t vertex, const Double3& gradient) {
  double* row = sums + static_cast<int64_t>(vertex) * 3;
  row[0] += gradient.x;
  row[1] += gradient.y;
  row[2] += gradient.z;
}

// From `parts` sums [parts, V, 3] to gradients [V, 4].
inline void write_gradients(const double* sums, int64_t parts, int64_t vertices, float* d_positions) {
  for (int64_t i = 0; i < vertices; ++i) {
    double total[3] = {};
    for (int64_t part = 0; part < parts; ++part) {
      for (int axis = 0; axis < 3; ++axis) total[axis] += sums[(part * vertices + i) * 3 + axis];
    }
    d_positions[4 * i] = static_cast<float>(total[0]);
    d_positions[4 * i + 1] = static_cast<float>(total[1]);
    d_positions[4 * i + 2] = 0.0f;
    d_positions[4 * i + 3] = static_cast<float>(total[2]);
  }
}

// Faces [B, H, W], barycentrics [B, H, W, 3] and depth [B, H, W].
void mesh_rasterize(const Mesh& mesh, int32_t* seen, float* barycentrics, float* depth);
void mesh_rasterize_backward(const Mesh& mesh, const int32_t* seen, const float* d_barycentrics, float* d_positions);

struct Attributes {
  int64_t sets, channels;  // one set for all views, or one a view
  const float* values;     // [sets, V, C]
};

// Of the mesh, positions are not used.
void mesh_interpolate(const Mesh& mesh, const Attributes& attributes, const int32_t* seen, const float* barycentrics,
                      float* image);
// Either gradient may be null.
void mesh_interpolate_backward(const Mesh& mesh, const Attributes& attributes, const int32_t* seen,
                               const float* barycentrics, const float* d_image, float* d_attributes,
                               float* d_barycentrics);

// What lies beyond edges [F, 3]: -1, or 3 f + i for edge i of face f. See topology.py.
void mesh_edges(const int32_t* corners, int64_t faces, int64_t vertices, int32_t* edges);

// Silhouettes [2, B, H, W] between a pixel and the next one to the right, and the next one below: -1 for none, else
// 2 (3 f + i), plus 1 where the next one sees the surface.
void mesh_silhouettes(const Mesh& mesh, const int32_t* edges, const int32_t* seen, const float* depth,
                      int32_t* silhouettes);
void mesh_blend(const Mesh& mesh, const float* image, int64_t channels, const int32_t* silhouettes, float* result);
// The gradient of the positions may be null.
void mesh_blend_backward(const Mesh& mesh, const float* image, int64_t channels, const int32_t* silhouettes,
                         const float* d_result, float* d_image, float* d_positions);

}  // namespace dreamkit
