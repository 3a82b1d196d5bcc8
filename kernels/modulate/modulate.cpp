// The modulated layer norm: rows over threads, backward samples over threads. Each sum belongs to one thread, so the
// bits do not depend on the thread count.
#include <algorithm>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

#define DREAMKIT_KERNELS "modulate/modulate_kernels.h"
#include "../instruction_sets.h"

namespace dreamkit {
namespace {

constexpr int64_t CHUNK = 64;                  // tokens
constexpr int64_t PARALLEL_THRESHOLD = 32768;  // numbers below which waking threads does not pay

int useful_threads(const ModulateInputs& in) {
  return in.batch * in.tokens * in.dim < PARALLEL_THRESHOLD ? 1 : std::max(1, in.threads);
}

}  // namespace

void modulate_forward(const ModulateInputs& in, float* out) {
  const int64_t chunks = (in.tokens + CHUNK - 1) / CHUNK;
  parallel_for(in.batch * chunks, useful_threads(in), [&](int64_t i) {
    const int64_t begin = i % chunks * CHUNK, end = std::min(in.tokens, begin + CHUNK);
    DREAMKIT_CALL(modulate_rows, in, i / chunks, begin, end, out);
  });
}

void modulate_backward(const ModulateInputs& in, const ModulateGradients& gradients) {
  parallel_for(in.batch, useful_threads(in),
               [&](int64_t sample) { DREAMKIT_CALL(modulate_sample_backward, in, sample, gradients); });
}

}  // namespace dreamkit
