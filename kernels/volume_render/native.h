// Shared by the native kernels of volume_render.
#pragma once

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

// Number of kept intervals of every ray.
void march_count(const MarchInputs& in, int64_t* counts);
// Starts and ends of the kept intervals, at the places that `offsets` [N + 1] says.
void march_fill(const MarchInputs& in, const int64_t* offsets, float* starts, float* ends);

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
