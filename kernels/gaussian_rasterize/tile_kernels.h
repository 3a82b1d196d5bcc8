// The inner loops of compositing, compiled once per instruction set (see instruction_sets.h).
#include "../simd.h"

namespace dreamkit {
namespace DREAMKIT_ISA {

constexpr uint32_t PREFETCH = 6;  // entries

// The part of a tile that one Gaussian's bounding box covers.
struct Span {
  int first_row, end_row;  // half-open
  int column, groups;       // first column and number of groups of eight
};

// Integer part of a coordinate clamped to [0, TILE]; without branches, which would be mispredicted.
DREAMKIT_INLINE int whole(float value) {
  value = value > 0.0f ? value : 0.0f;
  return static_cast<int>(value < static_cast<float>(TILE) ? value : static_cast<float>(TILE));
}

DREAMKIT_INLINE Span make_span(const Splat& s, float x, float y) {
  // Pixel p is inside when |p + 1/2 - center| <= extent; x and y are relative to the tile's corner. Adding 1 before
  // the cast, which truncates, gives the first pixel inside and the one after the last.
  const int first_column = whole(x - s.extent_x + 0.5f), end_column = whole(x + s.extent_x + 0.5f);
  const int first_row = whole(y - s.extent_y + 0.5f), end_row = whole(y + s.extent_y + 0.5f);
  // Eight columns or fewer fit one group that starts anywhere; more take the two aligned groups.
  const bool narrow = end_column - first_column <= LANES;
  const int start = first_column < TILE - LANES ? first_column : TILE - LANES;
  return {first_row, end_column > first_column ? end_row : 0, narrow ? start : 0, narrow ? 1 : 2};
}

DREAMKIT_INLINE Float8 column_centers(int column) {
  return splat(static_cast<float>(column)) + Float8{0.5f, 1.5f, 2.5f, 3.5f, 4.5f, 5.5f, 6.5f, 7.5f};
}

struct Alpha {
  Float8 raw;   // opacity exp(-sigma), unclamped; garbage where not used
  Int8 used;    // at least 1/255
};

// Both passes call this, so that both decide alike which pixels a Gaussian touches.
DREAMKIT_INLINE Alpha evaluate_alpha(const Splat& s, Float8 dx, float l2_dy, float row_exponent) {
  const Float8 u = dx * splat(s.l1) + splat(l2_dy);
  const Float8 exponent = splat(row_exponent) - u * u;
  return {exp2(exponent), exponent >= splat(LOG2_ALPHA_MIN)};
}

DREAMKIT_INLINE bool any_above(const float* plane, float threshold) {
  Float8 highest = load(plane);
  for (int i = LANES; i < TILE_PIXELS; i += LANES) highest = maximum(highest, load(plane + i));
  float result = highest[0];
  for (int lane = 1; lane < LANES; ++lane) result = highest[lane] > result ? highest[lane] : result;
  return result > threshold;
}

// F > 0 fixes the number of features at compile time; 0 reads it.
template <int F>
void forward_tile(ForwardTile& t) {
  const ViewBins& bins = *t.bins;
  const uint32_t begin = bins.tile_starts[t.tile], end = bins.tile_starts[t.tile + 1];
  const int features = F > 0 ? F : t.features;
  // Copies in registers: a store through one pointer must not force the others to be read again.
  float* __restrict const transmittance = t.transmittance;
  int32_t* __restrict const stop = t.stop;
  float* __restrict const sums = t.sums;
  float* __restrict const median = t.median;
  const uint32_t* const entries = bins.entries.data();
  const float* const packed = bins.packed.data();
  const float tile_x = static_cast<float>(t.x), tile_y = static_cast<float>(t.y);
  const size_t packed_stride = t.packed_stride;
  uint32_t position = begin;
  for (; position < end; ++position) {
    if ((position - begin) % 16 == 15 && !any_above(transmittance, 0.0f)) break;
    const uint32_t gaussian = entries[position];
    if (position + PREFETCH < end) {
      const size_t ahead = entries[position + PREFETCH];
      __builtin_prefetch(packed + ahead * packed_stride);
    }
    const float* const own = packed + gaussian * packed_stride;
    Splat s;
    std::memcpy(&s, own, sizeof(s));
    Float8 feature[F > 0 ? F : 1];
    const float* const feature_row = own + SPLAT_FLOATS;
    for (int f = 0; f < F; ++f) feature[f] = splat(feature_row[f]);
    const float x = s.x - tile_x, y = s.y - tile_y;
    const Span span = make_span(s, x, y);
    const int32_t index = static_cast<int32_t>(position - begin);
    const bool wide = span.groups > 1;  // only then are empty groups common enough for a test to pay
    for (int group = 0; group < span.groups; ++group) {
      const int column = span.column + group * LANES;
      const Float8 dx = column_centers(column) - splat(x);
      for (int row = span.first_row; row < span.end_row; ++row) {
        const float dy = static_cast<float>(row) + 0.5f - y, l3_dy = s.l3 * dy;
        const float row_exponent = s.log2_opacity - l3_dy * l3_dy;
        if (row_exponent < LOG2_ALPHA_MIN) continue;
        const int pixel = row * TILE + column;
        const Float8 before = load(transmittance + pixel);
        const Alpha evaluated = evaluate_alpha(s, dx, s.l2 * dy, row_exponent);
        if (wide && !any(evaluated.used & (before > splat(0.0f)))) continue;
        const Float8 alpha = keep(evaluated.used, minimum(evaluated.raw, splat(ALPHA_MAX)));
        const Float8 weight = alpha * before, after = before - weight;
        const Int8 stops = after <= splat(TRANSMITTANCE_MIN);
        const Int8 stops_now = stops & (before > splat(0.0f));
        if (median != nullptr) {
          const Int8 halves = (before > splat(0.5f)) & (after <= splat(0.5f));
          store(median + pixel, halves ? splat(feature_row[features - 4]) : load(median + pixel));
        }
        store(transmittance + pixel, stops ? -absolute(before) : after);
        store(stop + pixel, stops_now ? splat(index) : load(stop + pixel));
        const Float8 used_weight = keep(~stops, weight);
        for (int f = 0; f < features; ++f) {
          float* sum = sums + f * TILE_PIXELS + pixel;
          store(sum, load(sum) + used_weight * (F > 0 ? feature[f] : splat(feature_row[f])));
        }
      }
    }
  }
  t.end = position - begin;
}


template <int F>
void backward_tile(const BackwardTile& t) {
  const ViewBins& bins = *t.bins;
  const uint32_t begin = bins.tile_starts[t.tile], end = begin + bins.tile_ends[t.tile];
  const int features = F > 0 ? F : t.features;
  const Float8 zero = splat(0.0f), one = splat(1.0f);
  float* __restrict const transmittance = t.transmittance;
  float* __restrict const behind_plane = t.behind;
  const int32_t* __restrict const stop = t.stop;
  const float* __restrict const gradients = t.gradients;
  const uint32_t* const entries = bins.entries.data();
  const float* const packed = bins.packed.data();
  const float tile_x = static_cast<float>(t.x), tile_y = static_cast<float>(t.y);
  const size_t packed_stride = t.packed_stride;
  const bool by_entry = t.by_entry, absolutes = t.absolutes;
  float* const results = t.results;
  const size_t result_stride = t.result_stride;
  Float8 fixed[F > 0 ? (MOMENTS + F + ABSOLUTES + LANES - 1) / LANES * LANES : 1];
  Float8* sums = F > 0 ? fixed : reinterpret_cast<Float8*>(t.accumulators);
  const int rows_of_sums = F > 0 ? static_cast<int>(sizeof(fixed) / sizeof(Float8)) : t.result_stride;
  for (uint32_t position = end; position-- > begin;) {
    const uint32_t gaussian = entries[position];
    if (position >= begin + PREFETCH) {
      const size_t ahead = entries[position - PREFETCH];
      __builtin_prefetch(packed + ahead * packed_stride);
      if (!by_entry) __builtin_prefetch(results + ahead * result_stride);
    }
    const float* const own = packed + gaussian * packed_stride;
    Splat s;
    std::memcpy(&s, own, sizeof(s));
    const float* const feature = own + SPLAT_FLOATS;
    const float x = s.x - tile_x, y = s.y - tile_y;
    const Span span = make_span(s, x, y);
    const Int8 index = splat(static_cast<int32_t>(position - begin));
    for (int i = 0; i < rows_of_sums; ++i) sums[i] = zero;
    const bool wide = span.groups > 1;  // only then are empty groups common enough for a test to pay
    for (int group = 0; group < span.groups; ++group) {
      const int column = span.column + group * LANES;
      const Float8 dx = column_centers(column) - splat(x);
      for (int row = span.first_row; row < span.end_row; ++row) {
        const float dy = static_cast<float>(row) + 0.5f - y, l3_dy = s.l3 * dy;
        const float row_exponent = s.log2_opacity - l3_dy * l3_dy;
        if (row_exponent < LOG2_ALPHA_MIN) continue;
        const Alpha evaluated = evaluate_alpha(s, dx, s.l2 * dy, row_exponent);
        const int pixel = row * TILE + column;
        const Int8 used = evaluated.used & (index < load(stop + pixel));
        if (wide && !any(used)) continue;
        const Float8 raw = keep(used, evaluated.raw);
        const Float8 alpha = minimum(raw, splat(ALPHA_MAX));
        const Float8 inverse = one / (one - alpha);
        const Float8 before = load(transmittance + pixel) * inverse;
        const Float8 behind = load(behind_plane + pixel);
        const Float8 weight = alpha * before;
        Float8 product = zero;
        for (int f = 0; f < features; ++f) {
          const Float8 gradient = load(gradients + f * TILE_PIXELS + pixel);
          product += gradient * splat(feature[f]);
          sums[MOMENTS + f] += weight * gradient;
        }
        store(transmittance + pixel, before);
        store(behind_plane + pixel, behind + weight * product);
        const Float8 d_alpha = before * product - behind * inverse;
        const Float8 d_sigma = keep(raw <= splat(ALPHA_MAX), -raw * d_alpha);
        const Float8 d_sigma_dx = d_sigma * dx, d_sigma_dy = d_sigma * splat(dy);
        sums[0] += d_sigma;
        sums[1] += d_sigma_dx;
        sums[2] += d_sigma_dy;
        sums[3] += d_sigma_dx * dx;
        sums[4] += d_sigma_dx * splat(dy);
        sums[5] += d_sigma_dy * splat(dy);
        if (absolutes) {  // d sigma / d means2d, without its constant factor
          const Float8 u = dx * splat(s.l1) + splat(s.l2 * dy);
          sums[MOMENTS + features] += absolute(d_sigma * splat(s.l1) * u);
          sums[MOMENTS + features + 1] += absolute(d_sigma * (splat(s.l2) * u + splat(s.l3 * l3_dy)));
        }
      }
    }
    float* result = results + (by_entry ? position : gaussian) * result_stride;
    for (int i = 0; i < rows_of_sums; i += LANES) {
      const Float8 totals = horizontal_sums(sums + i);
      store(result + i, by_entry ? totals : load(result + i) + totals);
    }
  }
}

// Colours with depth and normal (7), colours alone (3), or any number.
inline void forward_any(ForwardTile& tile) {
  if (tile.features == 7) {
    forward_tile<7>(tile);
  } else {
    forward_tile<0>(tile);
  }
}

inline void backward_any(const BackwardTile& tile) {
  if (tile.features == 7) {
    backward_tile<7>(tile);
  } else if (tile.features == 3) {
    backward_tile<3>(tile);
  } else {
    backward_tile<0>(tile);
  }
}

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
