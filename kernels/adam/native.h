// Shared by the native kernel of adam.
#pragma once

#include <vector>

#include "../common.h"

namespace dreamkit {

// One tensor of `count` rows.
struct AdamTensor {
  int64_t width;  // numbers of a row
  float* parameter;
  const float* gradient;
  float* first;
  float* second;
  float size;  // of its step
};

struct AdamInputs {
  int64_t count;
  std::vector<AdamTensor> tensors;
  const bool* rows;  // [count], or null for all
  float beta_first, beta_second, rest_first, rest_second, eps, correction;  // rest is 1 - beta
  int threads;
};

void adam_step(const AdamInputs& in);

}  // namespace dreamkit
