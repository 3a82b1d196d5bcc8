// Depth order and tile lists of one view.
//
// Gaussians are sorted once by depth (stable, so ties keep their index order); walking that order and appending each
// Gaussian to the tiles it touches leaves every tile's list sorted. The lists do not depend on the thread count.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "native.h"

namespace dreamkit {
namespace {

constexpr uint64_t MAX_ENTRIES = uint64_t{1} << 31;
constexpr size_t PREFETCH = 16;               // Gaussians
constexpr int64_t PARALLEL_THRESHOLD = 4096;  // Gaussians below which sharing them out does not pay

// Least-significant-digit radix sort of (key, index) pairs by 32-bit keys, three digits of 11 bits. Stable.
void radix_sort(Buffer<uint64_t>& items, size_t count) {
  constexpr int BITS = 11, DIGITS = 1 << BITS;
  Buffer<uint64_t> sorted(count);
  for (int shift = 32; shift < 64; shift += BITS) {
    uint32_t places[DIGITS] = {0};
    for (size_t i = 0; i < count; ++i) ++places[(items[i] >> shift) & (DIGITS - 1)];
    uint32_t running = 0;
    for (uint32_t& place : places) running += std::exchange(place, running);
    for (size_t i = 0; i < count; ++i) sorted[places[(items[i] >> shift) & (DIGITS - 1)]++] = items[i];
    std::swap(items, sorted);
  }
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

void pack(const CompositeInputs& in, int64_t row, int64_t index, float* packed) {
  const float* color = in.colors + (in.shared_colors ? index : row) * in.channels;
  std::memcpy(packed, in.splats + row, sizeof(Splat));
  packed += SPLAT_FLOATS;
  for (int64_t channel = 0; channel < in.channels; ++channel) packed[channel] = color[channel];
  std::memcpy(packed + in.channels, &in.geometry[row].depth, 4 * sizeof(float));  // depth and normal
}

// What a view's Gaussians are on their way into the lists.
struct Listing {
  Buffer<TileBox> boxes;   // [N]
  Buffer<uint64_t> items;  // [listed] depth and index of those that touch a tile
  int64_t listed = 0;
};

// Packs Gaussians, and finds how many entries each will have.
Listing pack_view(const CompositeInputs& in, int64_t view, int shares, const CompositeState& state, ViewBins& bins) {
  Listing listing;
  listing.boxes.allocate(in.count);
  listing.items.allocate(in.count);
  bins.packed.allocate(in.count * state.packed_stride);
  bins.starts.allocate(in.count + 1);
  std::vector<uint64_t> entries(shares + 1, 0);
  std::vector<int64_t> listed(shares, 0);
  const auto first_of = [&](int64_t share) { return in.count * share / shares; };
  parallel_for(shares, shares, [&](int64_t share) {
    const int64_t begin = first_of(share), end = first_of(share + 1);
    uint64_t* item = listing.items.data() + begin;
    uint64_t total = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = view * in.count + i;
      const TileBox box = in.radii[row] > 0 ? tile_box(in.splats[row], state) : TileBox{0, 0, 0, 0};
      listing.boxes[i] = box;
      bins.starts[i] = static_cast<uint32_t>(total);  // within the share, until the totals are known
      if (box.x1 == box.x0) continue;
      pack(in, row, i, bins.packed.data() + i * state.packed_stride);
      total += static_cast<uint64_t>(box.x1 - box.x0) * (box.y1 - box.y0);
      uint32_t key;  // depths are positive, and a positive float's bits sort like the float
      std::memcpy(&key, &in.geometry[row].depth, sizeof(key));
      *item++ = (static_cast<uint64_t>(key) << 32) | static_cast<uint32_t>(i);
    }
    entries[share + 1] = total;
    listed[share] = item - listing.items.data() - begin;
  });
  for (int share = 0; share < shares; ++share) {
    entries[share + 1] += entries[share];
    const uint64_t* own = listing.items.data() + first_of(share);
    std::memmove(listing.items.data() + listing.listed, own, sizeof(uint64_t) * static_cast<size_t>(listed[share]));
    listing.listed += listed[share];
  }
  if (entries[shares] >= MAX_ENTRIES) {
    throw std::runtime_error("gaussian_rasterize: too many Gaussian-tile pairs in one view; render smaller images.");
  }
  for (int share = 1; share < shares; ++share) {
    for (int64_t i = first_of(share); i < first_of(share + 1); ++i) {
      bins.starts[i] += static_cast<uint32_t>(entries[share]);
    }
  }
  bins.starts[in.count] = static_cast<uint32_t>(entries[shares]);
  return listing;
}

// Where to cut the depths, so that about as many lie in every part: quantiles of a sample.
std::vector<uint64_t> cuts_of(const Listing& listing, int parts) {
  const int64_t step = 1 + listing.listed / (64 * parts);
  std::vector<uint64_t> sample;
  for (int64_t i = 0; i < listing.listed; i += step) sample.push_back(listing.items[i]);
  std::sort(sample.begin(), sample.end());
  std::vector<uint64_t> cuts(parts + 1, UINT64_MAX);
  for (int part = 0; part < parts && !sample.empty(); ++part) cuts[part] = sample[sample.size() * part / parts];
  cuts[0] = 0;
  return cuts;
}

// The Gaussians between two depths, sorted.
struct Part {
  Buffer<uint64_t> items;
  size_t count = 0;

  void take(const Listing& listing, uint64_t low, uint64_t high) {
    const auto inside = [&](uint64_t item) { return item >= low && item < high; };
    const uint64_t *begin = listing.items.data(), *end = begin + listing.listed;
    count = static_cast<size_t>(std::count_if(begin, end, inside));
    items.allocate(count + 1);
    uint64_t* target = items.data();
    for (const uint64_t* item = begin; item < end; ++item) {  // one too many is written, but nothing mispredicted
      *target = *item;
      target += inside(*item);
    }
    radix_sort(items, count);
  }

  // Runs visit(index, tile) for every tile of every one, front to back.
  template <class Visit>
  void for_each_entry(const Buffer<TileBox>& boxes, int tiles_x, Visit visit) const {
    for (size_t place = 0; place < count; ++place) {
      if (place + PREFETCH < count) __builtin_prefetch(&boxes[static_cast<uint32_t>(items[place + PREFETCH])]);
      const uint32_t index = static_cast<uint32_t>(items[place]);
      const TileBox box = boxes[index];
      for (int y = box.y0; y < box.y1; ++y) {
        for (int x = box.x0; x < box.x1; ++x) visit(index, y * tiles_x + x);
      }
    }
  }
};

}  // namespace

void bin_view(const CompositeInputs& in, int64_t view, int threads, CompositeState& state) {
  ViewBins& bins = state.bins[view];
  const int shares = in.count < PARALLEL_THRESHOLD ? 1 : threads;
  const Listing listing = pack_view(in, view, shares, state, bins);

  // Each part of the depths counts its entries per tile; a running sum over (tile, part) then tells every part where to
  // write, so that parts fill the lists independently and in depth order.
  const int tiles = state.tiles_x * state.tiles_y;
  const std::vector<uint64_t> cuts = cuts_of(listing, shares);
  std::vector<Part> parts(shares);
  std::vector<uint32_t> places(static_cast<size_t>(shares) * tiles, 0);
  parallel_for(shares, shares, [&](int64_t part) {
    parts[part].take(listing, cuts[part], cuts[part + 1]);
    uint32_t* counts = places.data() + part * tiles;
    parts[part].for_each_entry(listing.boxes, state.tiles_x, [&](uint32_t, int tile) { ++counts[tile]; });
  });
  bins.tile_starts.allocate(tiles + 1);
  uint32_t running = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    bins.tile_starts[tile] = running;
    for (int part = 0; part < shares; ++part) running += std::exchange(places[part * tiles + tile], running);
  }
  bins.tile_starts[tiles] = running;
  bins.entries.allocate(running);
  bins.positions.allocate(running);
  parallel_for(shares, shares, [&](int64_t part) {
    uint32_t* place = places.data() + part * tiles;
    uint32_t last = UINT32_MAX, slot = 0;
    parts[part].for_each_entry(listing.boxes, state.tiles_x, [&](uint32_t index, int tile) {
      slot = index == last ? slot + 1 : bins.starts[index];
      last = index;
      const uint32_t position = place[tile]++;
      bins.entries[position] = index;
      bins.positions[slot] = position;
    });
  });
}

}  // namespace dreamkit
