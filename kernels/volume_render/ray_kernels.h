// The inner loops of volume rendering, compiled once per instruction set (see instruction_sets.h). The definitions are
// in reference.py. Included by render.cpp.
#include "../simd.h"

namespace dreamkit {
namespace DREAMKIT_ISA {

// exp(-x) of `count` products a * (e - s) into `out`; garbage in gives garbage out, nothing else.
DREAMKIT_INLINE void transmit(const float* density, const float* start, const float* end, int64_t count, float* out) {
  const Float8 factor = splat(-1.44269504088896340736f);
  alignas(32) float rest[3][LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Float8 x = factor * (load(density + i) * (load(end + i) - load(start + i)));
    store(out + i, keep(x >= splat(-126.0f), exp2(maximum(minimum(x, splat(126.0f)), splat(-126.0f)))));
  }
  if (i == count) return;
  const size_t bytes = sizeof(float) * static_cast<size_t>(count - i);
  std::memcpy(rest[0], density + i, bytes);
  std::memcpy(rest[1], start + i, bytes);
  std::memcpy(rest[2], end + i, bytes);
  const Float8 x = factor * (load(rest[0]) * (load(rest[2]) - load(rest[1])));
  store(rest[0], keep(x >= splat(-126.0f), exp2(maximum(minimum(x, splat(126.0f)), splat(-126.0f)))));
  std::memcpy(out + i, rest[0], bytes);
}

// w_i = T_i (1 - e_i), T_{i+1} = T_i e_i.
void weigh_rays(const SampleInputs& in, int64_t begin, int64_t end, const float* densities, float* weights) {
  for (int64_t ray = begin; ray < end; ++ray) {
    const int64_t first = in.offsets[ray], last = in.offsets[ray + 1];
    transmit(densities + first, in.starts + first, in.ends + first, last - first, weights + first);
    float left = 1.0f;
    for (int64_t i = first; i < last; ++i) {
      const float passed = weights[i];
      weights[i] = left * (1.0f - passed);
      left *= passed;
    }
  }
}

// d_sigma_i = (ends_i - starts_i) (d_w_i T_i e_i - sum_{j>i} d_w_j w_j), with T_i e_i = T_{i+1}.
void weigh_rays_backward(const SampleInputs& in, int64_t begin, int64_t end, const float* densities,
                         const float* weights, const float* d_weights, float* d_densities) {
  for (int64_t ray = begin; ray < end; ++ray) {
    const int64_t first = in.offsets[ray], last = in.offsets[ray + 1];
    transmit(densities + first, in.starts + first, in.ends + first, last - first, d_densities + first);
    float left = 1.0f;
    for (int64_t i = first; i < last; ++i) {
      left *= d_densities[i];
      d_densities[i] = left;
    }
    float behind = 0.0f;
    for (int64_t i = last - 1; i >= first; --i) {
      d_densities[i] = (in.ends[i] - in.starts[i]) * (d_weights[i] * d_densities[i] - behind);
      behind += d_weights[i] * weights[i];
    }
  }
}

// C channels known at compile time stay in registers; 0 stands for any number.
template <int C>
void add_rays(const SampleInputs& in, int64_t begin, int64_t end, const float* weights, const float* values,
              int64_t channels, float* total) {
  const int64_t width = C > 0 ? C : channels;
  for (int64_t ray = begin; ray < end; ++ray) {
    float* sum = total + ray * width;
    for (int64_t c = 0; c < width; ++c) sum[c] = 0.0f;
    float local[C > 0 ? C : 1] = {};
    for (int64_t i = in.offsets[ray]; i < in.offsets[ray + 1]; ++i) {
      for (int64_t c = 0; c < width; ++c) {
        if constexpr (C > 0) {
          local[c] += weights[i] * values[i * width + c];
        } else {
          sum[c] += weights[i] * values[i * width + c];
        }
      }
    }
    if constexpr (C > 0) {
      for (int64_t c = 0; c < width; ++c) sum[c] = local[c];
    }
  }
}

template <int C>
void add_rays_backward(const SampleInputs& in, int64_t begin, int64_t end, const float* weights, const float* values,
                       int64_t channels, const float* d_total, float* d_weights, float* d_values) {
  const int64_t width = C > 0 ? C : channels;
  for (int64_t ray = begin; ray < end; ++ray) {
    const float* gradient = d_total + ray * width;
    for (int64_t i = in.offsets[ray]; i < in.offsets[ray + 1]; ++i) {
      if (d_weights != nullptr) {
        float sum = 0.0f;
        for (int64_t c = 0; c < width; ++c) sum += gradient[c] * values[i * width + c];
        d_weights[i] = sum;
      }
      if (d_values != nullptr) {
        for (int64_t c = 0; c < width; ++c) d_values[i * width + c] = weights[i] * gradient[c];
      }
    }
  }
}

void accumulate_rays(const SampleInputs& in, int64_t begin, int64_t end, const float* weights, const float* values,
                     int64_t channels, float* total) {
  switch (channels) {
    case 1: return add_rays<1>(in, begin, end, weights, values, channels, total);
    case 3: return add_rays<3>(in, begin, end, weights, values, channels, total);
    case 4: return add_rays<4>(in, begin, end, weights, values, channels, total);
    default: return add_rays<0>(in, begin, end, weights, values, channels, total);
  }
}

void accumulate_rays_backward(const SampleInputs& in, int64_t begin, int64_t end, const float* weights,
                              const float* values, int64_t channels, const float* d_total, float* d_weights,
                              float* d_values) {
  switch (channels) {
    case 1: return add_rays_backward<1>(in, begin, end, weights, values, channels, d_total, d_weights, d_values);
    case 3: return add_rays_backward<3>(in, begin, end, weights, values, channels, d_total, d_weights, d_values);
    case 4: return add_rays_backward<4>(in, begin, end, weights, values, channels, d_total, d_weights, d_values);
    default: return add_rays_backward<0>(in, begin, end, weights, values, channels, d_total, d_weights, d_values);
  }
}

// Middles ascend along a ray, so  sum_ij w_i w_j |m_i - m_j| = 2 sum_i w_i (m_i W_i - M_i)  with W_i = sum_{j<i} w_j
// and M_i = sum_{j<i} w_j m_j. Middles count from the first of the ray: their differences are what matters.
void distort_rays(const SampleInputs& in, int64_t begin, int64_t end, const float* weights, float* loss) {
  for (int64_t ray = begin; ray < end; ++ray) {
    const int64_t first = in.offsets[ray], last = in.offsets[ray + 1];
    float mass = 0.0f, moment = 0.0f, apart = 0.0f, within = 0.0f;
    const float origin = first < last ? 0.5f * (in.starts[first] + in.ends[first]) : 0.0f;
    for (int64_t i = first; i < last; ++i) {
      const float middle = 0.5f * (in.starts[i] + in.ends[i]) - origin, w = weights[i];
      apart += w * (middle * mass - moment);
      within += w * w * (in.ends[i] - in.starts[i]);
      mass += w;
      moment += w * middle;
    }
    loss[ray] = 2.0f * apart + within / 3.0f;
  }
}

// d/dw_i = 2 (m_i (W_<i - W_>i) - (M_<i - M_>i)) + 2/3 w_i length_i.
void distort_rays_backward(const SampleInputs& in, int64_t begin, int64_t end, const float* weights,
                           const float* d_loss, float* d_weights) {
  for (int64_t ray = begin; ray < end; ++ray) {
    const int64_t first = in.offsets[ray], last = in.offsets[ray + 1];
    const float origin = first < last ? 0.5f * (in.starts[first] + in.ends[first]) : 0.0f;
    float all_mass = 0.0f, all_moment = 0.0f;
    for (int64_t i = first; i < last; ++i) {
      all_mass += weights[i];
      all_moment += weights[i] * (0.5f * (in.starts[i] + in.ends[i]) - origin);
    }
    float mass = 0.0f, moment = 0.0f;
    for (int64_t i = first; i < last; ++i) {
      const float middle = 0.5f * (in.starts[i] + in.ends[i]) - origin, w = weights[i];
      const float mass_after = all_mass - mass - w, moment_after = all_moment - moment - w * middle;
      const float slope = middle * (mass - mass_after) - (moment - moment_after);
      d_weights[i] = d_loss[ray] * (2.0f * slope + w * (in.ends[i] - in.starts[i]) * (2.0f / 3.0f));
      mass += w;
      moment += w * middle;
    }
  }
}

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
