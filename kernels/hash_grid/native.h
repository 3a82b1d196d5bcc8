// Shared by the native kernels of hash_grid.
#pragma once

#include "../common.h"

namespace dreamkit {

// A row of what types.py calls a plan.
struct HashLevel {
  float scale, shift;
  int32_t resolution;  // 0: hashed
  int32_t size;        // entries; a power of two where hashed
  int64_t offset;      // first entry
};

constexpr int MAX_LEVELS = 64;

struct HashInputs {
  int64_t count;
  int dims, features, levels;
  bool smoothstep;
  HashLevel level[MAX_LEVELS];
  const float* positions;  // [N, D]
  const float* table;      // [T, F]
  int threads;
};

// encoded [N, L * F].
void hash_forward(const HashInputs& in, float* encoded);

// Gradients of the table (cleared first) and of the positions from that of the code; either may be null.
void hash_backward(const HashInputs& in, const float* d_encoded, float* d_table, float* d_positions);

// Gradients of s = sum v . d_positions, the backward pass of the gradient of the positions: of the code's gradient
// [N, L * F], of the table (cleared first; may be null) and of the positions.
void hash_second(const HashInputs& in, const float* d_encoded, const float* v, float* d_d_encoded, float* d_table,
                 float* d_positions);

}  // namespace dreamkit
