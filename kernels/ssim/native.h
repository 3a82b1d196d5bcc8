// Shared by the native kernels of ssim.
#pragma once

#include "../common.h"

namespace dreamkit {

struct SsimInputs {
  int64_t planes, height, width;
  const float* x;       // [planes, H, W]
  const float* y;       // [planes, H, W]
  const float* window;  // [11]
  int threads;
};

void ssim_forward(const SsimInputs& in, float* map);
// Either gradient may be null.
void ssim_backward(const SsimInputs& in, const float* d_map, float* d_x, float* d_y);

}  // namespace dreamkit
