// Which instruction set the kernels use on this processor.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "common.h"

namespace dreamkit {
namespace {

constexpr const char* NAMES[] = {"baseline", "avx2", "avx512"};

InstructionSet detect() {
  int best = 0;
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    best = 1;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
      best = 2;
    }
  }
#endif
  if (const char* wanted = std::getenv("DREAMKIT_SIMD")) {
    for (int i = 0; i < 3; ++i) {
      if (std::strcmp(wanted, NAMES[i]) == 0) best = std::min(best, i);
    }
  }
  return static_cast<InstructionSet>(best);
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet found = detect();
  return found;
}

const char* instruction_set_name() { return NAMES[static_cast<int>(instruction_set())]; }

}  // namespace dreamkit
