// Python bindings of stream_attention.
#include "native.h"

#include <algorithm>
#include <vector>

#include "../bindings.h"

namespace dreamkit {
namespace {

using Frames = Array<const int64_t>;
using Blocks = Array<const bool>;
using Halves = Array<const Bfloat16>;

// Fills in what the arrays' shapes say and checks that they agree, so that no kernel reaches outside of them.
template <class T>
void fill(AttentionArrays<T>& in, const Array<const T>& q, const Array<const T>& k, const Array<const T>& v,
          const Input& q_turn, const Input& k_turn, const Frames& frames, int threads) {
  in.batch = size_of(q, 0);
  in.queries = size_of(q, 1);
  in.heads = size_of(q, 2);
  in.dim = size_of(q, 3);
  in.stored = size_of(k, 1);
  in.frames = size_of(frames, 0);
  const int64_t keys = size_of(k_turn, 0);
  if (in.dim < 2 || in.dim > 256 || in.dim % 2 != 0) throw std::invalid_argument("the head dimension");
  if (in.frames > 0 && (keys % in.frames != 0 || keys == 0)) throw std::invalid_argument("k_turn has the wrong shape");
  in.tokens = in.frames > 0 ? keys / in.frames : 1;
  if (in.frames == 0 && keys != 0) throw std::invalid_argument("k_turn has the wrong shape");
  if (in.stored % in.tokens != 0) throw std::invalid_argument("k must hold whole frames");
  in.q = data_of(q, "q", {in.batch, in.queries, in.heads, in.dim});
  in.k = data_of(k, "k", {in.batch, in.stored, in.heads, in.dim});
  in.v = data_of(v, "v", {in.batch, in.stored, in.heads, in.dim});
  in.q_turn = data_of(q_turn, "q_turn", {in.queries, in.dim});
  in.k_turn = data_of(k_turn, "k_turn", {keys, in.dim});
  in.frame = data_of(frames, "frames", {in.frames});
  // Each stored frame at most once: threads write the gradients of theirs.
  std::vector<int64_t> sorted(in.frame, in.frame + in.frames);
  std::sort(sorted.begin(), sorted.end());
  const bool distinct = std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
  const bool inside = in.frames == 0 || (sorted.front() >= 0 && sorted.back() < in.stored / in.tokens);
  if (!distinct || !inside) throw std::invalid_argument("frames must be distinct and stored");
  in.blocks = nullptr;
  in.block = 1;
  in.threads = std::max(1, threads);
}

AttentionInputs attention_inputs(const Input& q, const Input& k, const Input& v, const Input& q_turn,
                                 const Input& k_turn, const Frames& frames, const Maybe<Blocks>& blocks, int64_t block,
                                 bool rounded, int threads) {
  AttentionInputs in{};
  fill(in, q, k, v, q_turn, k_turn, frames, threads);
  if (block < 1) throw std::invalid_argument("block must be positive");
  in.block = block;
  in.blocks = data_of(blocks, "blocks",
                      {in.batch, in.heads, (in.queries + block - 1) / block, (in.keys() + block - 1) / block});
  in.rounded = rounded;
  return in;
}

void bind_attention_forward(const Input& q, const Input& k, const Input& v, const Input& q_turn, const Input& k_turn,
                            const Frames& frames, const Maybe<Blocks>& blocks, int64_t block, bool rounded,
                            const Output& out, const Output& log_sum, int threads) {
  const AttentionInputs in = attention_inputs(q, k, v, q_turn, k_turn, frames, blocks, block, rounded, threads);
  float* result = data_of(out, "out", {in.batch, in.queries, in.heads, in.dim});
  float* sums = data_of(log_sum, "log_sum", {in.batch, in.heads, in.queries});
  nb::gil_scoped_release release;
  attention_forward(in, result, sums);
}

void bind_attention_forward_half(const Halves& q, const Halves& k, const Halves& v, const Input& q_turn,
                                 const Input& k_turn, const Frames& frames, const Array<Bfloat16>& out,
                                 const Output& log_sum, int threads) {
  HalfInputs in{};
  fill(in, q, k, v, q_turn, k_turn, frames, threads);
  if (!has_bfloat16()) throw std::invalid_argument("this processor does not multiply bfloat16");
  Bfloat16* result = data_of(out, "out", {in.batch, in.queries, in.heads, in.dim});
  float* sums = data_of(log_sum, "log_sum", {in.batch, in.heads, in.queries});
  nb::gil_scoped_release release;
  attention_forward_half(in, result, sums);
}

void bind_attention_backward(const Input& q, const Input& k, const Input& v, const Input& q_turn, const Input& k_turn,
                             const Frames& frames, const Maybe<Blocks>& blocks, int64_t block, bool rounded,
                             const Input& out, const Input& log_sum, const Input& d_out, const Output& d_q,
                             const Output& d_k, const Output& d_v, int threads) {
  const AttentionInputs in = attention_inputs(q, k, v, q_turn, k_turn, frames, blocks, block, rounded, threads);
  const AttentionGradients gradients{data_of(out, "out", {in.batch, in.queries, in.heads, in.dim}),
                                     data_of(log_sum, "log_sum", {in.batch, in.heads, in.queries}),
                                     data_of(d_out, "d_out", {in.batch, in.queries, in.heads, in.dim}),
                                     data_of(d_q, "d_q", {in.batch, in.queries, in.heads, in.dim}),
                                     data_of(d_k, "d_k", {in.batch, in.stored, in.heads, in.dim}),
                                     data_of(d_v, "d_v", {in.batch, in.stored, in.heads, in.dim})};
  nb::gil_scoped_release release;
  attention_backward(in, gradients);
}

}  // namespace

void bind_stream_attention(nb::module_& module) {
  define(module, "has_bfloat16", &has_bfloat16);
  define(module, "attention_forward", &bind_attention_forward);
  define(module, "attention_forward_half", &bind_attention_forward_half);
  define(module, "attention_backward", &bind_attention_backward);
}

}  // namespace dreamkit
