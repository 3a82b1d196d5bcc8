// The inner loops of volume rendering, compiled once per instruction set (see instruction_sets.h). The definitions are
// in reference.py. Included by render.cpp.
#include "../simd.h"

namespace dreamkit {
namespace DREAMKIT_ISA {

// A bit for each of the intervals k ... k + 7 of a ray that is kept, and where they start.
DREAMKIT_INLINE uint32_t march_steps(const MarchInputs& in, const float* o, const float* d, float shift, int64_t k,
                                     int64_t last, Float8* starts) {
  const Float8 lane{0.0f, 1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f, 7.0f};
  const Float8 place = splat(static_cast<float>(k)) + lane;
  *starts = splat(in.near) + (place + splat(shift)) * splat(in.step);
  const Float8 middle = *starts + splat(0.5f * in.step);
  Int8 inside = (middle < splat(in.far)) & (place < splat(static_cast<float>(last)));
  Float8 cells[3];
  for (int axis = 0; axis < 3; ++axis) {
    const Float8 point = splat(o[axis]) + middle * splat(d[axis]) - splat(in.low[axis]);
    cells[axis] = point / splat(in.high[axis] - in.low[axis]) * splat(static_cast<float>(in.size[axis]));
    inside &= (cells[axis] >= Float8{}) & (cells[axis] < splat(static_cast<float>(in.size[axis])));
  }
  const uint32_t candidates = bits_of(inside);
  if (candidates == 0) return 0;
  alignas(32) int32_t index[3][LANES];
  for (int axis = 0; axis < 3; ++axis) store(index[axis], __builtin_convertvector(keep(inside, cells[axis]), Int8));
  uint32_t kept = 0;
  for (int i = 0; i < LANES; ++i) {  // lanes outside read the first cell
    const int64_t cell = (index[0][i] * in.size[1] + index[1][i]) * in.size[2] + index[2][i];
    kept |= static_cast<uint32_t>(in.occupied[cell]) << i;
  }
  return kept & candidates;
}

void find_steps(const MarchInputs& in, int64_t begin, int64_t end, int64_t* counts, FoundSteps& found) {
  alignas(32) float lanes[LANES];
  for (int64_t ray = begin; ray < end; ++ray) {
    const MarchRange range = march_range(in, ray);
    const size_t before = found.size;
    Float8 starts;
    for (int64_t k = range.first; k < range.last; k += LANES) {
      uint32_t kept = march_steps(in, range.origin, range.direction, range.shift, k, range.last, &starts);
      if (kept == 0) continue;
      float* target = found.room();
      found.size += static_cast<size_t>(__builtin_popcount(kept));
      if (kept == 0xff) {
        store(target, starts);
        continue;
      }
      store(lanes, starts);
      for (; kept != 0; kept &= kept - 1) *target++ = lanes[__builtin_ctz(kept)];
    }
    counts[ray] = static_cast<int64_t>(found.size - before);
  }
}

// Sums of the masses of the first 0, 1 ... B bins of eight rays, a lane a ray; returns the last.
DREAMKIT_INLINE Float8 sum_bins(const ResampleInputs& in, const float* const* rows, float* sums) {
  Float8 sum{};
  store(sums, sum);
  for (int64_t first = 0; first < in.bins; first += LANES) {
    const int64_t count = in.bins - first < LANES ? in.bins - first : LANES;
    Float8 columns[LANES];
    for (int lane = 0; lane < LANES; ++lane) {
      columns[lane] = load_some(rows[lane] + first, static_cast<int>(count));
    }
    transpose(columns);
    for (int64_t i = 0; i < count; ++i) {
      sum += columns[i] + splat(in.padding);
      store(sums + (first + i + 1) * LANES, sum);
    }
  }
  return sum;
}

// Quantiles at u_k = (k + shift) / (count + 1) of eight rays at a time. Bins are not searched for: bin b begins at
// k = ceil(sum_{<b} (count + 1) / total - shift), is marked there, and the marks' running maximum is a quantile's bin.
// `sums` [B + 1, 8] and `marks` [count + 2, 8] are room to work in.
void resample_rays(const ResampleInputs& in, int64_t begin, int64_t end, float* sums, int32_t* marks,
                   float* result) {
  const Int8 lane{0, 1, 2, 3, 4, 5, 6, 7};
  const Float8 beyond = splat(static_cast<float>(in.count + 1));
  for (int64_t ray = begin; ray < end; ray += LANES) {
    const int rays = static_cast<int>(end - ray < LANES ? end - ray : LANES);
    const float* rows[LANES];
    alignas(32) float shifts[LANES];
    alignas(32) int32_t own[LANES];  // where a lane's edges begin
    for (int i = 0; i < LANES; ++i) {  // the last ray stands for those that are not there
      const int at = i < rays ? i : rays - 1;
      rows[i] = in.weights + (ray + at) * in.bins;
      shifts[i] = in.jitter == nullptr ? 0.5f : in.jitter[ray + at];
      own[i] = at * static_cast<int32_t>(in.bins + 1);
    }
    const float* edges = in.edges + ray * (in.bins + 1);
    const Float8 shift = load(shifts), total = sum_bins(in, rows, sums);
    const Float8 part = total / splat(static_cast<float>(in.count + 1)), scale = splat(1.0f) / part;
    std::memset(marks, 0, sizeof(int32_t) * static_cast<size_t>(in.count + 2) * LANES);
    for (int64_t bin = 1; bin < in.bins; ++bin) {
      const Float8 place = load(sums + bin * LANES) * scale - shift;
      const Int8 first = __builtin_convertvector(ceiling(minimum(maximum(place, Float8{}), beyond)), Int8);
      alignas(32) int32_t at[LANES];
      store(at, first * LANES + lane);
      for (int i = 0; i < LANES; ++i) marks[at[i]] = static_cast<int32_t>(bin);
    }
    const Int8 row = load(own);
    Int8 bin{};
    for (int64_t k = 0; k <= in.count; k += LANES) {
      Float8 columns[LANES] = {};
      const int64_t last = in.count + 1 - k < LANES ? in.count + 1 - k : LANES;
      for (int64_t i = 0; i < last; ++i) {
        const Int8 mark = load(marks + (k + i) * LANES);
        bin = mark > bin ? mark : bin;
        const Float8 wanted = (splat(static_cast<float>(k + i)) + shift) * part;
        const Float8 low = gather(sums, bin * LANES + lane), high = gather(sums + LANES, bin * LANES + lane);
        const Float8 share = (wanted - low) / maximum(high - low, splat(1.17549435e-38f));
        const Float8 left = gather(edges, bin + row), right = gather(edges + 1, bin + row);
        columns[i] = left + minimum(maximum(share, Float8{}), splat(1.0f)) * (right - left);
      }
      transpose(columns);
      for (int i = 0; i < rays; ++i) {
        std::memcpy(result + (ray + i) * (in.count + 1) + k, &columns[i], sizeof(float) * static_cast<size_t>(last));
      }
    }
  }
}

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
