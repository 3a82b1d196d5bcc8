// Volume rendering: marching, resampling, and rays over threads. Every ray belongs to one thread, so the bits do not
// depend on the thread count.
#include <algorithm>
#include <cmath>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

namespace dreamkit {
namespace {

// A ray, and those of its steps whose interval may be kept: with the middle in the box, and one to spare on both sides.
struct MarchRange {
  const float *origin, *direction;
  float shift;
  int64_t first, last;
};

MarchRange march_range(const MarchInputs& in, int64_t ray) {
  const float *o = in.origins + 3 * ray, *d = in.directions + 3 * ray;
  MarchRange range{o, d, in.jitter == nullptr ? 0.0f : in.jitter[ray], 0, 0};
  bool finite = std::isfinite(range.shift);
  double enter = in.near, leave = in.far;
  for (int axis = 0; axis < 3; ++axis) {
    finite = finite && std::isfinite(o[axis]) && std::isfinite(d[axis]);
    if (d[axis] == 0.0f) {
      if (!(o[axis] >= in.low[axis] && o[axis] <= in.high[axis])) leave = enter - 1.0;
      continue;
    }
    const double a = (static_cast<double>(in.low[axis]) - o[axis]) / d[axis];
    const double b = (static_cast<double>(in.high[axis]) - o[axis]) / d[axis];
    enter = std::max(enter, std::min(a, b));
    leave = std::min(leave, std::max(a, b));
  }
  if (!finite || !(enter <= leave)) return range;
  const double begin = (enter - in.near) / in.step - range.shift - 1.5;
  const double end = (leave - in.near) / in.step - range.shift + 1.5;
  range.first = static_cast<int64_t>(std::clamp(std::floor(begin), 0.0, static_cast<double>(in.steps)));
  range.last = static_cast<int64_t>(std::clamp(std::ceil(end), 0.0, static_cast<double>(in.steps)));
  return range;
}

}  // namespace
}  // namespace dreamkit

#define DREAMKIT_KERNELS "volume_render/ray_kernels.h"
#include "../instruction_sets.h"

namespace dreamkit {
namespace {

constexpr int64_t CHUNK = 64;                 // rays
constexpr int64_t PARALLEL_THRESHOLD = 4096;  // samples (or edges) below which waking threads does not pay

template <class Body>
void for_rays(int64_t rays, int64_t work, int threads, Body body) {
  parallel_for((rays + CHUNK - 1) / CHUNK, work < PARALLEL_THRESHOLD ? 1 : std::max(1, threads),
               [&](int64_t i) { body(i * CHUNK, std::min(rays, (i + 1) * CHUNK)); });
}

}  // namespace

MarchedRays march_count(const MarchInputs& in, int64_t* counts) {
  MarchedRays found;
  found.step = in.step;
  found.chunks.resize(static_cast<size_t>((in.count + CHUNK - 1) / CHUNK));
  for_rays(in.count, in.count * in.steps, in.threads, [&](int64_t begin, int64_t end) {
    DREAMKIT_CALL(find_steps, in, begin, end, counts, found.chunks[static_cast<size_t>(begin / CHUNK)]);
  });
  for (const FoundSteps& chunk : found.chunks) found.total += chunk.size;
  return found;
}

void march_fill(const MarchedRays& found, float* starts, float* ends, int threads) {
  std::vector<size_t> places;
  size_t total = 0;
  for (const FoundSteps& chunk : found.chunks) {
    places.push_back(total);
    total += chunk.size;
  }
  const bool small = total < static_cast<size_t>(PARALLEL_THRESHOLD);
  parallel_for(static_cast<int64_t>(places.size()), small ? 1 : std::max(1, threads), [&](int64_t i) {
    const FoundSteps& chunk = found.chunks[static_cast<size_t>(i)];
    const size_t place = places[static_cast<size_t>(i)];
    for (size_t k = 0; k < chunk.size; ++k) {
      starts[place + k] = chunk.starts[k];
      ends[place + k] = chunk.starts[k] + found.step;
    }
  });
}

void weights_forward(const SampleInputs& in, const float* densities, float* weights) {
  for_rays(in.rays, in.count, in.threads, [&](int64_t begin, int64_t end) {
    DREAMKIT_CALL(weigh_rays, in, begin, end, densities, weights);
  });
}

void weights_backward(const SampleInputs& in, const float* densities, const float* weights, const float* d_weights,
                      float* d_densities) {
  for_rays(in.rays, in.count, in.threads, [&](int64_t begin, int64_t end) {
    DREAMKIT_CALL(weigh_rays_backward, in, begin, end, densities, weights, d_weights, d_densities);
  });
}

void accumulate_forward(const SampleInputs& in, const float* weights, const float* values, int64_t channels,
                        float* total) {
  for_rays(in.rays, in.count, in.threads, [&](int64_t begin, int64_t end) {
    DREAMKIT_CALL(accumulate_rays, in, begin, end, weights, values, channels, total);
  });
}

void accumulate_backward(const SampleInputs& in, const float* weights, const float* values, int64_t channels,
                         const float* d_total, float* d_weights, float* d_values) {
  for_rays(in.rays, in.count, in.threads, [&](int64_t begin, int64_t end) {
    DREAMKIT_CALL(accumulate_rays_backward, in, begin, end, weights, values, channels, d_total, d_weights, d_values);
  });
}

void distortion_forward(const SampleInputs& in, const float* weights, float* loss) {
  for_rays(in.rays, in.count, in.threads, [&](int64_t begin, int64_t end) {
    DREAMKIT_CALL(distort_rays, in, begin, end, weights, loss);
  });
}

void distortion_backward(const SampleInputs& in, const float* weights, const float* d_loss, float* d_weights) {
  for_rays(in.rays, in.count, in.threads, [&](int64_t begin, int64_t end) {
    DREAMKIT_CALL(distort_rays_backward, in, begin, end, weights, d_loss, d_weights);
  });
}

void resample(const ResampleInputs& in, float* edges) {
  for_rays(in.rays, in.rays * (in.bins + in.count), in.threads, [&](int64_t begin, int64_t end) {
    Buffer<float> sums(static_cast<size_t>((in.bins + 1) * LANES));
    Buffer<int32_t> marks(static_cast<size_t>((in.count + 2) * LANES));
    DREAMKIT_CALL(resample_rays, in, begin, end, sums.data(), marks.data(), edges);
  });
}

}  // namespace dreamkit
