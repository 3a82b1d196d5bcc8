// Rows of the modulated layer norm, compiled once per instruction set (see instruction_sets.h). The definition is
// reference.py. Included by modulate.cpp.
#include "../simd.h"

namespace dreamkit {
namespace DREAMKIT_ISA {

struct Moments {
  float mean, inverse;  // of the row, and one over its standard deviation
};

// Two passes: the sum of squares minus the square of the sum would cancel.
DREAMKIT_INLINE Moments moments_of(const float* row, int64_t dim, float eps) {
  Float8 sums{};
  int64_t i = 0;
  for (; i + LANES <= dim; i += LANES) sums += load(row + i);
  float total = horizontal_sum(sums);
  for (; i < dim; ++i) total += row[i];
  const float mean = total / static_cast<float>(dim);
  Float8 squares{};
  for (i = 0; i + LANES <= dim; i += LANES) {
    const Float8 centred = load(row + i) - splat(mean);
    squares += centred * centred;
  }
  float variance = horizontal_sum(squares);
  for (; i < dim; ++i) variance += (row[i] - mean) * (row[i] - mean);
  return {mean, 1.0f / __builtin_sqrtf(variance / static_cast<float>(dim) + eps)};
}

void modulate_rows(const ModulateInputs& in, int64_t sample, int64_t begin, int64_t end, float* out) {
  const float* scale = in.scale + sample * in.dim;
  const float* shift = in.shift + sample * in.dim;
  for (int64_t token = begin; token < end; ++token) {
    const int64_t place = (sample * in.tokens + token) * in.dim;
    const float* row = in.x + place;
    const Moments m = moments_of(row, in.dim, in.eps);
    int64_t i = 0;
    for (; i + LANES <= in.dim; i += LANES) {
      const Float8 normal = (load(row + i) - splat(m.mean)) * splat(m.inverse);
      store(out + place + i, normal * (load(scale + i) + splat(1.0f)) + load(shift + i));
    }
    for (; i < in.dim; ++i) out[place + i] = (row[i] - m.mean) * m.inverse * (scale[i] + 1.0f) + shift[i];
  }
}

// With n the normalised row and h = d_out (1 + scale):  d_x = (h - mean(h) - n mean(h n)) / std,
// d_scale = sum over tokens of d_out n,  d_shift = sum over tokens of d_out.
void modulate_sample_backward(const ModulateInputs& in, int64_t sample, const ModulateGradients& g) {
  const float* scale = in.scale + sample * in.dim;
  float* d_scale = g.d_scale + sample * in.dim;
  float* d_shift = g.d_shift + sample * in.dim;
  for (int64_t i = 0; i < in.dim; ++i) d_scale[i] = d_shift[i] = 0.0f;
  for (int64_t token = 0; token < in.tokens; ++token) {
    const int64_t place = (sample * in.tokens + token) * in.dim;
    const float* row = in.x + place;
    const float* d_out = g.d_out + place;
    const Moments m = moments_of(row, in.dim, in.eps);
    Float8 plain{}, along{};
    float rest_plain = 0.0f, rest_along = 0.0f;
    int64_t i = 0;
    for (; i + LANES <= in.dim; i += LANES) {
      const Float8 normal = (load(row + i) - splat(m.mean)) * splat(m.inverse), d = load(d_out + i);
      const Float8 h = d * (load(scale + i) + splat(1.0f));
      plain += h;
      along += h * normal;
      store(d_scale + i, load(d_scale + i) + d * normal);
      store(d_shift + i, load(d_shift + i) + d);
    }
    for (; i < in.dim; ++i) {
      const float normal = (row[i] - m.mean) * m.inverse, h = d_out[i] * (scale[i] + 1.0f);
      rest_plain += h;
      rest_along += h * normal;
      d_scale[i] += d_out[i] * normal;
      d_shift[i] += d_out[i];
    }
    const float count = static_cast<float>(in.dim);
    const float mean = (horizontal_sum(plain) + rest_plain) / count, slope = (horizontal_sum(along) + rest_along) / count;
    for (i = 0; i + LANES <= in.dim; i += LANES) {
      const Float8 normal = (load(row + i) - splat(m.mean)) * splat(m.inverse);
      const Float8 h = load(d_out + i) * (load(scale + i) + splat(1.0f));
      store(g.d_x + place + i, (h - splat(mean) - normal * splat(slope)) * splat(m.inverse));
    }
    for (; i < in.dim; ++i) {
      const float normal = (row[i] - m.mean) * m.inverse, h = d_out[i] * (scale[i] + 1.0f);
      g.d_x[place + i] = (h - mean - normal * slope) * m.inverse;
    }
  }
}

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
