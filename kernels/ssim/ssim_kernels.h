// Rows of structural similarity, compiled once per instruction set (see instruction_sets.h). The definition is
// reference.py. Included by ssim.cpp.
#include "../simd.h"

namespace dreamkit {
namespace DREAMKIT_ISA {

// Weighted sum of eleven vectors `stride` floats apart.
DREAMKIT_INLINE Float8 taps(const float* source, int64_t stride, const float* window) {
  Float8 sum{};
  for (int tap = 0; tap < SSIM_WINDOW; ++tap) sum += splat(window[tap]) * load(source + tap * stride);
  return sum;
}

// Means along a row of x, y, x x, y y, x y: rows of `in` and `out` are `stride` floats apart. `in` holds x and y with
// five zeros before them, and is given room for the products.
void blur_products(float* in, const float* window, int64_t width, int64_t stride, float* out) {
  for (int64_t i = 0; i < stride; i += LANES) {
    const Float8 x = load(in + i), y = load(in + stride + i);
    store(in + 2 * stride + i, x * x);
    store(in + 3 * stride + i, y * y);
    store(in + 4 * stride + i, x * y);
  }
  for (int quantity = 0; quantity < 5; ++quantity) {
    const float* source = in + quantity * stride;
    for (int64_t i = 0; i < width; i += LANES) store(out + quantity * stride + i, taps(source + i, 1, window));
  }
}

// Means along rows of three maps.
void blur_maps(const float* in, const float* window, int64_t width, int64_t stride, float* out) {
  for (int map = 0; map < 3; ++map) {
    for (int64_t i = 0; i < width; i += LANES) {
      store(out + map * stride + i, taps(in + map * stride + i, 1, window));
    }
  }
}

// What a row of means over the whole window says: rows[q] are eleven rows of quantity q, `rise` floats apart.
struct Similarity {
  Float8 value, d_mean_x, d_mean_y, d_square, d_product;
};

DREAMKIT_INLINE Similarity compare(const float* rows, int64_t stride, int64_t rise, const float* window) {
  const Float8 mx = taps(rows, rise, window), my = taps(rows + stride, rise, window);
  const Float8 xx = taps(rows + 2 * stride, rise, window) - mx * mx;
  const Float8 yy = taps(rows + 3 * stride, rise, window) - my * my;
  const Float8 xy = taps(rows + 4 * stride, rise, window) - mx * my;
  const Float8 n1 = 2.0f * mx * my + splat(SSIM_C1), n2 = 2.0f * xy + splat(SSIM_C2);
  const Float8 d1 = mx * mx + my * my + splat(SSIM_C1), d2 = xx + yy + splat(SSIM_C2);
  const Float8 inverse = splat(1.0f) / (d1 * d2), value = n1 * n2 * inverse;
  const Float8 d_square = -value * d1 * inverse, d_product = 2.0f * n1 * inverse;
  const Float8 shared = 2.0f * n2 * inverse, own = 2.0f * value * d2 * inverse;
  return {value, shared * my - own * mx - 2.0f * d_square * mx - d_product * my,
          shared * mx - own * my - 2.0f * d_square * my - d_product * mx, d_square, d_product};
}

void similarity_row(const float* rows, int64_t stride, int64_t rise, const float* window, int64_t width, float* map) {
  for (int64_t i = 0; i < width; i += LANES) {
    const Float8 value = compare(rows + i, stride, rise, window).value;
    if (i + LANES <= width) {
      store(map + i, value);
    } else {
      for (int64_t lane = 0; lane < width - i; ++lane) map[i + lane] = value[lane];
    }
  }
}

// g dS/d(mean of one picture), g dS/d(mean of its square) and g dS/d(mean of the product), with g the gradient of the
// map; three rows `stride` floats apart with five zeros before each. `second`: of y instead of x.
void slope_row(const float* rows, int64_t stride, int64_t rise, const float* window, int64_t width, const float* d_map,
               bool second, float* out) {
  alignas(32) float rest[LANES] = {};
  for (int64_t i = 0; i < width; i += LANES) {
    const bool whole = i + LANES <= width;
    if (!whole) std::memcpy(rest, d_map + i, sizeof(float) * static_cast<size_t>(width - i));
    const Float8 g = whole ? load(d_map + i) : load(rest);
    const Similarity s = compare(rows + i, stride, rise, window);
    store(out + SSIM_REACH + i, g * (second ? s.d_mean_y : s.d_mean_x));
    store(out + stride + SSIM_REACH + i, g * s.d_square);
    store(out + 2 * stride + SSIM_REACH + i, g * s.d_product);
  }
  for (int map = 0; map < 3; ++map) {  // a whole vector may have been written beyond the end
    for (int64_t i = SSIM_REACH + width; i < stride; ++i) out[map * stride + i] = 0.0f;
  }
}

// G * a + 2 own (G * b) + other (G * c) of a row.
void gather_row(const float* rows, int64_t stride, int64_t rise, const float* window, int64_t width, const float* own,
                const float* other, float* gradient) {
  alignas(32) float left[LANES] = {}, right[LANES] = {};
  for (int64_t i = 0; i < width; i += LANES) {
    const bool whole = i + LANES <= width;
    const size_t bytes = sizeof(float) * static_cast<size_t>(whole ? LANES : width - i);
    if (!whole) {
      std::memcpy(left, own + i, bytes);
      std::memcpy(right, other + i, bytes);
    }
    const Float8 a = taps(rows + i, rise, window), b = taps(rows + stride + i, rise, window),
                 c = taps(rows + 2 * stride + i, rise, window);
    const Float8 value = a + 2.0f * (whole ? load(own + i) : load(left)) * b + (whole ? load(other + i) : load(right)) * c;
    store(left, value);
    std::memcpy(gradient + i, left, bytes);
  }
}

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
