// Compiles the header named by DREAMKIT_KERNELS (relative to this folder) once per instruction set, each time in a namespace of its own
// (DREAMKIT_ISA), and chooses between them at run time with DREAMKIT_CALL(function, arguments...).
//
// GCC's target_clones would be shorter, but GCC 12 splits vectors wider than the baseline's before it clones, and the
// AVX2 clone then works on halves. Standard headers must be included before this one, so that nothing of theirs is
// built for more than the baseline.
#pragma once

#define DREAMKIT_INLINE inline __attribute__((always_inline))

#if defined(__clang__) || __GNUC__ >= 12
#define DREAMKIT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define DREAMKIT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Int8{__VA_ARGS__})
#endif

#define DREAMKIT_ISA baseline
#include DREAMKIT_KERNELS
#undef DREAMKIT_ISA

#if defined(__x86_64__) && defined(__GNUC__)
#define DREAMKIT_X86 1

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
#endif
#define DREAMKIT_ISA avx2
#include DREAMKIT_KERNELS
#undef DREAMKIT_ISA
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,avx512f,avx512vl,avx512dq,avx512bw"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512vl,avx512dq,avx512bw")
#endif
#define DREAMKIT_ISA avx512
#include DREAMKIT_KERNELS
#undef DREAMKIT_ISA
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define DREAMKIT_CALL(function, ...)                                                        \
  do {                                                                                      \
    switch (instruction_set()) {                                                            \
      case InstructionSet::avx512: avx512::function(__VA_ARGS__); break;                    \
      case InstructionSet::avx2: avx2::function(__VA_ARGS__); break;                        \
      default: baseline::function(__VA_ARGS__);                                             \
    }                                                                                       \
  } while (false)
#else
#define DREAMKIT_CALL(function, ...) baseline::function(__VA_ARGS__)
#endif
