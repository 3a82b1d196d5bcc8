// Depth order and tile lists of one view.
//
// Gaussians are sorted once by depth (stable, so ties keep their index order); walking that order and appending each
// Gaussian to the tiles it touches leaves every tile's list sorted. The lists do not depend on the thread count.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "native.h"

namespace dreamkit {
namespace {

constexpr uint64_t MAX_ENTRIES = uint64_t{1} << 31;
constexpr int64_t PREFETCH = 16;  // Gaussians

// Least-significant-digit radix sort of (key, index) pairs by 32-bit keys, three digits of 11 bits. Stable.
void radix_sort(Buffer<uint64_t>& items, Buffer<uint64_t>& scratch, size_t count) {
  constexpr int BITS = 11, DIGITS = 1 << BITS;
  for (int shift = 32; shift < 64; shift += BITS) {
    uint32_t starts[DIGITS] = {0};
    for (size_t i = 0; i < count; ++i) ++starts[(items[i] >> shift) & (DIGITS - 1)];
    uint32_t total = 0;
    bool single = false;  // every key has the same digit: nothing to move
    for (int digit = 0; digit < DIGITS; ++digit) {
      const uint32_t here = starts[digit];
      single |= here == count;
      starts[digit] = total;
      total += here;
    }
    if (single) continue;
    for (size_t i = 0; i < count; ++i) scratch[starts[(items[i] >> shift) & (DIGITS - 1)]++] = items[i];
    std::swap(items, scratch);
  }
}

// Fill bins.order with the visible Gaussians by depth.
void sort_by_depth(const CompositeInputs& in, int64_t view, ViewBins& bins) {
  const int32_t* radii = in.radii + view * in.count;
  const Geometry* geometry = in.geometry + view * in.count;
  Buffer<uint64_t> items(in.count), scratch(in.count);
  size_t visible = 0;
  for (int64_t i = 0; i < in.count; ++i) {
    if (radii[i] <= 0) continue;
    uint32_t key;  // depths are positive, and a positive float's bits sort like the float
    std::memcpy(&key, &geometry[i].depth, sizeof(key));
    items[visible++] = (static_cast<uint64_t>(key) << 32) | static_cast<uint32_t>(i);
  }
  radix_sort(items, scratch, visible);
  bins.visible = static_cast<uint32_t>(visible);
  bins.order.allocate(visible);
  for (size_t rank = 0; rank < visible; ++rank) bins.order[rank] = static_cast<uint32_t>(items[rank]);
}

// Tiles that hold a pixel centre of the bounding box.
TileBox tile_box(const Splat& s, const CompositeState& state) {
  const auto clamped = [](float edge, int tiles) {  // truncation is floor for what is not clamped to zero
    return static_cast<uint16_t>(std::min(static_cast<float>(tiles), std::max(0.0f, edge * (1.0f / TILE))));
  };
  const TileBox box{clamped(s.x - s.extent_x, state.tiles_x), clamped(s.x + s.extent_x + TILE, state.tiles_x),
                    clamped(s.y - s.extent_y, state.tiles_y), clamped(s.y + s.extent_y + TILE, state.tiles_y)};
  return box.x1 > box.x0 && box.y1 > box.y0 ? box : TileBox{0, 0, 0, 0};
}

void pack(const CompositeInputs& in, int64_t view, const CompositeState& state, ViewBins& bins, int64_t rank) {
  const int64_t index = bins.order[rank], row = view * in.count + index;
  bins.splats[rank] = in.splats[row];
  bins.boxes[rank] = tile_box(in.splats[row], state);
  float* features = bins.features.data() + rank * state.feature_stride;
  const float* color = in.colors + (in.shared_colors ? index : row) * in.channels;
  for (int64_t channel = 0; channel < in.channels; ++channel) features[channel] = color[channel];
  std::memcpy(features + in.channels, &in.geometry[row].depth, 4 * sizeof(float));  // depth and normal
  for (int rest = state.features; rest < state.feature_stride; ++rest) features[rest] = 0.0f;
}

// Rows that `pack` will read: depth order visits them at random, and waiting for each would be most of the work.
void prefetch(const CompositeInputs& in, int64_t view, const ViewBins& bins, int64_t rank) {
  if (rank >= bins.visible) return;
  const int64_t index = bins.order[rank], row = view * in.count + index;
  __builtin_prefetch(in.splats + row);
  __builtin_prefetch(in.geometry + row);
  __builtin_prefetch(in.colors + (in.shared_colors ? index : row) * in.channels);
}

template <class Visit>
void for_each_tile(const TileBox& box, const CompositeState& state, Visit visit) {
  for (int y = box.y0; y < box.y1; ++y) {
    for (int x = box.x0; x < box.x1; ++x) visit(y * state.tiles_x + x);
  }
}

}  // namespace

void bin_view(const CompositeInputs& in, int64_t view, int threads, CompositeState& state) {
  ViewBins& bins = state.bins[view];
  sort_by_depth(in, view, bins);
  const int64_t visible = bins.visible;
  const int tiles = state.tiles_x * state.tiles_y;
  bins.splats.allocate(visible);
  bins.boxes.allocate(visible);
  bins.features.allocate(visible * state.feature_stride);
  bins.rank_starts.allocate(visible + 1);
  bins.tile_starts.allocate(tiles + 1);

  // Each chunk of ranks counts its entries per tile; a running sum over (tile, chunk) then tells every chunk where
  // to write, so that chunks fill the lists independently and in rank order.
  const int chunks = visible < 4096 ? 1 : threads;
  std::vector<uint32_t> cursors(static_cast<size_t>(chunks) * tiles, 0);
  std::vector<uint64_t> chunk_entries(chunks + 1, 0);
  const auto first_rank = [&](int64_t chunk) { return visible * chunk / chunks; };
  parallel_for(chunks, chunks, [&](int64_t chunk) {
    uint32_t* counts = cursors.data() + static_cast<size_t>(chunk) * tiles;
    uint64_t total = 0;
    for (int64_t rank = first_rank(chunk); rank < first_rank(chunk + 1); ++rank) {
      prefetch(in, view, bins, rank + PREFETCH);
      pack(in, view, state, bins, rank);
      bins.rank_starts[rank] = static_cast<uint32_t>(total);  // within the chunk, until the totals are known
      for_each_tile(bins.boxes[rank], state, [&](int tile) {
        ++counts[tile];
        ++total;
      });
    }
    chunk_entries[chunk + 1] = total;
  });
  for (int chunk = 0; chunk < chunks; ++chunk) chunk_entries[chunk + 1] += chunk_entries[chunk];
  if (chunk_entries[chunks] >= MAX_ENTRIES) {
    throw std::runtime_error("gaussian_rasterize: too many Gaussian-tile pairs in one view; render smaller images.");
  }
  uint32_t running = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    bins.tile_starts[tile] = running;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      uint32_t& cursor = cursors[static_cast<size_t>(chunk) * tiles + tile];
      const uint32_t here = cursor;
      cursor = running;
      running += here;
    }
  }
  bins.tile_starts[tiles] = running;
  bins.rank_starts[visible] = running;
  bins.entries.allocate(running);
  bins.positions.allocate(running);
  parallel_for(chunks, chunks, [&](int64_t chunk) {
    uint32_t* cursor = cursors.data() + static_cast<size_t>(chunk) * tiles;
    for (int64_t rank = first_rank(chunk); rank < first_rank(chunk + 1); ++rank) {
      uint32_t slot = bins.rank_starts[rank] += static_cast<uint32_t>(chunk_entries[chunk]);
      for_each_tile(bins.boxes[rank], state, [&](int tile) {
        const uint32_t position = cursor[tile]++;
        bins.entries[position] = static_cast<uint32_t>(rank);
        bins.positions[slot++] = position;
      });
    }
  });
}

}  // namespace dreamkit
