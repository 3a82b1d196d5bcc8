// Shared by the native kernels of volume_render.
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "../common.h"

namespace dreamkit {

struct MarchInputs {
  int64_t count;
  const float* origins;     // [N, 3]
  const float* directions;  // [N, 3]
  const bool* occupied;     // [X, Y, Z]
  int64_t size[3];
  float low[3], high[3];
  float step, near, far;
  int64_t steps;        // ceil((far - near) / step)
  const float* jitter;  // [N], or null for none
  int threads;
};

// Starts of the intervals that some rays keep, one ray after another.
struct FoundSteps {
  Buffer<float> starts;
  size_t size = 0, capacity = 0;

  // Where the next ones go; there is room for a vector.
  float* room() {
    if (size + LANES > capacity) {
      capacity = 2 * capacity + 1024;
      Buffer<float> larger(capacity);
      if (size > 0) std::memcpy(larger.data(), starts.data(), sizeof(float) * size);
      starts = std::move(larger);
    }
    return starts.data() + size;
  }
};

// What all rays keep. Nobody knows how much that is before it is found, so it is copied where it belongs afterwards.
struct MarchedRays {
  std::vector<FoundSteps> chunks;
  float step;
  size_t total = 0;

  MarchedRays() = default;
  MarchedRays(MarchedRays&&) = default;
  MarchedRays(const MarchedRays&) = delete;  // a vector of move-only items claims to be copyable
};

// The intervals that rays keep, and their number for every ray.
MarchedRays march_count(const MarchInputs& in, int64_t* counts);
void march_fill(const MarchedRays& found, float* starts, float* ends, int threads);

struct SampleInputs {
  int64_t rays, count;
  const float* starts;     // [S]
  const float* ends;       // [S]
  const int64_t* offsets;  // [N + 1]
  int threads;
};

void weights_forward(const SampleInputs& in, const float* densities, float* weights);
void weights_backward(const SampleInputs& in, const float* densities, const float* weights, const float* d_weights,
                      float* d_densities);

void accumulate_forward(const SampleInputs& in, const float* weights, const float* values, int64_t channels,
                        float* total);
// Either gradient may be null.
void accumulate_backward(const SampleInputs& in, const float* weights, const float* values, int64_t channels,
                         const float* d_total, float* d_weights, float* d_values);

void distortion_forward(const SampleInputs& in, const float* weights, float* loss);
void distortion_backward(const SampleInputs& in, const float* weights, const float* d_loss, float* d_weights);

struct ResampleInputs {
  int64_t rays, bins, count;
  const float* edges;    // [N, B + 1]
  const float* weights;  // [N, B]
  const float* jitter;   // [N], or null for one half
  float padding;
  int threads;
};

void resample(const ResampleInputs& in, float* edges);

}  // namespace dreamkit
