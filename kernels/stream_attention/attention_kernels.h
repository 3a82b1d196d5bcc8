// The inner loops of attention, compiled once per instruction set (see instruction_sets.h). Included by attend.cpp.
//
// Matrices are row-major with rows padded to 16 floats, so that the one product below serves all seven products of
// the forward and the backward pass.
#include "../simd.h"

namespace dreamkit {
namespace DREAMKIT_ISA {

constexpr int WIDE = 2 * LANES;  // columns of C that stay in registers

// C[R, 16] (+)= A[R, depth] B[depth, 16].
template <int R>
DREAMKIT_INLINE void product_rows(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
                                  int64_t c_stride, int64_t depth, bool add) {
  Float8 sum[R][2];
  for (int r = 0; r < R; ++r) {
    sum[r][0] = add ? load(c + r * c_stride) : Float8{};
    sum[r][1] = add ? load(c + r * c_stride + LANES) : Float8{};
  }
  for (int64_t i = 0; i < depth; ++i) {
    const Float8 left = load(b + i * b_stride), right = load(b + i * b_stride + LANES);
    for (int r = 0; r < R; ++r) {
      const Float8 factor = splat(a[r * a_stride + i]);
      sum[r][0] += factor * left;
      sum[r][1] += factor * right;
    }
  }
  for (int r = 0; r < R; ++r) {
    store(c + r * c_stride, sum[r][0]);
    store(c + r * c_stride + LANES, sum[r][1]);
  }
}

// C[rows, columns] (+)= A[rows, depth] B[depth, columns], columns a multiple of 16.
void product(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride,
             int64_t rows, int64_t columns, int64_t depth, bool add) {
  for (int64_t column = 0; column < columns; column += WIDE) {
    const float* right = b + column;
    int64_t row = 0;
    for (; row + 6 <= rows; row += 6) {
      product_rows<6>(a + row * a_stride, a_stride, right, b_stride, c + row * c_stride + column, c_stride, depth, add);
    }
    const float* left = a + row * a_stride;
    float* target = c + row * c_stride + column;
    switch (rows - row) {
      case 5: product_rows<5>(left, a_stride, right, b_stride, target, c_stride, depth, add); break;
      case 4: product_rows<4>(left, a_stride, right, b_stride, target, c_stride, depth, add); break;
      case 3: product_rows<3>(left, a_stride, right, b_stride, target, c_stride, depth, add); break;
      case 2: product_rows<2>(left, a_stride, right, b_stride, target, c_stride, depth, add); break;
      case 1: product_rows<1>(left, a_stride, right, b_stride, target, c_stride, depth, add); break;
      default: break;
    }
  }
}

// A row's pairs (a, b) turned to (a cos - b sin, a sin + b cos), all times a factor; `turn` holds cosine and sine of
// every pair side by side.
void turn_row(const float* source, const float* turn, float factor, int64_t dim, float* target) {
  const Float8 signs{-1.0f, 1.0f, -1.0f, 1.0f, -1.0f, 1.0f, -1.0f, 1.0f};
  int64_t d = 0;
  for (; d + LANES <= dim; d += LANES) {
    const Float8 x = load(source + d), y = load(turn + d) * splat(factor);
    const Float8 cosines = DREAMKIT_SHUFFLE(y, y, 0, 0, 2, 2, 4, 4, 6, 6);
    const Float8 sines = DREAMKIT_SHUFFLE(y, y, 1, 1, 3, 3, 5, 5, 7, 7) * signs;
    store(target + d, x * cosines + DREAMKIT_SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6) * sines);
  }
  for (; d < dim; d += 2) {
    const float cos = turn[d] * factor, sin = turn[d + 1] * factor, a = source[d], b = source[d + 1];
    target[d] = a * cos - b * sin;
    target[d + 1] = a * sin + b * cos;
  }
}

// Every number [count, a multiple of 8] to the nearest bfloat16, ties to even; NaN stays NaN.
void round_row(float* row, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES) {
    const Float8 x = load(row + i);
    const UInt8 bits = (UInt8)x, odd = (bits >> 16) & 1u;
    const Float8 near = (Float8)((bits + (odd + 0x7fffu)) & 0xffff0000u);
    store(row + i, x == x ? near : x);
  }
}

// Rows [count, width] to columns [dim, stride], eight by eight: up to seven rows and columns more than there are are
// read, and seven more places of every column written.
void transpose_rows(const float* rows, int64_t width, int64_t count, int64_t dim, float* columns, int64_t stride) {
  for (int64_t d = 0; d < dim; d += LANES) {
    const int64_t wanted = dim - d < LANES ? dim - d : LANES;
    for (int64_t i = 0; i < count; i += LANES) {
      Float8 block[LANES];
      for (int lane = 0; lane < LANES; ++lane) block[lane] = load(rows + (i + lane) * width + d);
      transpose(block);
      for (int64_t j = 0; j < wanted; ++j) store(columns + (d + j) * stride + i, block[j]);
    }
  }
}

// One step of the running softmax of a row: scores s [columns] to weights 2^(s - highest) in place, of which only the
// first `count` exist. Returns the factor on what was added up before.
DREAMKIT_INLINE float soften(float* s, int64_t count, int64_t columns, float& highest, float& total) {
  const float least = -3.4028235e38f;
  for (int64_t i = count; i < columns; ++i) s[i] = least;
  Float8 top = splat(highest);
  for (int64_t i = 0; i < columns; i += LANES) top = maximum(top, load(s + i));
  float peak = top[0];
  for (int lane = 1; lane < LANES; ++lane) peak = top[lane] > peak ? top[lane] : peak;
  const Float8 shift = splat(peak);
  Float8 sums{};
  for (int64_t i = 0; i < columns; i += LANES) {
    const Float8 x = load(s + i) - shift;
    const Float8 weight = keep(x >= splat(-126.0f), exp2(maximum(x, splat(-126.0f))));
    store(s + i, weight);
    sums += weight;
  }
  const float before = highest - peak;
  const float factor = before >= -126.0f ? exp2(splat(before))[0] : 0.0f;
  highest = peak;
  total = total * factor + horizontal_sum(sums);
  return factor;
}

void soften_rows(float* s, int64_t rows, int64_t count, int64_t columns, float* highest, float* total, float* out,
                 int64_t out_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    const float factor = soften(s + row * columns, count, columns, highest[row], total[row]);
    if (factor == 1.0f) continue;
    float* sums = out + row * out_stride;
    for (int64_t i = 0; i < out_stride; i += LANES) store(sums + i, load(sums + i) * splat(factor));
  }
}

// Weights 2^(s - log_sum) and the gradient of the scores w (d_w - delta), both in place; columns are queries.
void weigh_columns(float* s, float* d_w, int64_t rows, int64_t columns, const float* log_sum, const float* delta) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = row * columns, column = 0; column < columns; column += LANES, i += LANES) {
      const Float8 x = load(s + i) - load(log_sum + column);
      const Float8 weight = keep(x >= splat(-126.0f), exp2(minimum(maximum(x, splat(-126.0f)), splat(126.0f))));
      store(s + i, weight);
      store(d_w + i, weight * (load(d_w + i) - load(delta + column)));
    }
  }
}

// The same where rows are queries.
void weigh_rows(float* s, float* d_w, int64_t rows, int64_t columns, const float* log_sum, const float* delta) {
  for (int64_t row = 0; row < rows; ++row) {
    const Float8 shift = splat(log_sum[row]), mean = splat(delta[row]);
    for (int64_t i = row * columns; i < (row + 1) * columns; i += LANES) {
      const Float8 x = load(s + i) - shift;
      const Float8 weight = keep(x >= splat(-126.0f), exp2(minimum(maximum(x, splat(-126.0f)), splat(126.0f))));
      store(s + i, weight);
      store(d_w + i, weight * (load(d_w + i) - mean));
    }
  }
}

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
