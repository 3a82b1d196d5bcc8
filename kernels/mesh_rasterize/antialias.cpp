// Silhouettes between neighbouring pixels, and colours blended across them. Each row is written by one thread.
#include <vector>

#include "native.h"

namespace dreamkit {
namespace {

constexpr int MAX_STEPS = 64;  // as in types.py

struct Edge {
  int32_t begin, end;  // vertices
  Double3 n;
};

Edge edge_of(const Mesh& mesh, int64_t view, int32_t edge) {
  const int32_t* corners = mesh.corners + edge / 3 * 3;
  const int32_t begin = corners[(edge + 1) % 3], end = corners[(edge + 2) % 3];
  return {begin, end, cross(homogeneous(mesh, view, begin), homogeneous(mesh, view, end))};
}

// The silhouette edge at which the surface that `face` belongs to ends between two centres, or -1. A walk from face to
// face along the segment, which is over where it comes to the one that the other centre sees.
int32_t find_silhouette(const Mesh& mesh, const int32_t* edges, int64_t view, int32_t face, int32_t other_face,
                        const Double3& own, const Double3& other, bool along_row) {
  int32_t entered = -1;
  for (int step = 0; step < MAX_STEPS && face != other_face; ++step) {
    const Double3 q0 = homogeneous(mesh, view, mesh.corners[3 * face]);
    Edge sides[3];
    for (int i = 0; i < 3; ++i) sides[i] = edge_of(mesh, view, 3 * face + i);
    const double det = determinant(q0, sides[0].n), sign = det > 0.0 ? 1.0 : (det < 0.0 ? -1.0 : 0.0);
    int best = -1;
    double nearest = 0.0;
    for (int i = 0; i < 3; ++i) {
      const double here = sign * dot(sides[i].n, own), there = sign * dot(sides[i].n, other);
      const double rounding = rounding_of(sides[i].n);  // a centre on an edge is beyond it
      if (i == entered || !(there <= rounding && here - there > rounding)) continue;
      const double share = here / (here - there);
      if (best < 0 || share < nearest) {
        best = i;
        nearest = share;
      }
    }
    if (best < 0) return -1;
    const int32_t code = 3 * face + best, beyond = edges[code];
    const Double3& n = sides[best].n;
    if (beyond >= 0 && sign * dot(n, homogeneous(mesh, view, mesh.corners[beyond])) < 0.0) {
      face = beyond / 3;
      entered = beyond % 3;
      continue;
    }
    const double across = std::abs(n.x) / static_cast<double>(mesh.width);
    const double down = std::abs(n.y) / static_cast<double>(mesh.height);
    return (along_row ? across >= down : down > across) ? code : -1;
  }
  return -1;
}

// A pair of pixels with a silhouette between them.
struct Crossing {
  int64_t own, other;  // pixels of their view
  int64_t target;
  Edge edge;
  double here, there;
  float weight;  // 1/2 - t

  Crossing(const Mesh& mesh, int64_t view, int32_t silhouette, int64_t row, int64_t column, bool along_row)
      : edge(edge_of(mesh, view, silhouette / 2)) {
    const int64_t first = row * mesh.width + column, second = first + (along_row ? 1 : mesh.width);
    const bool swapped = silhouette % 2 != 0;
    own = swapped ? second : first;
    other = swapped ? first : second;
    here = dot(edge.n, place(mesh, own));
    there = dot(edge.n, place(mesh, other));
    const float share = static_cast<float>(here / (here - there));
    weight = 0.5f - share;
    target = share < 0.5f ? own : other;
  }
  static Double3 place(const Mesh& mesh, int64_t pixel) {
    return {centre_x(mesh, pixel % mesh.width), centre_y(mesh, pixel / mesh.width), 1.0};
  }
};

// Calls body(crossing) for every silhouette that touches a row of a view: in it, above it, below it.
template <class Body>
void for_crossings(const Mesh& mesh, const int32_t* silhouettes, int64_t view, int64_t row, Body body) {
  const int32_t* right = silhouettes + view * mesh.area();
  const int32_t* down = right + mesh.views * mesh.area();
  for (int64_t column = 0; column < mesh.width; ++column) {
    const int64_t pixel = row * mesh.width + column;
    if (right[pixel] >= 0) body(Crossing(mesh, view, right[pixel], row, column, true));
    if (row > 0 && down[pixel - mesh.width] >= 0) {
      body(Crossing(mesh, view, down[pixel - mesh.width], row - 1, column, false));
    }
    if (down[pixel] >= 0) body(Crossing(mesh, view, down[pixel], row, column, false));
  }
}

// The gradient of a crossing's edge: t = here / (here - there), n = q_1 x q_2.
void differentiate_edge(const Mesh& mesh, int64_t view, const Crossing& crossing, double d_share, double* totals) {
  const double scale = d_share / ((crossing.here - crossing.there) * (crossing.here - crossing.there));
  const Double3 d_n = -scale * crossing.there * Crossing::place(mesh, crossing.own) +
                      scale * crossing.here * Crossing::place(mesh, crossing.other);
  const Double3 begin = homogeneous(mesh, view, crossing.edge.begin), end = homogeneous(mesh, view, crossing.edge.end);
  add_to(totals, crossing.edge.begin, cross(end, d_n));
  add_to(totals, crossing.edge.end, cross(d_n, begin));
}

}  // namespace

void mesh_silhouettes(const Mesh& mesh, const int32_t* edges, const int32_t* seen, const float* depth,
                      int32_t* silhouettes) {
  std::vector<double> xs(static_cast<size_t>(mesh.width));
  for (int64_t column = 0; column < mesh.width; ++column) xs[column] = centre_x(mesh, column);
  parallel_for(mesh.views * mesh.height, mesh.useful_threads(), [&](int64_t line) {
    const int64_t view = line / mesh.height, row = line % mesh.height;
    const double y = centre_y(mesh, row), below = centre_y(mesh, row + 1);
    for (int axis = 0; axis < 2; ++axis) {
      const bool along_row = axis == 0;
      const int64_t step = along_row ? 1 : mesh.width;
      int32_t* result = silhouettes + (axis * mesh.views * mesh.height + line) * mesh.width;
      for (int64_t column = 0; column < mesh.width; ++column) {
        const int64_t pixel = line * mesh.width + column;
        result[column] = -1;
        if (along_row ? column + 1 == mesh.width : row + 1 == mesh.height) continue;
        const int32_t first = seen[pixel], second = seen[pixel + step];
        if (first == second) continue;
        const bool swapped = !(second < 0 || (first >= 0 && depth[pixel] <= depth[pixel + step]));
        const Double3 here{xs[column], y, 1.0};
        const Double3 there = along_row ? Double3{xs[column + 1], y, 1.0} : Double3{xs[column], below, 1.0};
        const int32_t edge = swapped ? find_silhouette(mesh, edges, view, second, first, there, here, along_row)
                                     : find_silhouette(mesh, edges, view, first, second, here, there, along_row);
        if (edge >= 0) result[column] = 2 * edge + static_cast<int32_t>(swapped);
      }
    }
  });
}

void mesh_blend(const Mesh& mesh, const float* image, int64_t channels, const int32_t* silhouettes, float* result) {
  parallel_for(mesh.views * mesh.height, mesh.useful_threads(), [&](int64_t line) {
    const int64_t view = line / mesh.height, row = line % mesh.height, start = view * mesh.area() * channels;
    const int64_t offset = line * mesh.width * channels;
    std::copy_n(image + offset, mesh.width * channels, result + offset);
    for_crossings(mesh, silhouettes, view, row, [&](const Crossing& crossing) {
      if (crossing.target / mesh.width != row) return;
      const float* own = image + start + crossing.own * channels;
      const float* other = image + start + crossing.other * channels;
      float* target = result + start + crossing.target * channels;
      for (int64_t c = 0; c < channels; ++c) target[c] += crossing.weight * (other[c] - own[c]);
    });
  });
}

void mesh_blend_backward(const Mesh& mesh, const float* image, int64_t channels, const int32_t* silhouettes,
                         const float* d_result, float* d_image, float* d_positions) {
  const int threads = mesh.useful_threads();
  parallel_for(mesh.views * mesh.height, threads, [&](int64_t line) {
    const int64_t view = line / mesh.height, row = line % mesh.height, start = view * mesh.area() * channels;
    const int64_t offset = line * mesh.width * channels;
    std::copy_n(d_result + offset, mesh.width * channels, d_image + offset);
    for_crossings(mesh, silhouettes, view, row, [&](const Crossing& crossing) {
      const float* incoming = d_result + start + crossing.target * channels;
      const auto add = [&](int64_t pixel, float weight) {
        if (pixel / mesh.width != row) return;
        float* target = d_image + start + pixel * channels;
        for (int64_t c = 0; c < channels; ++c) target[c] += weight * incoming[c];
      };
      add(crossing.other, crossing.weight);
      add(crossing.own, -crossing.weight);
    });
  });
  if (d_positions == nullptr) return;
  parallel_for(mesh.views, threads, [&](int64_t view) {
    std::vector<double> totals(static_cast<size_t>(mesh.vertices * 3));
    const int64_t start = view * mesh.area() * channels;
    for (int64_t row = 0; row < mesh.height; ++row) {
      for_crossings(mesh, silhouettes, view, row, [&](const Crossing& crossing) {
        if (std::min(crossing.own, crossing.other) / mesh.width != row) return;  // met again in the next row
        const float* own = image + start + crossing.own * channels;
        const float* other = image + start + crossing.other * channels;
        const float* incoming = d_result + start + crossing.target * channels;
        double d_weight = 0.0;
        for (int64_t c = 0; c < channels; ++c) d_weight += static_cast<double>(incoming[c]) * (other[c] - own[c]);
        differentiate_edge(mesh, view, crossing, -d_weight, totals.data());
      });
    }
    write_gradients(totals.data(), 1, mesh.vertices, d_positions + view * mesh.vertices * 4);
  });
}

}  // namespace dreamkit
