// Shared by the native kernels of gaussian_rasterize: buffers, constants and the state kept for the backward pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace dreamkit {

// The rules of gsplat; reference.py and types.py hold the same numbers.
constexpr float ALPHA_MAX = 0.999f;
constexpr float ALPHA_MIN = 1.0f / 255.0f;
constexpr float TRANSMITTANCE_MIN = 1e-4f;
constexpr float MAX_MAGNITUDE = 1e12f;

constexpr int LANES = 8;  // floats in a vector
constexpr int TILE = 16;  // side of a tile, pixels; a multiple of the lanes
constexpr int TILE_PIXELS = TILE * TILE;

// Uninitialised, cache-line aligned memory. std::vector would clear what is overwritten anyway.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) { allocate(count); }
  Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      std::free(data_);
      data_ = other.data_;
      other.data_ = nullptr;
    }
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  void allocate(size_t count) {
    std::free(data_);
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes == 0 ? 64 : bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t index) { return data_[index]; }
  const T& operator[](size_t index) const { return data_[index]; }

 private:
  T* data_ = nullptr;
};

// One visible Gaussian in one view, in the form the inner loop wants.
// alpha(dx, dy) = 2^(log2_opacity - (l1 dx + l2 dy)^2 - (l3 dy)^2): the Cholesky factor of the conic, scaled by
// sqrt(log2(e) / 2), makes the exponent a difference of squares that can't come out positive by rounding.
struct Splat {
  float x, y;
  float l1, l2, l3;
  float log2_opacity;
  float extent_x, extent_y;  // half the bounding box of alpha >= 1/255, pixels
};

// One view's Gaussians sorted by depth (a Gaussian's place in that order is its rank) and listed per tile.
struct ViewBins {
  uint32_t visible = 0;
  Buffer<uint32_t> order;         // [visible] rank -> index of the Gaussian
  Buffer<Splat> splats;           // [visible]
  Buffer<float> features;         // [visible, feature_stride]
  Buffer<uint32_t> tile_starts;   // [tiles + 1]
  Buffer<uint32_t> entries;       // [entries] ranks, tile by tile, front to back
  Buffer<uint32_t> rank_starts;   // [visible + 1]
  Buffer<uint32_t> positions;     // [entries] rank by rank: where its entries are, tiles ascending
  Buffer<uint32_t> tile_ends;     // [tiles] entries really composited (every pixel may stop early)
  Buffer<float> transmittance;    // [tiles, TILE_PIXELS] final
  Buffer<int32_t> stop;           // [tiles, TILE_PIXELS] a pixel uses entries before this one
};

struct CompositeInputs {
  int64_t views, count, width, height, channels;
  bool shared_colors;       // colors is [1, N, C]
  const float* means2d;     // [B, N, 2]
  const float* conics;      // [B, N, 3]
  const float* opacities;   // [B, N]; 0 is culled
  const float* depths;      // [B, N]
  const float* normals;     // [B, N, 3]
  const float* colors;      // [B or 1, N, C]
  const float* background;  // [B, C] or null
  int threads;
};

struct CompositeOutputs {
  float* image;   // [B, H, W, C]
  float* alpha;   // [B, H, W]
  float* depth;   // [B, H, W]
  float* normal;  // [B, H, W, 3]
};

struct CompositeState {
  int64_t views, count, width, height, channels;
  int tiles_x, tiles_y;
  int features;        // channels + depth + normal
  int feature_stride;  // rounded up to the lanes
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
  float* means2d;       // results, shaped as the inputs
  float* conics;
  float* opacities;
  float* depths;
  float* normals;
  float* colors;
  float* background;  // [B, C] or null
};

enum class InstructionSet { baseline, avx2, avx512 };

// What this processor has, found once; DREAMKIT_SIMD=baseline or avx2 asks for less (to test those paths).
InstructionSet instruction_set();
const char* instruction_set_name();

CompositeState composite_forward(const CompositeInputs& inputs, const CompositeOutputs& outputs);
void composite_backward(const CompositeInputs& inputs, const CompositeState& state, const CompositeGradients& gradients);

// binning.cpp: depth order, packing and tile lists of one view, with `threads` threads inside it.
void bin_view(const CompositeInputs& inputs, int64_t view, int threads, CompositeState& state);

}  // namespace dreamkit
