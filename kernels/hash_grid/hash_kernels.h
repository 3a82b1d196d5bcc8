// The inner loops of the hash grid, compiled once per instruction set (see instruction_sets.h). The definition is
// reference.py. Included by encode.cpp.
#include "../simd.h"

namespace dreamkit {
namespace DREAMKIT_ISA {

constexpr int AHEAD = 4;  // groups of eight positions

// Eight positions inside one level: entries of the 2^D corners, and per axis the weight of both sides with its first
// and second derivative with respect to the position.
template <int D>
struct Cell {
  Int8 index[1 << D];
  Float8 weight[D][2], slope[D][2], bend[D][2];
};

template <int D>
DREAMKIT_INLINE void locate(const HashLevel& level, bool smoothstep, const Float8* position, const Int8* free_axis,
                            Cell<D>& cell) {
  UInt8 low[D], high[D];  // the part of the index that the lower and upper side add
  const uint32_t primes[3] = {1u, 2654435761u, 805459861u};
  uint32_t stride = 1;
  for (int axis = 0; axis < D; ++axis) {
    const Float8 x = position[axis] * splat(level.scale) + splat(level.shift);
    const Int8 corner = __builtin_convertvector(x, Int8);  // x >= 0: truncation is the floor
    const Float8 w = x - __builtin_convertvector(corner, Float8);
    const Float8 scale = keep(free_axis[axis], splat(level.scale));
    Float8 up = w, slope = scale, bend{};
    if (smoothstep) {
      up = w * w * (splat(3.0f) - splat(2.0f) * w);
      slope = splat(6.0f) * w * (splat(1.0f) - w) * scale;
      bend = (splat(6.0f) - splat(12.0f) * w) * scale * scale;
    }
    cell.weight[axis][0] = splat(1.0f) - up;
    cell.weight[axis][1] = up;
    cell.slope[axis][0] = -slope;
    cell.slope[axis][1] = slope;
    cell.bend[axis][0] = -bend;
    cell.bend[axis][1] = bend;
    const uint32_t factor = level.resolution > 0 ? stride : primes[axis];
    const UInt8 factors = (UInt8)splat(static_cast<int32_t>(factor));
    low[axis] = (UInt8)corner * factors;
    high[axis] = low[axis] + factors;
    stride *= static_cast<uint32_t>(level.resolution);
  }
  const UInt8 size = (UInt8)splat(level.size);
  for (int c = 0; c < (1 << D); ++c) {
    UInt8 index = (c & 1) ? high[0] : low[0];
    for (int axis = 1; axis < D; ++axis) {
      const UInt8 part = (c >> axis & 1) ? high[axis] : low[axis];
      index = level.resolution > 0 ? index + part : index ^ part;
    }
    if (level.resolution > 0) {
      // The upper corner of the last cell runs over: its index is below twice the size, except in grids of one point.
      for (int i = 0; i < 3; ++i) index = (UInt8)((Int8)index >= (Int8)size ? (Int8)(index - size) : (Int8)index);
    } else {
      index &= size - (UInt8)splat(int32_t{1});
    }
    cell.index[c] = (Int8)index;
  }
}

// Product over the axes of weight, or of slope on axis i (and j, where given; bend where they are the same).
template <int D>
DREAMKIT_INLINE Float8 product(const Cell<D>& cell, int corner, int i = -1, int j = -1) {
  Float8 result = splat(1.0f);
  for (int axis = 0; axis < D; ++axis) {
    const int side = corner >> axis & 1;
    if (axis == i && axis == j) {
      result *= cell.bend[axis][side];
    } else if (axis == i || axis == j) {
      result *= cell.slope[axis][side];
    } else {
      result *= cell.weight[axis][side];
    }
  }
  return result;
}

// Positions of `lanes` rows in [0, 1]. `free_axis`: lanes whose coordinate was not clamped, so that it has a gradient;
// `finite`: lanes that count at all.
template <int D>
DREAMKIT_INLINE void load_positions(const float* rows, int lanes, Float8* position, Int8* free_axis, Int8& finite) {
  load_columns<D>(rows, lanes, position);
  finite = splat(-1);
  for (int axis = 0; axis < D; ++axis) finite &= absolute(position[axis]) <= splat(3.4028234e38f);
  for (int axis = 0; axis < D; ++axis) {
    const Float8 x = position[axis];
    free_axis[axis] = finite & (x >= splat(0.0f)) & (x <= splat(1.0f));
    position[axis] = minimum(maximum(keep(finite, x), Float8{}), splat(1.0f));
  }
}

template <int F>
struct Row {
  float value[F];
};

template <int F>
DREAMKIT_INLINE Row<F> row_of(const float* table, int64_t entry) {
  Row<F> row;
  std::memcpy(&row, table + entry * F, sizeof(row));
  return row;
}

// Derivative of every corner's weight along v.
template <int D>
DREAMKIT_INLINE void directional(const Cell<D>& cell, const Float8* v, Float8* along) {
  for (int c = 0; c < (1 << D); ++c) {
    along[c] = Float8{};
    for (int axis = 0; axis < D; ++axis) along[c] += v[axis] * product<D>(cell, c, axis);
  }
}

// What the kernels below know of eight positions in a level: where they are and a factor for every corner, which is
// its weight, or with a direction v the derivative of the weight along it. Factors of nonsense rows are zero.
template <int D>
struct Corners {
  Float8 position[D], direction[D] = {};
  Int8 free_axis[D], finite;
  Cell<D> cell;
  alignas(32) int32_t index[1 << D][LANES];
  alignas(32) float factor[1 << D][LANES];
  alignas(32) int32_t counts[LANES];

  DREAMKIT_INLINE void load_rows(const HashInputs& in, int64_t first, int lanes, const float* v) {
    load_positions<D>(in.positions + first * D, lanes, position, free_axis, finite);
    store(counts, finite);
    if (v == nullptr) return;
    load_columns<D>(v + first * D, lanes, direction);
    for (int axis = 0; axis < D; ++axis) direction[axis] = keep(free_axis[axis], direction[axis]);
  }

  DREAMKIT_INLINE void enter(const HashInputs& in, int l, bool along_direction) {
    locate<D>(in.level[l], in.smoothstep, position, free_axis, cell);
    Float8 along[1 << D];
    if (along_direction) directional<D>(cell, direction, along);
    for (int c = 0; c < (1 << D); ++c) {
      store(index[c], cell.index[c]);
      store(factor[c], along_direction ? along[c] : keep(finite, product<D>(cell, c)));
    }
  }
};

// sum_c factor_c T_c of `lanes` positions, into rows `width` apart.
template <int D, int F>
DREAMKIT_INLINE void gather(const float* table, const Corners<D>& corners, int lanes, float* result, int width) {
  for (int lane = 0; lane < lanes; ++lane) {
    Row<F> sum{};
    for (int c = 0; c < (1 << D); ++c) {
      const Row<F> row = row_of<F>(table, corners.index[c][lane]);
      for (int f = 0; f < F; ++f) sum.value[f] += corners.factor[c][lane] * row.value[f];
    }
    std::memcpy(result + static_cast<int64_t>(lane) * width, &sum, sizeof(sum));
  }
}

// Entries are asked for some groups before they are added up: the tables of fine levels lie in a cache that is far, and
// by itself the processor looks only one group ahead.
template <int D, int F>
DREAMKIT_INLINE void prefetch(const float* table, const Corners<D>& corners) {
  for (int c = 0; c < (1 << D); ++c) {
    for (int lane = 0; lane < LANES; ++lane) {
      __builtin_prefetch(table + static_cast<int64_t>(corners.index[c][lane]) * F);
    }
  }
}

template <int D, int F>
void encode_points(const HashInputs& in, int64_t begin, int64_t end, float* encoded) {
  const int width = in.levels * F;
  Corners<D> ring[AHEAD];
  const auto lanes_from = [&](int64_t first) { return static_cast<int>(end - first < LANES ? end - first : LANES); };
  for (int l = 0; l < in.levels; ++l) {
    const float* table = in.table + in.level[l].offset * F;
    for (int64_t first = begin; first < end + AHEAD * LANES; first += LANES) {
      Corners<D>& corners = ring[first / LANES % AHEAD];
      const int64_t ready = first - AHEAD * LANES;
      if (ready >= begin && ready < end) {
        gather<D, F>(table, corners, lanes_from(ready), encoded + ready * width + l * F, width);
      }
      if (first >= end) continue;
      corners.load_rows(in, first, lanes_from(first), nullptr);
      corners.enter(in, l, false);
      prefetch<D, F>(table, corners);
    }
  }
}

// Gradient of one level's entries, through the code (v null) or through the gradient of the positions along v. A level
// belongs to one thread, so the order of the sums is fixed.
template <int D, int F>
void scatter_level(const HashInputs& in, int l, const float* d_encoded, const float* v, float* d_table) {
  const int width = in.levels * F;
  float* target = d_table + in.level[l].offset * F;
  std::memset(target, 0, sizeof(float) * static_cast<size_t>(in.level[l].size) * F);
  Corners<D> corners;
  for (int64_t first = 0; first < in.count; first += LANES) {
    const int lanes = static_cast<int>(in.count - first < LANES ? in.count - first : LANES);
    corners.load_rows(in, first, lanes, v);
    corners.enter(in, l, v != nullptr);
    for (int lane = 0; lane < lanes; ++lane) {
      if (corners.counts[lane] == 0) continue;  // its gradient may be anything
      const Row<F> gradient = row_of<F>(d_encoded + (first + lane) * width + l * F, 0);
      for (int c = 0; c < (1 << D); ++c) {
        float* entry = target + static_cast<int64_t>(corners.index[c][lane]) * F;
        for (int f = 0; f < F; ++f) entry[f] += corners.factor[c][lane] * gradient.value[f];
      }
    }
  }
}

// g . T of every corner and lane, for F features.
template <int D, int F>
DREAMKIT_INLINE void corner_dots(const float* table, const Corners<D>& corners, const float* gradient, int width,
                                 int lanes, Float8* dots) {
  alignas(32) float result[1 << D][LANES] = {};
  for (int lane = 0; lane < lanes; ++lane) {
    const Row<F> g = row_of<F>(gradient + static_cast<int64_t>(lane) * width, 0);
    for (int c = 0; c < (1 << D); ++c) {
      const Row<F> row = row_of<F>(table, corners.index[c][lane]);
      float sum = 0.0f;
      for (int f = 0; f < F; ++f) sum += g.value[f] * row.value[f];
      result[c][lane] = sum;
    }
  }
  for (int c = 0; c < (1 << D); ++c) dots[c] = load(result[c]);
}

// Gradients of the positions; or, with a direction v, what `hash_second` gives for the code and the positions.
template <int D, int F>
void differentiate(const HashInputs& in, int64_t begin, int64_t end, const float* d_encoded, const float* v,
                   float* d_d_encoded, float* d_positions) {
  const int width = in.levels * F;
  Corners<D> corners;
  for (int64_t first = begin; first < end; first += LANES) {
    const int lanes = static_cast<int>(end - first < LANES ? end - first : LANES);
    Float8 total[D] = {};
    corners.load_rows(in, first, lanes, v);
    for (int l = 0; l < in.levels; ++l) {
      const float* table = in.table + in.level[l].offset * F;
      const int64_t place = first * width + l * F;
      corners.enter(in, l, v != nullptr);
      if (v != nullptr) gather<D, F>(table, corners, lanes, d_d_encoded + place, width);
      Float8 dots[1 << D];
      corner_dots<D, F>(table, corners, d_encoded + place, width, lanes, dots);
      for (int c = 0; c < (1 << D); ++c) {
        for (int i = 0; i < D; ++i) {
          if (v == nullptr) {
            total[i] += product<D>(corners.cell, c, i) * dots[c];
            continue;
          }
          for (int j = 0; j < D; ++j) {
            if (i == j && !in.smoothstep) continue;  // zero
            total[i] += corners.direction[j] * product<D>(corners.cell, c, i, j) * dots[c];
          }
        }
      }
    }
    for (int axis = 0; axis < D; ++axis) total[axis] = keep(corners.free_axis[axis], total[axis]);
    store_columns<D>(d_positions + first * D, lanes, total);
  }
}

// One call for every (D, F) of the kernels above.
#define DREAMKIT_FOR_SHAPE(function, ...)                                  \
  do {                                                                     \
    switch (in.dims * 16 + in.features) {                                  \
      case 2 * 16 + 1: function<2, 1>(__VA_ARGS__); break;                 \
      case 2 * 16 + 2: function<2, 2>(__VA_ARGS__); break;                 \
      case 2 * 16 + 4: function<2, 4>(__VA_ARGS__); break;                 \
      case 2 * 16 + 8: function<2, 8>(__VA_ARGS__); break;                 \
      case 3 * 16 + 1: function<3, 1>(__VA_ARGS__); break;                 \
      case 3 * 16 + 2: function<3, 2>(__VA_ARGS__); break;                 \
      case 3 * 16 + 4: function<3, 4>(__VA_ARGS__); break;                 \
      case 3 * 16 + 8: function<3, 8>(__VA_ARGS__); break;                 \
    }                                                                      \
  } while (false)

void encode_range(const HashInputs& in, int64_t begin, int64_t end, float* encoded) {
  DREAMKIT_FOR_SHAPE(encode_points, in, begin, end, encoded);
}

void scatter(const HashInputs& in, int level, const float* d_encoded, const float* v, float* d_table) {
  DREAMKIT_FOR_SHAPE(scatter_level, in, level, d_encoded, v, d_table);
}

void differentiate_range(const HashInputs& in, int64_t begin, int64_t end, const float* d_encoded, const float* v,
                         float* d_d_encoded, float* d_positions) {
  DREAMKIT_FOR_SHAPE(differentiate, in, begin, end, d_encoded, v, d_d_encoded, d_positions);
}

#undef DREAMKIT_FOR_SHAPE

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
