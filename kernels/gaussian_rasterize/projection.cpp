// Projection and colours of all Gaussians in all views: constants per view, chunks over threads, pose gradients.
//
// A chunk is a fixed number of Gaussians and visits every view in order, so each Gaussian's gradient is one thread's
// sum in a fixed order, and pose gradients are partial sums per chunk added in chunk order: the bits do not depend on
// the thread count.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

namespace dreamkit {

struct ViewConstants {
  float rotation[9];     // world to camera, row-major
  float translation[3];
  float center[3];       // camera position in the world
  float focal_x, focal_y, center_x, center_y;
  float low_x, high_x, low_y, high_y;  // clamps of x / z and y / z in the Jacobian
};

}  // namespace dreamkit

#define DREAMKIT_KERNELS "gaussian_rasterize/gaussian_kernels.h"
#include "../instruction_sets.h"

namespace dreamkit {
namespace {

constexpr int64_t CHUNK = 512;  // Gaussians; a multiple of the lanes
constexpr int64_t PARALLEL_THRESHOLD = 4096;  // Gaussian-view pairs below which waking threads does not pay

int useful_threads(int64_t views, int64_t count, int threads) {
  return views * count < PARALLEL_THRESHOLD ? 1 : std::max(1, threads);
}

// The camera position -R^T t.
void camera_center(const float* matrix, float* center) {
  for (int axis = 0; axis < 3; ++axis) {
    center[axis] = -(matrix[axis] * matrix[3] + matrix[4 + axis] * matrix[7] + matrix[8 + axis] * matrix[11]);
  }
}

std::vector<ViewConstants> view_constants(const ProjectionInputs& in) {
  std::vector<ViewConstants> views(in.views);
  for (int64_t view = 0; view < in.views; ++view) {
    const float* matrix = in.view_matrices + 16 * view;
    const float* intrinsics = in.intrinsics + 9 * view;
    ViewConstants& v = views[view];
    for (int row = 0; row < 3; ++row) {
      std::copy_n(matrix + 4 * row, 3, v.rotation + 3 * row);
      v.translation[row] = matrix[4 * row + 3];
    }
    camera_center(matrix, v.center);
    v.focal_x = intrinsics[0];
    v.focal_y = intrinsics[4];
    v.center_x = intrinsics[2];
    v.center_y = intrinsics[5];
    const float margin_x = 0.15f * in.width / v.focal_x, margin_y = 0.15f * in.height / v.focal_y;
    v.low_x = -(v.center_x / v.focal_x + margin_x);
    v.high_x = (in.width - v.center_x) / v.focal_x + margin_x;
    v.low_y = -(v.center_y / v.focal_y + margin_y);
    v.high_y = (in.height - v.center_y) / v.focal_y + margin_y;
  }
  return views;
}

// Run body(begin, end, chunk, scratch) over chunks; `scratch` is `scratch_floats` zeroed floats, or null for 0.
template <class Body>
void for_chunks(int64_t count, int threads, int64_t scratch_floats, Body body) {
  parallel_for((count + CHUNK - 1) / CHUNK, threads, [&](int64_t chunk) {
    Buffer<float> scratch(scratch_floats);
    std::fill_n(scratch.data(), scratch_floats, 0.0f);
    body(chunk * CHUNK, std::min(count, (chunk + 1) * CHUNK), chunk, scratch_floats == 0 ? nullptr : scratch.data());
  });
}

// Sum of per-chunk rows of `width` floats, in chunk order.
std::vector<double> sum_chunks(const std::vector<float>& rows, int64_t width) {
  std::vector<double> total(width, 0.0);
  for (size_t i = 0; i < rows.size(); ++i) total[i % width] += rows[i];
  return total;
}

}  // namespace

void project_forward(const ProjectionInputs& in, const ProjectionOutputs& out) {
  const std::vector<ViewConstants> views = view_constants(in);
  for_chunks(in.count, useful_threads(in.views, in.count, in.threads), 0,
             [&](int64_t begin, int64_t end, int64_t, float*) {
               DREAMKIT_CALL(project_range_forward, in, out, views.data(), begin, end);
             });
}

void project_backward(const ProjectionInputs& in, const int32_t* radii, const ProjectionGradients& gradients) {
  const std::vector<ViewConstants> views = view_constants(in);
  const bool pose = gradients.view_matrices != nullptr;
  const int64_t width = pose ? 12 * in.views : 0, chunks = (in.count + CHUNK - 1) / CHUNK;
  std::vector<float> rows(width * chunks);
  for_chunks(in.count, useful_threads(in.views, in.count, in.threads), width * LANES,
             [&](int64_t begin, int64_t end, int64_t chunk, float* scratch) {
               DREAMKIT_CALL(project_range_backward, in, radii, gradients, views.data(), begin, end, scratch,
                             rows.data() + width * chunk);
             });
  if (!pose) return;
  const std::vector<double> total = sum_chunks(rows, width);
  std::fill_n(gradients.view_matrices, 16 * in.views, 0.0f);
  for (int64_t view = 0; view < in.views; ++view) {
    float* matrix = gradients.view_matrices + 16 * view;
    for (int row = 0; row < 3; ++row) {
      for (int column = 0; column < 3; ++column) {
        matrix[4 * row + column] = static_cast<float>(total[12 * view + 3 * row + column]);
      }
      matrix[4 * row + 3] = static_cast<float>(total[12 * view + 9 + row]);
    }
  }
}

void shade_forward(const ShadeInputs& in, float* colors) {
  std::vector<float> centers(3 * in.views);
  for (int64_t view = 0; view < in.views; ++view) camera_center(in.view_matrices + 16 * view, &centers[3 * view]);
  for_chunks(in.count, useful_threads(in.views, in.count, in.threads), 0,
             [&](int64_t begin, int64_t end, int64_t, float*) {
               DREAMKIT_CALL(shade_range_forward, in, centers.data(), colors, begin, end);
             });
}

void shade_backward(const ShadeInputs& in, const ShadeGradients& gradients) {
  std::vector<float> centers(3 * in.views);
  for (int64_t view = 0; view < in.views; ++view) camera_center(in.view_matrices + 16 * view, &centers[3 * view]);
  const bool pose = gradients.view_matrices != nullptr;
  const int64_t width = pose ? 3 * in.views : 0, chunks = (in.count + CHUNK - 1) / CHUNK;
  std::vector<float> rows(width * chunks);
  for_chunks(in.count, useful_threads(in.views, in.count, in.threads), width * LANES,
             [&](int64_t begin, int64_t end, int64_t chunk, float* scratch) {
               DREAMKIT_CALL(shade_range_backward, in, gradients, centers.data(), begin, end, scratch,
                             rows.data() + width * chunk);
             });
  if (!pose) return;
  const std::vector<double> total = sum_chunks(rows, width);
  std::fill_n(gradients.view_matrices, 16 * in.views, 0.0f);
  for (int64_t view = 0; view < in.views; ++view) {  // center = -R^T t
    const float* matrix = in.view_matrices + 16 * view;
    float* result = gradients.view_matrices + 16 * view;
    for (int row = 0; row < 3; ++row) {
      double translation = 0.0;
      for (int column = 0; column < 3; ++column) {
        const double d_center = total[3 * view + column];
        result[4 * row + column] = static_cast<float>(-matrix[4 * row + 3] * d_center);
        translation -= matrix[4 * row + column] * d_center;
      }
      result[4 * row + 3] = static_cast<float>(translation);
    }
  }
}

}  // namespace dreamkit
