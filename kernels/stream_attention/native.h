// Shared by the native kernels of stream_attention.
#pragma once

#include "../common.h"

namespace dreamkit {

// What the kernels of every precision know about their arrays.
struct AttentionLayout {
  int64_t batch, queries, stored, heads, dim;  // stored: tokens that k and v hold
  int64_t tokens;                              // of a frame
  int64_t frames;                              // visible ones
  const int64_t* frame;                        // [frames], which frame of k and v each of them is
  const float* q_turn;  // [Nq, D / 2, 2] cos and sin of the angle of each pair
  const float* k_turn;  // [Nk, D / 2, 2], Nk = frames * tokens
  const bool* blocks;   // [B, H, ceil(Nq / s), ceil(Nk / s)] which blocks are computed, or null for all
  int64_t block;        // s
  int threads;

  int64_t keys() const { return frames * tokens; }
  int64_t query_place(int64_t sample, int64_t head, int64_t query) const {
    return ((sample * queries + query) * heads + head) * dim;
  }
  int64_t key_place(int64_t sample, int64_t head, int64_t key) const {
    const int64_t token = frame[key / tokens] * tokens + key % tokens;
    return ((sample * stored + token) * heads + head) * dim;
  }
};

template <class T>
struct AttentionArrays : AttentionLayout {
  const T* q;  // [B, Nq, H, D]
  const T* k;  // [B, stored, H, D]
  const T* v;
};

struct AttentionInputs : AttentionArrays<float> {
  bool rounded = false;  // queries and keys are rounded to bfloat16 once they are turned
};

using Bfloat16 = uint16_t;  // the upper half of a float32
using HalfInputs = AttentionArrays<Bfloat16>;

// out [B, Nq, H, D] and the logarithm to base 2 of the softmax's denominator [B, H, Nq].
void attention_forward(const AttentionInputs& in, float* out, float* log_sum);

// The same on bfloat16: products of bfloat16, sums in float32. Blocks are not read.
void attention_forward_half(const HalfInputs& in, Bfloat16* out, float* log_sum);

// Whether this processor multiplies bfloat16; without that `attention_forward_half` must not be called.
bool has_bfloat16();

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
