// Shared by the native kernels of noise_residual.
#pragma once

#include "../common.h"

namespace dreamkit {

// Samples are rows [batch, size].
struct NoiseInputs {
  int64_t batch, size;
  const float* x;
  const float* noise;
  const float* levels;  // [batch, 2] alpha, sigma
  int threads;
};

struct ResidualInputs {
  int64_t batch, size;
  const float* positive;
  const float* negative;
  const float* noisy;
  const float* noise;
  const float* table;  // [batch, 6] scale, eps_noisy, eps_output, clean_noisy, clean_output, weight
  int threads;
};

void add_noise(const NoiseInputs& in, float* out);
void guided_residual(const ResidualInputs& in, float* out, float* clean);

}  // namespace dreamkit
