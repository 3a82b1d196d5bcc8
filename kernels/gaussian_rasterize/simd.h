// Eight-lane vectors through GCC / Clang vector extensions. No include guard: instruction_sets.h compiles this once per
// instruction set, in a namespace of its own, so that every helper is built for (and inlined into) that set's kernels.
#if !defined(DREAMKIT_ISA)
#error "include this through instruction_sets.h"
#endif

namespace dreamkit {
namespace DREAMKIT_ISA {

typedef float Float8 __attribute__((vector_size(32)));
typedef int32_t Int8 __attribute__((vector_size(32)));

DREAMKIT_INLINE Float8 load(const float* source) {
  Float8 value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

DREAMKIT_INLINE Int8 load(const int32_t* source) {
  Int8 value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

DREAMKIT_INLINE void store(float* target, Float8 value) { std::memcpy(target, &value, sizeof(value)); }
DREAMKIT_INLINE void store(int32_t* target, Int8 value) { std::memcpy(target, &value, sizeof(value)); }

// scalar - {0, ...} is one broadcast instruction; a list of eight equal scalars becomes eight insertions.
DREAMKIT_INLINE Float8 splat(float value) { return value - Float8{}; }
DREAMKIT_INLINE Int8 splat(int32_t value) { return value - Int8{}; }

// Lanes of `value` where `mask` is all ones, zero elsewhere.
DREAMKIT_INLINE Float8 keep(Int8 mask, Float8 value) { return (Float8)(mask & (Int8)value); }

DREAMKIT_INLINE Float8 minimum(Float8 a, Float8 b) { return a < b ? a : b; }
DREAMKIT_INLINE Float8 maximum(Float8 a, Float8 b) { return a > b ? a : b; }
DREAMKIT_INLINE Float8 absolute(Float8 a) { return (Float8)((Int8)a & splat(0x7fffffff)); }

DREAMKIT_INLINE Float8 square_root(Float8 value) {
  Float8 result;
  for (int lane = 0; lane < LANES; ++lane) result[lane] = __builtin_sqrtf(value[lane]);
  return result;
}

// 2^x for |x| <= 126, within 1 unit in the last place; other lanes hold garbage and must be masked.
DREAMKIT_INLINE Float8 exp2(Float8 x) {
  const Float8 shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds x to an integer in the low bits
  const Float8 shifted = x + shifter;
  const Float8 fraction = x - (shifted - shifter);  // in [-1/2, 1/2]
  Float8 p = splat(1.535336188319500e-4f);           // minimax polynomial of 2^f (Cephes exp2f)
  p = p * fraction + splat(1.339887440266574e-3f);
  p = p * fraction + splat(9.618437357674640e-3f);
  p = p * fraction + splat(5.550332471162809e-2f);
  p = p * fraction + splat(2.402264791363012e-1f);
  p = p * fraction + splat(6.931472028550421e-1f);
  p = p * fraction + splat(1.0f);
  return (Float8)((Int8)p + ((Int8)shifted << 23));
}

// The eight horizontal sums of eight vectors, in order.
DREAMKIT_INLINE Float8 horizontal_sums(const Float8* v) {
  Float8 pairs[4], quads[2];
  for (int i = 0; i < 4; ++i) {
    const Float8 a = v[2 * i], b = v[2 * i + 1];
    pairs[i] = DREAMKIT_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + DREAMKIT_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 2; ++i) {
    const Float8 a = pairs[2 * i], b = pairs[2 * i + 1];
    quads[i] = DREAMKIT_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + DREAMKIT_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  const Float8 a = quads[0], b = quads[1];
  return DREAMKIT_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + DREAMKIT_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}

DREAMKIT_INLINE float horizontal_sum(Float8 v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
