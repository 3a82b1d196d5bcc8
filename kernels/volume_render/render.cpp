// Volume rendering: marching, resampling, and rays over threads. Every ray belongs to one thread, so the bits do not
// depend on the thread count.
#include <algorithm>
#include <cmath>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

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

// Steps of `ray` whose interval may be kept: those with the middle in the box, with one to spare on both sides.
void box_range(const MarchInputs& in, const float* o, const float* d, float shift, int64_t* first, int64_t* last) {
  double enter = in.near, leave = in.far;
  for (int axis = 0; axis < 3; ++axis) {
    if (d[axis] == 0.0f) {
      if (!(o[axis] >= in.low[axis] && o[axis] <= in.high[axis])) leave = enter - 1.0;
      continue;
    }
    const double a = (static_cast<double>(in.low[axis]) - o[axis]) / d[axis];
    const double b = (static_cast<double>(in.high[axis]) - o[axis]) / d[axis];
    enter = std::max(enter, std::min(a, b));
    leave = std::min(leave, std::max(a, b));
  }
  *first = *last = 0;
  if (!(enter <= leave)) return;
  const double begin = (enter - in.near) / in.step - shift - 1.5, end = (leave - in.near) / in.step - shift + 1.5;
  *first = static_cast<int64_t>(std::clamp(std::floor(begin), 0.0, static_cast<double>(in.steps)));
  *last = static_cast<int64_t>(std::clamp(std::ceil(end), 0.0, static_cast<double>(in.steps)));
}

// Calls keep(start) for every kept interval of a ray, in order.
template <class Keep>
void march_ray(const MarchInputs& in, int64_t ray, Keep keep) {
  const float* o = in.origins + 3 * ray;
  const float* d = in.directions + 3 * ray;
  const float shift = in.jitter == nullptr ? 0.0f : in.jitter[ray];
  bool finite = std::isfinite(shift);
  for (int axis = 0; axis < 3; ++axis) finite = finite && std::isfinite(o[axis]) && std::isfinite(d[axis]);
  if (!finite) return;
  float scale[3];
  for (int axis = 0; axis < 3; ++axis) scale[axis] = in.high[axis] - in.low[axis];
  int64_t first, last;
  box_range(in, o, d, shift, &first, &last);
  for (int64_t k = first; k < last; ++k) {
    const float start = in.near + (static_cast<float>(k) + shift) * in.step;
    const float middle = start + 0.5f * in.step;
    if (!(middle < in.far)) return;
    int64_t cell = 0;
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) {
      const float place = (o[axis] + middle * d[axis] - in.low[axis]) / scale[axis] * static_cast<float>(in.size[axis]);
      inside = inside && place >= 0.0f && place < static_cast<float>(in.size[axis]);
      if (inside) cell = cell * in.size[axis] + static_cast<int64_t>(place);
    }
    if (inside && in.occupied[cell]) keep(start);
  }
}

void resample_ray(const ResampleInputs& in, int64_t ray, float* result) {
  const float* edges = in.edges + ray * (in.bins + 1);
  const float* weights = in.weights + ray * in.bins;
  const float shift = in.jitter == nullptr ? 0.5f : in.jitter[ray];
  float total = 0.0f;
  for (int64_t bin = 0; bin < in.bins; ++bin) total += weights[bin] + in.padding;
  int64_t bin = 0;
  float low = 0.0f, sum = weights[0] + in.padding, high = sum / total;
  for (int64_t k = 0; k <= in.count; ++k) {
    const float u = (static_cast<float>(k) + shift) / static_cast<float>(in.count + 1);
    while (bin + 1 < in.bins && !(high > u)) {
      ++bin;
      low = high;
      sum += weights[bin] + in.padding;
      high = sum / total;
    }
    const float share = std::clamp((u - low) / std::max(high - low, 1.17549435e-38f), 0.0f, 1.0f);
    result[k] = edges[bin] + share * (edges[bin + 1] - edges[bin]);
  }
}

}  // namespace

void march_count(const MarchInputs& in, int64_t* counts) {
  for_rays(in.count, in.count * in.steps, in.threads, [&](int64_t begin, int64_t end) {
    for (int64_t ray = begin; ray < end; ++ray) {
      int64_t kept = 0;
      march_ray(in, ray, [&](float) { ++kept; });
      counts[ray] = kept;
    }
  });
}

void march_fill(const MarchInputs& in, const int64_t* offsets, float* starts, float* ends) {
  for_rays(in.count, in.count * in.steps, in.threads, [&](int64_t begin, int64_t end) {
    for (int64_t ray = begin; ray < end; ++ray) {
      int64_t place = offsets[ray];
      march_ray(in, ray, [&](float start) {
        if (place >= offsets[ray + 1]) return;  // offsets of another march
        starts[place] = start;
        ends[place] = start + in.step;
        ++place;
      });
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
    for (int64_t ray = begin; ray < end; ++ray) resample_ray(in, ray, edges + ray * (in.count + 1));
  });
}

}  // namespace dreamkit
