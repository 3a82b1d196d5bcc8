// Shared by the native kernels of gaussian_rasterize: constants, arguments, the state kept for the backward.
#pragma once

#include <vector>

#include "../common.h"

namespace dreamkit {

// The rules of gsplat; types.py holds the same numbers.
constexpr float ALPHA_MAX = 0.999f;
constexpr float ALPHA_MIN = 1.0f / 255.0f;
constexpr float LOG2_ALPHA_MIN = -7.99435343685885793770f;
constexpr float TRANSMITTANCE_MIN = 1e-4f;
constexpr float MAX_MAGNITUDE = 1e12f;
constexpr float MAX_RADIUS = 1e9f;

constexpr int TILE = 16;  // side of a tile, pixels; a multiple of the lanes
constexpr int TILE_PIXELS = TILE * TILE;

// One Gaussian in one view, in the form the compositing loops want. All zero where culled.
// alpha(dx, dy) = 2^(log2_opacity - (l1 dx + l2 dy)^2 - (l3 dy)^2): the Cholesky factor of the conic, scaled by
// sqrt(log2(e) / 2), makes the exponent a difference of squares that can't come out positive by rounding.
struct Splat {
  float x, y;                // pixels
  float l1, l2, l3;          // 1 / pixels
  float log2_opacity;
  float extent_x, extent_y;  // half the bounding box of alpha >= 1/255, pixels, with a margin for rounding
};
static_assert(sizeof(Splat) == 8 * sizeof(float), "a row of the splats tensor");

// The same Gaussian's differentiable quantities: a row of the geometry tensor and of its gradient.
struct Geometry {
  float conic_xx, conic_xy, conic_yy;
  float opacity;
  float depth;
  float normal[3];
};
static_assert(sizeof(Geometry) == 8 * sizeof(float), "a row of the geometry tensor");

// --- Projection and colours (projection.cpp) ---

struct ProjectionInputs {
  int64_t views, count, color_size;
  const float* means;          // [N, 3]
  const float* quaternions;    // [N, 4]
  const float* scales;         // [N, 3]
  const float* opacities;      // [N]
  const float* colors;         // [N, color_size], only checked for being finite
  const float* view_matrices;  // [B, 4, 4]
  const float* intrinsics;     // [B, 3, 3]
  float width, height, near, far, eps2d, radius_clip;
  bool antialiased, orthographic;
  int threads;
};

struct ProjectionOutputs {
  float* means2d;      // [B, N, 2]
  Geometry* geometry;  // [B, N]
  Splat* splats;       // [B, N]
  int32_t* radii;      // [B, N]
};

struct ProjectionGradients {
  const float* means2d;      // [B, N, 2] dL/d(output)
  const Geometry* geometry;  // [B, N]
  float* means;              // results, shaped as the inputs
  float* quaternions;
  float* scales;
  float* opacities;
  float* view_matrices;  // or null
};

void project_forward(const ProjectionInputs& inputs, const ProjectionOutputs& outputs);
void project_backward(const ProjectionInputs& inputs, const int32_t* radii, const ProjectionGradients& gradients);

struct ShadeInputs {
  int64_t views, count;
  int bases, degree;           // coefficients per channel held, and harmonics degree used
  const float* means;          // [N, 3]
  const float* coefficients;   // [N, bases, 3]
  const float* view_matrices;  // [B, 4, 4]
  const int32_t* radii;        // [B, N]; 0 is culled
  int threads;
};

struct ShadeGradients {
  const float* colors;  // [B, N, 3] dL/d(output)
  float* means;         // results, shaped as the inputs
  float* coefficients;
  float* view_matrices;  // or null
};

void shade_forward(const ShadeInputs& inputs, float* colors);
void shade_backward(const ShadeInputs& inputs, const ShadeGradients& gradients);

// --- Compositing (binning.cpp, composite.cpp) ---

struct CompositeInputs {
  int64_t views, count, width, height, channels;
  bool shared_colors;        // colors is [1, N, C]
  const Splat* splats;       // [B, N]
  const Geometry* geometry;  // [B, N]
  const int32_t* radii;      // [B, N]; 0 is culled
  const float* colors;       // [B or 1, N, C]
  const float* background;   // [B, C] or null
  int threads;
};

struct CompositeOutputs {
  float* image;   // [B, H, W, C]
  float* alpha;   // [B, H, W]
  float* depth;   // [B, H, W]
  float* normal;  // [B, H, W, 3]
  float* median;  // [B, H, W] depth at which half of the light is gone, or null
};

struct TileBox {
  uint16_t x0, x1, y0, y1;  // half-open, in tiles
};

constexpr int SPLAT_FLOATS = sizeof(Splat) / sizeof(float);

// One view's Gaussians, listed per tile. Those that touch no tile have no entries, and no packed row.
struct ViewBins {
  Buffer<float> packed;          // [N, packed_stride]: the Splat, colours, depth, normal; what a tile reads of one
  Buffer<uint32_t> tile_starts;  // [tiles + 1]
  Buffer<uint32_t> entries;      // [entries] Gaussians, tile by tile, front to back
  Buffer<uint32_t> starts;       // [N + 1]
  Buffer<uint32_t> positions;    // [entries] Gaussian by Gaussian: where its entries are, tiles ascending
  Buffer<uint32_t> tile_ends;    // [tiles] entries really composited (every pixel may stop early)
  Buffer<float> transmittance;   // [tiles, TILE_PIXELS] final
  Buffer<int32_t> stop;          // [tiles, TILE_PIXELS] a pixel uses entries before this one
};

struct CompositeState {
  int64_t views, count, width, height, channels;
  int tiles_x, tiles_y;
  int features;        // channels + depth + normal
  int packed_stride;   // a Splat and features, rounded up to cache lines
  std::vector<ViewBins> bins;

  CompositeState() = default;
  CompositeState(CompositeState&&) = default;
  CompositeState(const CompositeState&) = delete;  // a vector of move-only items claims to be copyable
};

struct CompositeGradients {
  const float* image;   // [B, H, W, C] or null: dL/d(output)
  const float* alpha;   // [B, H, W] or null
  const float* depth;   // [B, H, W] or null
  const float* normal;  // [B, H, W, 3] or null
  float* means2d;       // [B, N, 2] results
  Geometry* geometry;   // [B, N]
  float* colors;        // shaped as the input
  float* background;    // [B, C] or null
  float* absolute;      // [B, N, 2] sums of the absolute values of what means2d sums, or null
};

CompositeState composite_forward(const CompositeInputs& inputs, const CompositeOutputs& outputs);
void composite_backward(const CompositeInputs& inputs, const CompositeState& state,
                        const CompositeGradients& gradients);

// Depth order, packing and tile lists of one view, with `threads` threads inside it.
void bin_view(const CompositeInputs& inputs, int64_t view, int threads, CompositeState& state);

}  // namespace dreamkit
