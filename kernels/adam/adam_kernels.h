// A run of numbers of one tensor, compiled once per instruction set (see instruction_sets.h). The definition is
// reference.py. Included by adam.cpp.
#include "../simd.h"

namespace dreamkit {
namespace DREAMKIT_ISA {

DREAMKIT_INLINE void step_number(const AdamInputs& in, const AdamTensor& tensor, int64_t i) {
  const float gradient = tensor.gradient[i];
  const float first = in.beta_first * tensor.first[i] + in.rest_first * gradient;
  const float second = in.beta_second * tensor.second[i] + in.rest_second * gradient * gradient;
  tensor.first[i] = first;
  tensor.second[i] = second;
  tensor.parameter[i] -= tensor.size * first / (__builtin_sqrtf(second) / in.correction + in.eps);
}

void step_run(const AdamInputs& in, const AdamTensor& tensor, int64_t begin, int64_t end) {
  const Float8 beta_first = splat(in.beta_first), beta_second = splat(in.beta_second);
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES) {
    const Float8 gradient = load(tensor.gradient + i);
    const Float8 first = beta_first * load(tensor.first + i) + splat(in.rest_first) * gradient;
    const Float8 second = beta_second * load(tensor.second + i) + splat(in.rest_second) * gradient * gradient;
    store(tensor.first + i, first);
    store(tensor.second + i, second);
    const Float8 root = square_root(second) / splat(in.correction) + splat(in.eps);
    store(tensor.parameter + i, load(tensor.parameter + i) - splat(tensor.size) * first / root);
  }
  for (; i < end; ++i) step_number(in, tensor, i);
}

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
