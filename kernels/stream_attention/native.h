// Shared by the native kernels of stream_attention.
#pragma once

#include "../common.h"

namespace dreamkit {

struct AttentionInputs {
  int64_t batch, queries, stored, heads, dim;  // stored: tokens that k and v hold
  int64_t tokens;                              // of a frame
  int64_t frames;                              // visible ones
  const int64_t* frame;                        // [frames], which frame of k and v each of them is
  const float* q;                              // [B, Nq, H, D]
  const float* k;                              // [B, stored, H, D]
  const float* v;
  const float* q_turn;  // [Nq, D / 2, 2] cos and sin of the angle of each pair
  const float* k_turn;  // [Nk, D / 2, 2], Nk = frames * tokens
  const bool* blocks;   // [B, H, ceil(Nq / s), ceil(Nk / s)] which blocks are computed, or null for all
  int64_t block;        // s
  int threads;
};

// out [B, Nq, H, D] and the logarithm to base 2 of the softmax's denominator [B, H, Nq].
void attention_forward(const AttentionInputs& in, float* out, float* log_sum);

struct AttentionGradients {
  const float* out;      // [B, Nq, H, D]
  const float* log_sum;  // [B, H, Nq]
  const float* d_out;    // [B, Nq, H, D]
  float* d_q;            // [B, Nq, H, D]
  float* d_k;            // [B, stored, H, D], cleared by the caller
  float* d_v;
};

void attention_backward(const AttentionInputs& in, const AttentionGradients& gradients);

}  // namespace dreamkit
