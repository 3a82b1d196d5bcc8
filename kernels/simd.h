// Eight-lane vectors through GCC / Clang vector extensions. No include guard: instruction_sets.h compiles this once per
// instruction set, in a namespace of its own, so that every helper is built for (and inlined into) that set's kernels.
#if !defined(DREAMKIT_ISA)
#error "include this through instruction_sets.h"
#endif

namespace dreamkit {
namespace DREAMKIT_ISA {

typedef float Float8 __attribute__((vector_size(32)));
typedef int32_t Int8 __attribute__((vector_size(32)));
typedef uint32_t UInt8 __attribute__((vector_size(32)));

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

// The first `count` floats of eight, then zeros; no other memory is touched.
DREAMKIT_INLINE Float8 load_some(const float* source, int count) {
  if (count >= LANES) return load(source);
  Float8 value{};
  std::memcpy(&value, source, sizeof(float) * static_cast<size_t>(count));
  return value;
}

DREAMKIT_INLINE void store(float* target, Float8 value) { std::memcpy(target, &value, sizeof(value)); }
DREAMKIT_INLINE void store(int32_t* target, Int8 value) { std::memcpy(target, &value, sizeof(value)); }

// scalar - {0, ...} is one broadcast instruction; a list of eight equal scalars becomes eight insertions.
DREAMKIT_INLINE Float8 splat(float value) { return value - Float8{}; }
DREAMKIT_INLINE Int8 splat(int32_t value) { return value - Int8{}; }

// Lanes of `value` where `mask` is all ones, zero elsewhere (NaN included).
DREAMKIT_INLINE Float8 keep(Int8 mask, Float8 value) { return (Float8)(mask & (Int8)value); }

DREAMKIT_INLINE Float8 minimum(Float8 a, Float8 b) { return a < b ? a : b; }
DREAMKIT_INLINE Float8 maximum(Float8 a, Float8 b) { return a > b ? a : b; }
DREAMKIT_INLINE Float8 absolute(Float8 a) { return (Float8)((Int8)a & splat(0x7fffffff)); }

DREAMKIT_INLINE Float8 square_root(Float8 value) {
#if defined(__AVX__)
  return _mm256_sqrt_ps(value);
#else
  Float8 result;
  for (int lane = 0; lane < LANES; ++lane) result[lane] = __builtin_sqrtf(value[lane]);
  return result;
#endif
}

// A bit for each lane whose mask is set.
DREAMKIT_INLINE uint32_t bits_of(Int8 mask) {
#if defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_ps((Float8)mask));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < LANES; ++lane) bits |= (static_cast<uint32_t>(mask[lane]) >> 31) << lane;
  return bits;
#endif
}

DREAMKIT_INLINE bool any(Int8 mask) { return bits_of(mask) != 0; }

// source[index] lane by lane.
DREAMKIT_INLINE Float8 gather(const float* source, Int8 index) {
#if defined(__AVX2__)
  return _mm256_i32gather_ps(source, (__m256i)index, 4);
#else
  Float8 result;
  for (int lane = 0; lane < LANES; ++lane) result[lane] = source[index[lane]];
  return result;
#endif
}

// 2^x for |x| <= 126, within 1 unit in the last place; other lanes hold garbage and must be masked.
DREAMKIT_INLINE Float8 exp2(Float8 x) {
  const Float8 shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds x to an integer in the low bits
  const Float8 shifted = x + shifter;
  const Float8 fraction = x - (shifted - shifter);  // in [-1/2, 1/2]
  Float8 p = splat(1.535336188319500e-4f);          // minimax polynomial of 2^f (Cephes exp2f)
  p = p * fraction + splat(1.339887440266574e-3f);
  p = p * fraction + splat(9.618437357674640e-3f);
  p = p * fraction + splat(5.550332471162809e-2f);
  p = p * fraction + splat(2.402264791363012e-1f);
  p = p * fraction + splat(6.931472028550421e-1f);
  p = p * fraction + splat(1.0f);
  return (Float8)((UInt8)p + ((UInt8)shifted << 23));  // unsigned: garbage lanes may wrap
}

// log2(x) for normal positive x, to about 1e-7; other lanes hold garbage and must be masked.
DREAMKIT_INLINE Float8 log2(Float8 x) {
  const Int8 bits = (Int8)x;
  const Float8 half = (Float8)((bits & splat(0x007fffff)) | splat(0x3f000000));  // mantissa in [1/2, 1)
  const Int8 small = half < splat(0.70710678118654752440f);
  const Float8 exponent = __builtin_convertvector((bits >> 23) - 126 + small, Float8);
  const Float8 m = half + keep(small, half) - splat(1.0f);  // in [sqrt(1/2) - 1, sqrt(2) - 1]
  const Float8 square = m * m;
  Float8 p = splat(7.0376836292e-2f);  // minimax polynomial of the natural logarithm (Cephes logf)
  p = p * m + splat(-1.1514610310e-1f);
  p = p * m + splat(1.1676998740e-1f);
  p = p * m + splat(-1.2420140846e-1f);
  p = p * m + splat(1.4249322787e-1f);
  p = p * m + splat(-1.6668057665e-1f);
  p = p * m + splat(2.0000714765e-1f);
  p = p * m + splat(-2.4999993993e-1f);
  p = p * m + splat(3.3333331174e-1f);
  const Float8 natural = m + (p * square * m - splat(0.5f) * square);
  return natural * splat(1.44269504088896340736f) + exponent;
}

// Smallest integer not below x, for 0 <= x < 2^31.
DREAMKIT_INLINE Float8 ceiling(Float8 x) {
  const Float8 truncated = __builtin_convertvector(__builtin_convertvector(x, Int8), Float8);
  return truncated + keep(truncated < x, splat(1.0f));
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

// Rows to columns and back: v[i][j] <-> v[j][i].
DREAMKIT_INLINE void transpose(Float8* v) {
  Float8 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = DREAMKIT_SHUFFLE(v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    a[i + 1] = DREAMKIT_SHUFFLE(v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = DREAMKIT_SHUFFLE(a[i], a[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    b[i + 1] = DREAMKIT_SHUFFLE(a[i], a[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    b[i + 2] = DREAMKIT_SHUFFLE(a[i + 1], a[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    b[i + 3] = DREAMKIT_SHUFFLE(a[i + 1], a[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = DREAMKIT_SHUFFLE(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    v[i + 4] = DREAMKIT_SHUFFLE(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// Eight consecutive rows of K floats as K columns. Only the first `lanes` rows exist; the last one stands for the rest.
template <int K>
DREAMKIT_INLINE void load_columns(const float* rows, int lanes, Float8* columns) {
  alignas(32) float scratch[K][LANES];
  for (int lane = 0; lane < LANES; ++lane) {
    const float* row = rows + static_cast<int64_t>(lane < lanes ? lane : lanes - 1) * K;
    for (int k = 0; k < K; ++k) scratch[k][lane] = row[k];
  }
  for (int k = 0; k < K; ++k) columns[k] = load(scratch[k]);
}

template <int K>
DREAMKIT_INLINE void store_columns(float* rows, int lanes, const Float8* columns) {
  alignas(32) float scratch[K][LANES];
  for (int k = 0; k < K; ++k) store(scratch[k], columns[k]);
  for (int lane = 0; lane < lanes; ++lane) {
    for (int k = 0; k < K; ++k) rows[lane * K + k] = scratch[k][lane];
  }
}

// The same for rows of eight floats, transposed in registers.
template <>
DREAMKIT_INLINE void load_columns<8>(const float* rows, int lanes, Float8* columns) {
  for (int lane = 0; lane < LANES; ++lane) columns[lane] = load(rows + (lane < lanes ? lane : lanes - 1) * 8);
  transpose(columns);
}

template <>
DREAMKIT_INLINE void store_columns<8>(float* rows, int lanes, const Float8* columns) {
  Float8 v[8];
  for (int k = 0; k < 8; ++k) v[k] = columns[k];
  transpose(v);
  for (int lane = 0; lane < lanes; ++lane) store(rows + lane * 8, v[lane]);
}

// The same for rows of three floats, sorted out in registers.
template <>
DREAMKIT_INLINE void load_columns<3>(const float* rows, int lanes, Float8* columns) {
  alignas(32) float scratch[3 * LANES];
  if (lanes < LANES) {
    for (int i = 0; i < 3 * LANES; ++i) scratch[i] = rows[i < 3 * lanes ? i : 3 * (lanes - 1) + i % 3];
    rows = scratch;
  }
  const Float8 a = load(rows), b = load(rows + LANES), c = load(rows + 2 * LANES);
  columns[0] = DREAMKIT_SHUFFLE(DREAMKIT_SHUFFLE(a, b, 0, 3, 6, 9, 12, 15, 0, 0), c, 0, 1, 2, 3, 4, 5, 10, 13);
  columns[1] = DREAMKIT_SHUFFLE(DREAMKIT_SHUFFLE(a, b, 1, 4, 7, 10, 13, 0, 0, 0), c, 0, 1, 2, 3, 4, 8, 11, 14);
  columns[2] = DREAMKIT_SHUFFLE(DREAMKIT_SHUFFLE(a, b, 2, 5, 8, 11, 14, 0, 0, 0), c, 0, 1, 2, 3, 4, 9, 12, 15);
}

struct Vec3 {
  Float8 x, y, z;
};

DREAMKIT_INLINE Vec3 operator+(const Vec3& a, const Vec3& b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
DREAMKIT_INLINE Vec3 operator-(const Vec3& a, const Vec3& b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
DREAMKIT_INLINE Vec3 operator*(Float8 s, const Vec3& a) { return {s * a.x, s * a.y, s * a.z}; }
DREAMKIT_INLINE Float8 dot(const Vec3& a, const Vec3& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
DREAMKIT_INLINE Vec3 cross(const Vec3& a, const Vec3& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
DREAMKIT_INLINE Vec3 keep(Int8 mask, const Vec3& a) { return {keep(mask, a.x), keep(mask, a.y), keep(mask, a.z)}; }
DREAMKIT_INLINE Vec3 splat3(const float* v) { return {splat(v[0]), splat(v[1]), splat(v[2])}; }

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
