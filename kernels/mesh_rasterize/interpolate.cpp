// Attributes of vertices to pixels and back.
#include <vector>

#include "native.h"

namespace dreamkit {
namespace {

const float* attribute(const Mesh& mesh, const Attributes& a, int64_t view, int32_t vertex) {
  return a.values + ((a.sets > 1 ? view : 0) * mesh.vertices + vertex) * a.channels;
}

struct Corners {
  const int32_t* numbers;
  const float* values[3];
};

Corners corners_of(const Mesh& mesh, const Attributes& a, int64_t view, int32_t face) {
  Corners corners{mesh.corners + 3 * static_cast<int64_t>(face), {}};
  for (int i = 0; i < 3; ++i) corners.values[i] = attribute(mesh, a, view, corners.numbers[i]);
  return corners;
}

}  // namespace

void mesh_interpolate(const Mesh& mesh, const Attributes& a, const int32_t* seen, const float* barycentrics,
                      float* image) {
  parallel_for(mesh.views * mesh.height, mesh.useful_threads(), [&](int64_t row) {
    for (int64_t pixel = row * mesh.width; pixel < (row + 1) * mesh.width; ++pixel) {
      float* target = image + pixel * a.channels;
      if (seen[pixel] < 0) {
        std::fill(target, target + a.channels, 0.0f);
        continue;
      }
      const Corners corners = corners_of(mesh, a, row / mesh.height, seen[pixel]);
      const float* b = barycentrics + pixel * 3;
      for (int64_t c = 0; c < a.channels; ++c) {
        target[c] = b[0] * corners.values[0][c] + b[1] * corners.values[1][c] + b[2] * corners.values[2][c];
      }
    }
  });
}

void mesh_interpolate_backward(const Mesh& mesh, const Attributes& a, const int32_t* seen, const float* barycentrics,
                               const float* d_image, float* d_attributes, float* d_barycentrics) {
  const int64_t bands = band_count(mesh.views, mesh.height, mesh.width, mesh.vertices);
  const int64_t tasks = mesh.views * bands, size = mesh.vertices * a.channels;
  Buffer<double> sums(static_cast<size_t>(d_attributes == nullptr ? 0 : tasks * size));
  parallel_for(tasks, mesh.useful_threads(), [&](int64_t task) {
    const int64_t view = task / bands, band = task % bands, start = view * mesh.area();
    const int64_t first = start + mesh.height * band / bands * mesh.width;
    const int64_t last = start + mesh.height * (band + 1) / bands * mesh.width;
    double* totals = sums.data() + (d_attributes == nullptr ? 0 : task * size);
    if (d_attributes != nullptr) std::fill(totals, totals + size, 0.0);
    for (int64_t pixel = first; pixel < last; ++pixel) {
      const bool there = seen[pixel] >= 0;
      if (!there && d_barycentrics != nullptr) std::fill_n(d_barycentrics + pixel * 3, 3, 0.0f);
      if (!there) continue;
      const Corners corners = corners_of(mesh, a, view, seen[pixel]);
      const float* incoming = d_image + pixel * a.channels;
      for (int i = 0; i < 3; ++i) {
        float along = 0.0f;
        for (int64_t c = 0; c < a.channels; ++c) along += incoming[c] * corners.values[i][c];
        if (d_barycentrics != nullptr) d_barycentrics[pixel * 3 + i] = along;
        if (d_attributes == nullptr) continue;
        const double weight = barycentrics[pixel * 3 + i];
        double* row = totals + corners.numbers[i] * a.channels;
        for (int64_t c = 0; c < a.channels; ++c) row[c] += weight * incoming[c];
      }
    }
  });
  if (d_attributes == nullptr) return;
  const int64_t parts = a.sets > 1 ? bands : tasks;
  parallel_for(a.sets, mesh.useful_threads(), [&](int64_t set) {
    for (int64_t i = 0; i < size; ++i) {
      double total = 0.0;
      for (int64_t part = 0; part < parts; ++part) total += sums[(set * parts + part) * size + i];
      d_attributes[set * size + i] = static_cast<float>(total);
    }
  });
}

}  // namespace dreamkit
