// Shared by the native kernels of modulate.
#pragma once

#include "../common.h"

namespace dreamkit {

struct ModulateInputs {
  int64_t batch, tokens, dim;
  const float* x;      // [B, N, D]
  const float* scale;  // [B, D]
  const float* shift;  // [B, D]
  float eps;
  int threads;
};

struct ModulateGradients {
  const float* d_out;  // [B, N, D]
  float* d_x;          // [B, N, D]
  float* d_scale;      // [B, D]
  float* d_shift;      // [B, D]
};

void modulate_forward(const ModulateInputs& in, float* out);
void modulate_backward(const ModulateInputs& in, const ModulateGradients& gradients);

}  // namespace dreamkit
