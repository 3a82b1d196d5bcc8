// Blocks of one sample, compiled once per instruction set (see instruction_sets.h). The definitions are in
// reference.py. Included by residual.cpp.
#include "../simd.h"

namespace dreamkit {
namespace DREAMKIT_ISA {

// Plain loops: without overlap the compiler makes vectors of them.
void noise_block(const float* __restrict x, const float* __restrict noise, int64_t count, const float* levels,
                 float* __restrict out) {
  const float alpha = levels[0], sigma = levels[1];
  for (int64_t i = 0; i < count; ++i) out[i] = alpha * x[i] + sigma * noise[i];
}

void residual_block(const float* __restrict positive, const float* __restrict negative, const float* __restrict noisy,
                    const float* __restrict noise, int64_t count, const float* row, float* __restrict out,
                    float* __restrict clean) {
  const float scale = row[0], eps_noisy = row[1], eps_output = row[2];
  const float clean_noisy = row[3], clean_output = row[4], weight = row[5];
  for (int64_t i = 0; i < count; ++i) {
    const float output = negative[i] + scale * (positive[i] - negative[i]);
    out[i] = weight * (eps_noisy * noisy[i] + eps_output * output - noise[i]);
    clean[i] = clean_noisy * noisy[i] + clean_output * output;
  }
}

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
