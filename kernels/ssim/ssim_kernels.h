// Rows of structural similarity, compiled once per instruction set (see instruction_sets.h). The definition is
// reference.py. Included by ssim.cpp.
#include "../simd.h"

namespace dreamkit {
namespace DREAMKIT_ISA {

// The weights of the window, which is symmetric: its ends first, its middle last. In registers: read from memory they
// would be as many loads as the pixels, for the compiler can't know that no store changes them.
struct Weights {
  Float8 of[SSIM_REACH + 1];
};

DREAMKIT_INLINE Weights weights_of(const float* window) {
  Weights weights;
  for (int tap = 0; tap <= SSIM_REACH; ++tap) weights.of[tap] = splat(window[tap]);
  return weights;
}

// Weighted sum of eleven vectors `stride` floats apart.
DREAMKIT_INLINE Float8 taps(const float* source, int64_t stride, const Weights& weights) {
  Float8 sum = weights.of[SSIM_REACH] * load(source + SSIM_REACH * stride);
  for (int tap = 0; tap < SSIM_REACH; ++tap) {
    sum += weights.of[tap] * (load(source + tap * stride) + load(source + (SSIM_WINDOW - 1 - tap) * stride));
  }
  return sum;
}

// Means along a row of x, y, x x + y y and x y: rows of `in` and `out` are `stride` floats apart. `in` holds x and y
// with five zeros before them, and is given room for the products.
void blur_products(float* in, const float* window, int64_t width, int64_t stride, float* out) {
  const Weights weights = weights_of(window);
  for (int64_t i = 0; i < stride; i += LANES) {
    const Float8 x = load(in + i), y = load(in + stride + i);
    store(in + 2 * stride + i, x * x + y * y);
    store(in + 3 * stride + i, x * y);
  }
  for (int quantity = 0; quantity < SSIM_SUMS; ++quantity) {
    const float* source = in + quantity * stride;
    for (int64_t i = 0; i < width; i += LANES) store(out + quantity * stride + i, taps(source + i, 1, weights));
  }
}

// Means along rows of some maps.
void blur_maps(const float* in, const float* window, int64_t width, int64_t stride, int maps, float* out) {
  const Weights weights = weights_of(window);
  for (int map = 0; map < maps; ++map) {
    for (int64_t i = 0; i < width; i += LANES) {
      store(out + map * stride + i, taps(in + map * stride + i, 1, weights));
    }
  }
}

// What a row of means over the whole window says: rows[q] are eleven rows of quantity q, `rise` floats apart.
struct Similarity {
  Float8 value, d_square, d_product, d_mean_x, d_mean_y;
};

DREAMKIT_INLINE Similarity compare(const float* rows, int64_t stride, int64_t rise, const Weights& weights) {
  const Float8 mx = taps(rows, rise, weights), my = taps(rows + stride, rise, weights);
  const Float8 squares = mx * mx + my * my;
  const Float8 variances = taps(rows + 2 * stride, rise, weights) - squares;
  const Float8 xy = taps(rows + 3 * stride, rise, weights) - mx * my;
  const Float8 n1 = 2.0f * mx * my + splat(SSIM_C1), n2 = 2.0f * xy + splat(SSIM_C2);
  const Float8 d1 = squares + splat(SSIM_C1), d2 = variances + splat(SSIM_C2);
  const Float8 inverse = splat(1.0f) / (d1 * d2), value = n1 * n2 * inverse;
  const Float8 d_square = -value * d1 * inverse, d_product = 2.0f * n1 * inverse;
  const Float8 shared = 2.0f * n2 * inverse - d_product, own = 2.0f * (value * d2 * inverse + d_square);
  return {value, d_square, d_product, shared * my - own * mx, shared * mx - own * my};
}

void similarity_row(const float* rows, int64_t stride, int64_t rise, const float* window, int64_t width, float* map) {
  const Weights weights = weights_of(window);
  for (int64_t i = 0; i < width; i += LANES) {
    const Float8 value = compare(rows + i, stride, rise, weights).value;
    if (i + LANES <= width) {
      store(map + i, value);
    } else {
      for (int64_t lane = 0; lane < width - i; ++lane) map[i + lane] = value[lane];
    }
  }
}

// g dS/d(mean of the squares), g dS/d(mean of the product) and g dS/d(mean of a picture) for x, y or both, with g the
// gradient of the map; rows `stride` floats apart with five zeros before each.
void slope_row(const float* rows, int64_t stride, int64_t rise, const float* window, int64_t width, const float* d_map,
               bool of_x, bool of_y, float* out) {
  const Weights weights = weights_of(window);
  alignas(32) float rest[LANES] = {};
  float *d_square = out + SSIM_REACH, *d_product = d_square + stride, *d_first = d_product + stride;
  for (int64_t i = 0; i < width; i += LANES) {
    const bool whole = i + LANES <= width;
    if (!whole) std::memcpy(rest, d_map + i, sizeof(float) * static_cast<size_t>(width - i));
    const Float8 g = whole ? load(d_map + i) : load(rest);  // beyond the end zero, and so is what is stored there
    const Similarity s = compare(rows + i, stride, rise, weights);
    store(d_square + i, g * s.d_square);
    store(d_product + i, g * s.d_product);
    store(d_first + i, g * (of_x ? s.d_mean_x : s.d_mean_y));
    if (of_x && of_y) store(d_first + stride + i, g * s.d_mean_y);
  }
}

// 2 own (G * d_square) + other (G * d_product) + G * d_mean of a row, for x, y or both; either target may be null.
void gather_row(const float* rows, int64_t stride, int64_t rise, const float* window, int64_t width, const float* x,
                const float* y, float* d_x, float* d_y) {
  const Weights weights = weights_of(window);
  alignas(32) float rest[2][LANES] = {};
  for (int64_t i = 0; i < width; i += LANES) {
    const bool whole = i + LANES <= width;
    const size_t bytes = sizeof(float) * static_cast<size_t>(whole ? LANES : width - i);
    if (!whole) {
      std::memcpy(rest[0], x + i, bytes);
      std::memcpy(rest[1], y + i, bytes);
    }
    const Float8 left = whole ? load(x + i) : load(rest[0]), right = whole ? load(y + i) : load(rest[1]);
    const Float8 square = 2.0f * taps(rows + i, rise, weights), product = taps(rows + stride + i, rise, weights);
    const auto add = [&](Float8 own, Float8 other, const float* d_mean, float* target) {
      const Float8 value = own * square + other * product + taps(d_mean + i, rise, weights);
      std::memcpy(target + i, &value, bytes);
    };
    if (d_x != nullptr) add(left, right, rows + 2 * stride, d_x);
    if (d_y != nullptr) add(right, left, rows + (d_x != nullptr ? 3 : 2) * stride, d_y);
  }
}

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
