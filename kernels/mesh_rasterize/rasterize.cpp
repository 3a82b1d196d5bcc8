// Faces to pixels: set-up by chunks of faces, then rows of pixels, each drawn by one thread in the order of the faces.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

namespace dreamkit {
namespace {

// What drawing needs to know of a face: edge functions n . (X, Y, 1) and what they are at least inside, the plane of
// z / w, and the pixels that the face may cover.
struct FaceSetup {
  Double3 n[3];
  double least[3];
  Double3 plane;
  int32_t face, row_begin, row_end, column_begin, column_end;
};

constexpr int64_t CHUNK = 2048;  // faces

// The least value of an edge function inside. What is within rounding of an edge belongs to one of its two sides.
double least_inside(const Double3& n) {
  const double rounding = rounding_of(n);
  const bool keeps = n.x > 0.0 || (n.x == 0.0 && n.y > 0.0);
  return keeps ? -rounding : std::nextafter(rounding, std::numeric_limits<double>::infinity());
}

// Pixels [begin, end) along an axis whose centres lie between two places in pixels.
void span(double low, double high, int64_t size, int32_t* begin, int32_t* end) {
  constexpr double margin = 1e-3;  // far above all rounding
  *begin = static_cast<int32_t>(std::ceil(std::max(low - margin, 0.0)));
  *end = static_cast<int32_t>(std::floor(std::min(high + margin, static_cast<double>(size - 1)))) + 1;
}

// The pixels that a face may cover; false if it is not drawn at all.
bool find_box(const Mesh& mesh, const float* const* p, FaceSetup* face) {
  int outside[6] = {};
  bool finite = true, crossing = false;
  for (int i = 0; i < 3; ++i) {
    const float w = p[i][3];
    for (int axis = 0; axis < 3; ++axis) {
      outside[axis] += p[i][axis] > w;
      outside[3 + axis] += p[i][axis] < -w;
      finite = finite && std::isfinite(p[i][axis]);
    }
    finite = finite && std::isfinite(w);
    crossing = crossing || w <= 0.0f;
  }
  if (!finite || *std::max_element(outside, outside + 6) == 3) return false;
  if (crossing) {
    face->row_begin = face->column_begin = 0;
    face->row_end = static_cast<int32_t>(mesh.height);
    face->column_end = static_cast<int32_t>(mesh.width);
    return true;
  }
  constexpr double infinity = std::numeric_limits<double>::infinity();
  double low_x = infinity, high_x = -infinity, low_y = infinity, high_y = -infinity;
  for (int i = 0; i < 3; ++i) {
    const double inverse = 1.0 / p[i][3];
    const double x = ((p[i][0] * inverse + 1.0) * static_cast<double>(mesh.width) - 1.0) * 0.5;
    const double y = ((1.0 - p[i][1] * inverse) * static_cast<double>(mesh.height) - 1.0) * 0.5;
    low_x = std::min(low_x, x);
    high_x = std::max(high_x, x);
    low_y = std::min(low_y, y);
    high_y = std::max(high_y, y);
  }
  if (high_x < -0.5 || high_y < -0.5 || low_x > static_cast<double>(mesh.width) ||
      low_y > static_cast<double>(mesh.height)) {
    return false;
  }
  span(low_x, high_x, mesh.width, &face->column_begin, &face->column_end);
  span(low_y, high_y, mesh.height, &face->row_begin, &face->row_end);
  return face->column_begin < face->column_end && face->row_begin < face->row_end;
}

void set_up_chunk(const Mesh& mesh, int64_t view, int64_t begin, int64_t end, std::vector<FaceSetup>& result) {
  result.clear();
  for (int64_t f = begin; f < end; ++f) {
    const float* p[3];
    for (int i = 0; i < 3; ++i) p[i] = mesh.positions + (view * mesh.vertices + mesh.corners[3 * f + i]) * 4;
    FaceSetup face;
    if (!find_box(mesh, p, &face)) continue;
    Double3 q[3];
    for (int i = 0; i < 3; ++i) q[i] = {p[i][0], p[i][1], p[i][3]};
    for (int i = 0; i < 3; ++i) face.n[i] = cross(q[(i + 1) % 3], q[(i + 2) % 3]);
    const double det = determinant(q[0], face.n[0]);
    if (det == 0.0) continue;
    face.plane = {};
    for (int i = 0; i < 3; ++i) {
      face.n[i] = (det > 0.0 ? 1.0 : -1.0) * face.n[i];
      face.plane = face.plane + (p[i][2] / std::abs(det)) * face.n[i];
      face.least[i] = least_inside(face.n[i]);
    }
    face.face = static_cast<int32_t>(f);
    result.push_back(face);
  }
}

}  // namespace
}  // namespace dreamkit

#define DREAMKIT_KERNELS "mesh_rasterize/coverage_kernels.h"
#include "../instruction_sets.h"

namespace dreamkit {
namespace {

void write_fragments(const Mesh& mesh, int64_t view, int64_t row, int32_t* seen, float* barycentrics, float* depth) {
  const int64_t start = view * mesh.area() + row * mesh.width;
  const double y = centre_y(mesh, row);
  Double3 n[3] = {};
  int32_t known = -1;
  for (int64_t column = 0; column < mesh.width; ++column) {
    float* weights = barycentrics + (start + column) * 3;
    const int32_t face = seen[start + column];
    if (face < 0) {
      depth[start + column] = 1.0f;
      weights[0] = weights[1] = weights[2] = 0.0f;
      continue;
    }
    if (face != known) {
      Double3 q[3];
      for (int i = 0; i < 3; ++i) q[i] = homogeneous(mesh, view, mesh.corners[3 * face + i]);
      for (int i = 0; i < 3; ++i) n[i] = cross(q[(i + 1) % 3], q[(i + 2) % 3]);
      known = face;
    }
    const Double3 p{centre_x(mesh, column), y, 1.0};
    const double e[3] = {dot(n[0], p), dot(n[1], p), dot(n[2], p)};
    const double scale = 1.0 / (e[0] + e[1] + e[2]);
    for (int i = 0; i < 3; ++i) weights[i] = static_cast<float>(e[i] * scale);
  }
}

// One view by a number of threads.
void draw_view(const Mesh& mesh, int64_t view, int threads, const double* xs, int32_t* seen, float* barycentrics,
               float* depth) {
  const int64_t chunks = (mesh.faces + CHUNK - 1) / CHUNK;
  std::vector<std::vector<FaceSetup>> faces(static_cast<size_t>(chunks));
  parallel_for(chunks, threads, [&](int64_t chunk) {
    set_up_chunk(mesh, view, chunk * CHUNK, std::min(mesh.faces, (chunk + 1) * CHUNK), faces[chunk]);
  });
  const int64_t bands = threads <= 1 ? 1 : std::min<int64_t>(mesh.height, 4 * threads);
  parallel_for(bands, threads, [&](int64_t band) {
    const int64_t first = mesh.height * band / bands, last = mesh.height * (band + 1) / bands;
    float* nearest = depth + view * mesh.area();
    int32_t* nearest_face = seen + view * mesh.area();
    std::fill(nearest + first * mesh.width, nearest + last * mesh.width, std::numeric_limits<float>::infinity());
    std::fill(nearest_face + first * mesh.width, nearest_face + last * mesh.width, -1);
    for (const auto& chunk : faces) {
      DREAMKIT_CALL(cover_rows, chunk.data(), static_cast<int64_t>(chunk.size()), mesh.width, mesh.height, first, last,
                    xs, nearest, nearest_face);
    }
    for (int64_t row = first; row < last; ++row) write_fragments(mesh, view, row, seen, barycentrics, depth);
  });
}

// Gradients of the corners of a face: d_e_i = (g_i - sum_j g_j b_j) / sum_j e_j, and with r_i = q_i x P those of the
// corners are d_q_0 = d_e_2 r_1 - d_e_1 r_2 and so on.
struct FaceGradient {
  int32_t corners[3];
  Double3 q[3], n[3], sums[3];
  int32_t face = -1;

  void open(const Mesh& mesh, int64_t view, int32_t next) {
    face = next;
    for (int i = 0; i < 3; ++i) {
      corners[i] = mesh.corners[3 * face + i];
      q[i] = homogeneous(mesh, view, corners[i]);
      sums[i] = {};
    }
    for (int i = 0; i < 3; ++i) n[i] = cross(q[(i + 1) % 3], q[(i + 2) % 3]);
  }
  void add(const Double3& p, const float* incoming) {
    const double e[3] = {dot(n[0], p), dot(n[1], p), dot(n[2], p)};
    const double scale = 1.0 / (e[0] + e[1] + e[2]);
    const double mean = (incoming[0] * e[0] + incoming[1] * e[1] + incoming[2] * e[2]) * scale;
    double d_e[3];
    Double3 r[3];
    for (int i = 0; i < 3; ++i) {
      d_e[i] = (incoming[i] - mean) * scale;
      r[i] = cross(q[i], p);
    }
    for (int i = 0; i < 3; ++i) {
      const int j = (i + 1) % 3, k = (i + 2) % 3;
      sums[i] = sums[i] + d_e[k] * r[j] - d_e[j] * r[k];
    }
  }
  void close(double* totals) {
    for (int i = 0; face >= 0 && i < 3; ++i) add_to(totals, corners[i], sums[i]);
    face = -1;
  }
};

void differentiate_rows(const Mesh& mesh, int64_t view, int64_t first, int64_t last, const int32_t* seen,
                        const float* d_barycentrics, double* totals) {
  FaceGradient gradient;
  for (int64_t row = first; row < last; ++row) {
    const double y = centre_y(mesh, row);
    for (int64_t column = 0; column < mesh.width; ++column) {
      const int64_t pixel = view * mesh.area() + row * mesh.width + column;
      if (seen[pixel] < 0) continue;
      if (seen[pixel] != gradient.face) {
        gradient.close(totals);
        gradient.open(mesh, view, seen[pixel]);
      }
      gradient.add({centre_x(mesh, column), y, 1.0}, d_barycentrics + pixel * 3);
    }
  }
  gradient.close(totals);
}

}  // namespace

void mesh_rasterize(const Mesh& mesh, int32_t* seen, float* barycentrics, float* depth) {
  Buffer<double> xs(static_cast<size_t>(mesh.width + 4));
  for (int64_t column = 0; column < mesh.width + 4; ++column) xs[column] = centre_x(mesh, column);
  const int threads = mesh.useful_threads();
  const bool views_fill_threads = mesh.views >= threads;
  parallel_for(mesh.views, views_fill_threads ? threads : 1, [&](int64_t view) {
    draw_view(mesh, view, views_fill_threads ? 1 : threads, xs.data(), seen, barycentrics, depth);
  });
}

void mesh_rasterize_backward(const Mesh& mesh, const int32_t* seen, const float* d_barycentrics, float* d_positions) {
  const int64_t bands = band_count(mesh.views, mesh.height, mesh.width, mesh.vertices);
  const int64_t size = mesh.vertices * 3;
  Buffer<double> sums(static_cast<size_t>(mesh.views * bands * size));
  parallel_for(mesh.views * bands, mesh.useful_threads(), [&](int64_t task) {
    const int64_t view = task / bands, band = task % bands;
    double* totals = sums.data() + task * size;
    std::fill(totals, totals + size, 0.0);
    differentiate_rows(mesh, view, mesh.height * band / bands, mesh.height * (band + 1) / bands, seen, d_barycentrics,
                       totals);
  });
  parallel_for(mesh.views, mesh.useful_threads(), [&](int64_t view) {
    write_gradients(sums.data() + view * bands * size, bands, mesh.vertices, d_positions + view * mesh.vertices * 4);
  });
}

}  // namespace dreamkit
