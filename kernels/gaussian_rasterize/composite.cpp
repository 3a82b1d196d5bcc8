// Alpha compositing of one tile after another, forward and backward. The definition is reference.composite.
//
// A tile's pixels live in small planes (16 rows of 16 floats per quantity). For each Gaussian only the rows and the
// one or two groups of eight columns its bounding box touches are visited. The backward pass walks a tile's list back
// to front: it recovers the transmittance by division and carries one scalar per pixel, the light that comes from
// behind, s_i = sum_{j>i} w_j (g . f_j) + T dL/dT.
#include <algorithm>
#include <cmath>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

namespace dreamkit {

constexpr int MOMENTS = 6;    // sums of v, v dx, v dy, v dx^2, v dx dy, v dy^2, with v = dL/dsigma
constexpr int ABSOLUTES = 2;  // sums over pixels of |dL/d means2d|, over 2 ln 2; after the features

struct ForwardTile {
  const ViewBins* bins;
  int tile, x, y;         // tile number and its corner, pixels
  int packed_stride, features;
  float* transmittance;   // [TILE_PIXELS] in: 1 inside the image, -1 outside. Negative means stopped
  int32_t* stop;          // [TILE_PIXELS]
  float* sums;            // [features, TILE_PIXELS] zeroed
  float* median;          // [TILE_PIXELS] zeroed, or null
  uint32_t end;           // out: entries composited
};

struct BackwardTile {
  const ViewBins* bins;
  int tile, x, y;
  int packed_stride, features;  // features that have a gradient: the first ones
  float* transmittance;          // [TILE_PIXELS] in: final; walks back to 1
  float* behind;                 // [TILE_PIXELS] in: T dL/dT; s_i of the header comment
  const int32_t* stop;           // [TILE_PIXELS]; 0 outside the image
  const float* gradients;        // [features, TILE_PIXELS]
  float* results;                // rows of result_stride: moments, features, absolutes
  int result_stride;             // a multiple of the lanes
  bool by_entry;                 // rows are entries and are overwritten; else Gaussians and are added to
  float* accumulators;           // [result_stride, LANES] scratch, aligned to 32 bytes
  bool absolutes;
};

}  // namespace dreamkit

#define DREAMKIT_KERNELS "gaussian_rasterize/tile_kernels.h"
#include "../instruction_sets.h"

namespace dreamkit {
namespace {

// Where a tile lies and how much of it is inside the image.
struct TilePlace {
  int x, y, columns, rows;
};

TilePlace place_of(const CompositeState& state, int tile) {
  const int x = tile % state.tiles_x * TILE, y = tile / state.tiles_x * TILE;
  return {x, y, static_cast<int>(std::min<int64_t>(TILE, state.width - x)),
          static_cast<int>(std::min<int64_t>(TILE, state.height - y))};
}

void write_tile(const CompositeInputs& in, const CompositeOutputs& out, const CompositeState& state, int64_t view,
                const TilePlace& place, const float* transmittance, const float* sums, const float* median) {
  const int channels = static_cast<int>(state.channels);
  for (int row = 0; row < place.rows; ++row) {
    for (int column = 0; column < place.columns; ++column) {
      const int pixel = row * TILE + column;
      const size_t target = (view * state.height + place.y + row) * state.width + place.x + column;
      const float rest = transmittance[pixel];
      for (int c = 0; c < channels; ++c) {
        const float behind = in.background == nullptr ? 0.0f : rest * in.background[view * channels + c];
        out.image[target * channels + c] = sums[c * TILE_PIXELS + pixel] + behind;
      }
      out.alpha[target] = 1.0f - rest;
      if (out.median != nullptr) out.median[target] = median[pixel];
      out.depth[target] = sums[channels * TILE_PIXELS + pixel];
      for (int axis = 0; axis < 3; ++axis) {
        out.normal[target * 3 + axis] = sums[(channels + 1 + axis) * TILE_PIXELS + pixel];
      }
    }
  }
}

void render_tile(const CompositeInputs& in, const CompositeOutputs& out, CompositeState& state, int64_t view, int tile,
                 float* sums) {
  ViewBins& bins = state.bins[view];
  const TilePlace place = place_of(state, tile);
  float* transmittance = bins.transmittance.data() + static_cast<size_t>(tile) * TILE_PIXELS;
  int32_t* stop = bins.stop.data() + static_cast<size_t>(tile) * TILE_PIXELS;
  for (int pixel = 0; pixel < TILE_PIXELS; ++pixel) {
    const bool inside = pixel % TILE < place.columns && pixel / TILE < place.rows;
    transmittance[pixel] = inside ? 1.0f : -1.0f;
    stop[pixel] = inside ? INT32_MAX : 0;
  }
  std::fill(sums, sums + static_cast<size_t>(state.features) * TILE_PIXELS, 0.0f);
  float halves[TILE_PIXELS] = {};
  float* median = out.median == nullptr ? nullptr : halves;
  ForwardTile t{&bins,         tile, place.x, place.y, state.packed_stride, state.features,
                transmittance, stop, sums,    median,  0};
  DREAMKIT_CALL(forward_any, t);
  bins.tile_ends[tile] = t.end;
  for (int pixel = 0; pixel < TILE_PIXELS; ++pixel) transmittance[pixel] = std::fabs(transmittance[pixel]);
  write_tile(in, out, state, view, place, transmittance, sums, halves);
}

int useful_threads(const CompositeInputs& in) {
  // Below this, waking the threads costs as much as the work.
  const int64_t work = in.views * (in.count * 16 + in.width * in.height);
  return work < 20000 ? 1 : std::max(1, in.threads);
}

}  // namespace

CompositeState composite_forward(const CompositeInputs& in, const CompositeOutputs& out) {
  CompositeState state;
  state.views = in.views;
  state.count = in.count;
  state.width = in.width;
  state.height = in.height;
  state.channels = in.channels;
  state.tiles_x = static_cast<int>((in.width + TILE - 1) / TILE);
  state.tiles_y = static_cast<int>((in.height + TILE - 1) / TILE);
  state.features = static_cast<int>(in.channels) + 4;
  state.packed_stride = (SPLAT_FLOATS + state.features + 15) / 16 * 16;
  state.bins.resize(in.views);
  const int64_t tiles = static_cast<int64_t>(state.tiles_x) * state.tiles_y;
  const int threads = useful_threads(in);
  const bool views_fill_threads = in.views >= threads;
  parallel_for(in.views, views_fill_threads ? threads : 1, [&](int64_t view) {
    bin_view(in, view, views_fill_threads ? 1 : threads, state);
    ViewBins& bins = state.bins[view];
    bins.tile_ends.allocate(tiles);
    bins.transmittance.allocate(tiles * TILE_PIXELS);
    bins.stop.allocate(tiles * TILE_PIXELS);
  });
  const int64_t sums_size = static_cast<int64_t>(state.features) * TILE_PIXELS;
  std::vector<Buffer<float>> sums(threads);
  for (auto& buffer : sums) buffer.allocate(sums_size);
  parallel_for(in.views * tiles, threads, [&](int64_t task) {
    render_tile(in, out, state, task / tiles, static_cast<int>(task % tiles), sums[thread_number()].data());
  });
  return state;
}

namespace {

// What every task of one backward pass shares.
struct BackwardPlan {
  const CompositeInputs& in;
  const CompositeState& state;
  const CompositeGradients& gradients;
  int features;                   // composited features that have a gradient
  int stride;                     // floats per row of results
  std::vector<Buffer<float>> rows;  // per view: by Gaussian, or by entry where tiles are the tasks
  Buffer<float> background;       // [B, tiles, C] partial sums
};

// Per-thread planes of a tile.
struct BackwardScratch {
  Buffer<float> transmittance{TILE_PIXELS}, behind{TILE_PIXELS}, gradients;
  Buffer<float> accumulators;
};

// Fill the planes of incoming gradients; features without one are zero.
void read_tile(const BackwardPlan& plan, int64_t view, const TilePlace& place, BackwardScratch& scratch) {
  const CompositeState& state = plan.state;
  const CompositeGradients& g = plan.gradients;
  const int channels = static_cast<int>(state.channels);
  std::fill_n(scratch.gradients.data(), plan.features * TILE_PIXELS, 0.0f);
  for (int row = 0; row < place.rows; ++row) {
    for (int column = 0; column < place.columns; ++column) {
      const int pixel = row * TILE + column;
      const size_t source = (view * state.height + place.y + row) * state.width + place.x + column;
      float* plane = scratch.gradients.data() + pixel;
      if (g.image != nullptr) {
        for (int c = 0; c < channels; ++c) plane[c * TILE_PIXELS] = g.image[source * channels + c];
      }
      if (g.depth != nullptr) plane[channels * TILE_PIXELS] = g.depth[source];
      if (g.normal != nullptr) {
        for (int axis = 0; axis < 3; ++axis) {
          plane[(channels + 1 + axis) * TILE_PIXELS] = g.normal[source * 3 + axis];
        }
      }
    }
  }
}

// dL/dT T for every pixel (T reaches the background and alpha = 1 - T), and the background's own gradient.
void start_behind(BackwardPlan& plan, int64_t view, int tile, const TilePlace& place, BackwardScratch& scratch) {
  const int channels = static_cast<int>(plan.state.channels);
  const float* background = plan.in.background == nullptr ? nullptr : plan.in.background + view * channels;
  const int64_t tiles = static_cast<int64_t>(plan.state.tiles_x) * plan.state.tiles_y;
  std::fill_n(scratch.behind.data(), TILE_PIXELS, 0.0f);
  for (int row = 0; row < place.rows; ++row) {
    for (int column = 0; column < place.columns; ++column) {
      const int pixel = row * TILE + column;
      const size_t source = (view * plan.state.height + place.y + row) * plan.state.width + place.x + column;
      float total = plan.gradients.alpha == nullptr ? 0.0f : -plan.gradients.alpha[source];
      for (int c = 0; background != nullptr && c < channels; ++c) {
        total += background[c] * scratch.gradients[c * TILE_PIXELS + pixel];
      }
      scratch.behind[pixel] = total * scratch.transmittance[pixel];
    }
  }
  if (plan.gradients.background == nullptr) return;
  for (int c = 0; c < channels; ++c) {
    float total = 0.0f;  // pixels outside the image have zero gradients
    for (int pixel = 0; pixel < TILE_PIXELS; ++pixel) {
      total += scratch.transmittance[pixel] * scratch.gradients[c * TILE_PIXELS + pixel];
    }
    plan.background[(view * tiles + tile) * channels + c] = total;
  }
}

void differentiate_tile(BackwardPlan& plan, int64_t view, int tile, bool by_entry, BackwardScratch& scratch) {
  const ViewBins& bins = plan.state.bins[view];
  const TilePlace place = place_of(plan.state, tile);
  const size_t first = static_cast<size_t>(tile) * TILE_PIXELS;
  std::copy_n(bins.transmittance.data() + first, TILE_PIXELS, scratch.transmittance.data());
  read_tile(plan, view, place, scratch);
  start_behind(plan, view, tile, place, scratch);
  float* rows = plan.rows[view].data();
  const BackwardTile t{&bins,
                       tile,
                       place.x,
                       place.y,
                       plan.state.packed_stride,
                       plan.features,
                       scratch.transmittance.data(),
                       scratch.behind.data(),
                       bins.stop.data() + first,
                       scratch.gradients.data(),
                       rows,
                       plan.stride,
                       by_entry,
                       scratch.accumulators.data(),
                       plan.gradients.absolute != nullptr};
  DREAMKIT_CALL(backward_any, t);
  if (by_entry) {  // entries behind an opaque front were never composited
    const size_t reached = bins.tile_starts[tile] + bins.tile_ends[tile], end = bins.tile_starts[tile + 1];
    std::fill(rows + reached * plan.stride, rows + end * plan.stride, 0.0f);
  }
}

// From moments to the gradients of one Gaussian in one view. `row` holds the sums over pixels.
void write_gradients(const BackwardPlan& plan, int64_t target, const float* row, float* colors) {
  const CompositeGradients& out = plan.gradients;
  const int channels = static_cast<int>(plan.state.channels);
  const Geometry& g = plan.in.geometry[target];
  out.means2d[2 * target] = -(g.conic_xx * row[1] + g.conic_xy * row[2]);
  out.means2d[2 * target + 1] = -(g.conic_xy * row[1] + g.conic_yy * row[2]);
  const float* features = row + MOMENTS;
  Geometry result{0.5f * row[3], row[4], 0.5f * row[5], -row[0] / g.opacity, 0.0f, {0.0f, 0.0f, 0.0f}};
  if (plan.features > channels) {
    result.depth = features[channels];
    std::copy_n(features + channels + 1, 3, result.normal);
  }
  out.geometry[target] = result;
  std::copy_n(features, channels, colors + target * channels);
  for (int axis = 0; out.absolute != nullptr && axis < 2; ++axis) {
    out.absolute[2 * target + axis] = 1.38629436111989061883f * features[plan.features + axis];
  }
}

// Those of one that touches no tile.
void write_zeros(const BackwardPlan& plan, int64_t target, float* colors) {
  std::fill_n(plan.gradients.means2d + 2 * target, 2, 0.0f);
  if (plan.gradients.absolute != nullptr) std::fill_n(plan.gradients.absolute + 2 * target, 2, 0.0f);
  plan.gradients.geometry[target] = Geometry{};
  std::fill_n(colors + target * plan.state.channels, plan.state.channels, 0.0f);
}

// Writes the gradients of Gaussians; sum_of(i) is the row of sums of the i-th, if it touches a tile.
template <class Sum>
void write_range(const BackwardPlan& plan, int64_t view, int64_t begin, int64_t end, float* colors, Sum sum_of) {
  const uint32_t* starts = plan.state.bins[view].starts.data();
  for (int64_t i = begin; i < end; ++i) {
    const int64_t target = view * plan.state.count + i;
    if (starts[i] == starts[i + 1]) {
      write_zeros(plan, target, colors);
    } else {
      write_gradients(plan, target, sum_of(i), colors);
    }
  }
}

// One view by one thread: gradients are added per Gaussian, tiles ascending.
void differentiate_view(BackwardPlan& plan, int64_t view, float* colors, BackwardScratch& scratch) {
  const size_t size = static_cast<size_t>(plan.state.count) * plan.stride;
  Buffer<float>& rows = plan.rows[view];
  rows.allocate(size);
  std::fill_n(rows.data(), size, 0.0f);
  for (int tile = 0; tile < plan.state.tiles_x * plan.state.tiles_y; ++tile) {
    differentiate_tile(plan, view, tile, false, scratch);
  }
  write_range(plan, view, 0, plan.state.count, colors, [&](int64_t i) { return rows.data() + i * plan.stride; });
  rows = Buffer<float>();
}

// One view by many threads: tiles write a row per entry; then each Gaussian adds its rows, tiles ascending. The
// additions are those of differentiate_view in the same order, so the results are equal to the last bit.
void differentiate_view_by_tiles(BackwardPlan& plan, int64_t view, int threads, float* colors,
                                 std::vector<BackwardScratch>& scratch) {
  const ViewBins& bins = plan.state.bins[view];
  const int tiles = plan.state.tiles_x * plan.state.tiles_y;
  const uint32_t entries = bins.tile_starts[tiles];
  Buffer<float>& rows = plan.rows[view];
  rows.allocate(static_cast<size_t>(entries) * plan.stride);
  parallel_for(tiles, threads, [&](int64_t tile) {
    differentiate_tile(plan, view, static_cast<int>(tile), true, scratch[thread_number()]);
  });
  const auto row_at = [&](uint32_t slot) {
    return rows.data() + static_cast<size_t>(bins.positions[slot]) * plan.stride;
  };
  constexpr int64_t BLOCK = 512;
  constexpr uint32_t AHEAD = 16;  // rows of a Gaussian lie far apart
  parallel_for((plan.state.count + BLOCK - 1) / BLOCK, threads, [&](int64_t block) {
    std::vector<float> row(plan.stride);
    const int64_t begin = block * BLOCK, end = std::min(plan.state.count, begin + BLOCK);
    write_range(plan, view, begin, end, colors, [&](int64_t i) {
      std::fill(row.begin(), row.end(), 0.0f);
      for (uint32_t slot = bins.starts[i]; slot < bins.starts[i + 1]; ++slot) {
        if (slot + AHEAD < entries) __builtin_prefetch(row_at(slot + AHEAD));
        const float* source = row_at(slot);
        for (int f = 0; f < plan.stride; ++f) row[f] += source[f];
      }
      return row.data();
    });
  });
  rows = Buffer<float>();
}

void reduce_background(const BackwardPlan& plan) {
  if (plan.gradients.background == nullptr) return;
  const int64_t tiles = static_cast<int64_t>(plan.state.tiles_x) * plan.state.tiles_y, channels = plan.state.channels;
  for (int64_t view = 0; view < plan.state.views; ++view) {
    for (int64_t c = 0; c < channels; ++c) {
      double total = 0.0;
      for (int64_t tile = 0; tile < tiles; ++tile) total += plan.background[(view * tiles + tile) * channels + c];
      plan.gradients.background[view * channels + c] = static_cast<float>(total);
    }
  }
}

}  // namespace

void composite_backward(const CompositeInputs& in, const CompositeState& state, const CompositeGradients& gradients) {
  const bool geometry = gradients.depth != nullptr || gradients.normal != nullptr;
  const int features = static_cast<int>(state.channels) + (geometry ? 4 : 0);
  const int stride = (MOMENTS + features + ABSOLUTES + LANES - 1) / LANES * LANES;
  BackwardPlan plan{in, state, gradients, features, stride, {}, {}};
  plan.rows.resize(state.views);
  const int64_t tiles = static_cast<int64_t>(state.tiles_x) * state.tiles_y;
  if (gradients.background != nullptr) plan.background.allocate(state.views * tiles * state.channels);

  // Shared colours receive a gradient from every view; each view writes its own, then they are added in order.
  const int64_t color_size = state.count * state.channels;
  Buffer<float> per_view;
  float* colors = gradients.colors;
  if (in.shared_colors) {  // views is not 1
    per_view.allocate(state.views * color_size);
    colors = per_view.data();
  }
  const int threads = useful_threads(in);
  std::vector<BackwardScratch> scratch(threads);
  for (auto& own : scratch) {
    own.gradients.allocate(static_cast<size_t>(features) * TILE_PIXELS);
    own.accumulators.allocate(static_cast<size_t>(stride) * LANES);
  }
  if (threads == 1 || state.views % threads == 0 || state.views >= 4 * threads) {
    parallel_for(state.views, threads,
                 [&](int64_t view) { differentiate_view(plan, view, colors, scratch[thread_number()]); });
  } else {
    for (int64_t view = 0; view < state.views; ++view) {
      differentiate_view_by_tiles(plan, view, threads, colors, scratch);
    }
  }
  if (colors != gradients.colors) {
    std::fill_n(gradients.colors, color_size, 0.0f);
    for (int64_t view = 0; view < state.views; ++view) {
      for (int64_t i = 0; i < color_size; ++i) gradients.colors[i] += colors[view * color_size + i];
    }
  }
  reduce_background(plan);
}

}  // namespace dreamkit
