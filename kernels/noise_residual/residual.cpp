// Elementwise passes, blocks of samples over threads.
#include <algorithm>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

#define DREAMKIT_KERNELS "noise_residual/residual_kernels.h"
#include "../instruction_sets.h"

namespace dreamkit {
namespace {

constexpr int64_t BLOCK = 16384;               // numbers
constexpr int64_t PARALLEL_THRESHOLD = 65536;  // numbers below which waking threads does not pay

// Calls body(sample, first number, count).
template <class Body>
void for_blocks(int64_t batch, int64_t size, int threads, Body body) {
  const int64_t blocks = (size + BLOCK - 1) / BLOCK;
  parallel_for(batch * blocks, batch * size < PARALLEL_THRESHOLD ? 1 : std::max(1, threads), [&](int64_t i) {
    const int64_t first = i % blocks * BLOCK;
    body(i / blocks, i / blocks * size + first, std::min(BLOCK, size - first));
  });
}

}  // namespace

void add_noise(const NoiseInputs& in, float* out) {
  for_blocks(in.batch, in.size, in.threads, [&](int64_t sample, int64_t at, int64_t count) {
    DREAMKIT_CALL(noise_block, in.x + at, in.noise + at, count, in.levels + 2 * sample, out + at);
  });
}

void guided_residual(const ResidualInputs& in, float* out, float* clean) {
  for_blocks(in.batch, in.size, in.threads, [&](int64_t sample, int64_t at, int64_t count) {
    DREAMKIT_CALL(residual_block, in.positive + at, in.negative + at, in.noisy + at, in.noise + at, count,
                  in.table + 6 * sample, out + at, clean + at);
  });
}

}  // namespace dreamkit
