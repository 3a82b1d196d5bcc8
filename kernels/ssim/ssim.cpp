// Structural similarity, plane by plane: rows are blurred along once and kept for as long as the window needs them, so
// that nothing of the size of a plane is written in between (backward: three maps). A plane belongs to one thread.
#include <algorithm>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

namespace dreamkit {

constexpr int SSIM_WINDOW = 11;
constexpr int SSIM_REACH = SSIM_WINDOW / 2;
constexpr float SSIM_C1 = 1e-4f, SSIM_C2 = 9e-4f;

}  // namespace dreamkit

#define DREAMKIT_KERNELS "ssim/ssim_kernels.h"
#include "../instruction_sets.h"

namespace dreamkit {
namespace {

constexpr int64_t PARALLEL_THRESHOLD = 4096;  // pixels below which waking threads does not pay

// Floats of a row with its zero borders, in whole vectors that may be read from any pixel of the row.
int64_t stride_of(int64_t width) { return (width + 2 * SSIM_REACH + 2 * LANES - 1) / LANES * LANES; }

// The last rows of Q quantities, each stored twice, eleven rows apart, so that any eleven in a row are one after the
// other in memory.
template <int Q>
class RowRing {
 public:
  explicit RowRing(int64_t stride) : stride_(stride), rows_(static_cast<size_t>(2 * SSIM_WINDOW * Q * stride)) {
    std::memset(rows_.data(), 0, sizeof(float) * static_cast<size_t>(2 * SSIM_WINDOW * Q * stride));
  }
  int64_t rise() const { return Q * stride_; }
  float* slot(int64_t row) { return rows_.data() + row % SSIM_WINDOW * rise(); }
  // Makes what `slot(row)` holds known at its second place.
  void commit(int64_t row) {
    std::memcpy(slot(row) + SSIM_WINDOW * rise(), slot(row), sizeof(float) * static_cast<size_t>(rise()));
  }
  void clear(int64_t row) {
    std::memset(slot(row), 0, sizeof(float) * static_cast<size_t>(rise()));
    commit(row);
  }
  // The rows `first` to `first + 10`; the latest committed ones.
  const float* window(int64_t first) { return rows_.data() + first % SSIM_WINDOW * rise(); }

 private:
  int64_t stride_;
  Buffer<float> rows_;
};

// Calls use(row, rows, stride, rise) with the eleven blurred rows around every row of a plane. Rows are counted from
// one window before the plane, where there is zero.
template <int Q, class Fill, class Use>
void walk(int64_t height, int64_t stride, Fill fill, Use use) {
  RowRing<Q> ring(stride);
  for (int64_t row = 0; row < height + SSIM_REACH; ++row) {
    const int64_t place = row + SSIM_WINDOW;
    if (row < height) {
      fill(row, ring.slot(place));
      ring.commit(place);
    } else {
      ring.clear(place);
    }
    if (row >= SSIM_REACH) use(row - SSIM_REACH, ring.window(place - 2 * SSIM_REACH), stride, ring.rise());
  }
}

// Blurs products of x and y along rows: what `walk` fills its rings with.
struct ProductRows {
  const SsimInputs& in;
  int64_t plane, stride;
  Buffer<float> line;

  ProductRows(const SsimInputs& inputs, int64_t which, int64_t width)
      : in(inputs), plane(which), stride(width), line(static_cast<size_t>(5 * width)) {
    std::memset(line.data(), 0, sizeof(float) * static_cast<size_t>(5 * width));
  }
  void operator()(int64_t row, float* out) {
    const int64_t place = (plane * in.height + row) * in.width;
    const size_t bytes = sizeof(float) * static_cast<size_t>(in.width);
    std::memcpy(line.data() + SSIM_REACH, in.x + place, bytes);
    std::memcpy(line.data() + stride + SSIM_REACH, in.y + place, bytes);
    DREAMKIT_CALL(blur_products, line.data(), in.window, in.width, stride, out);
  }
};

void compare_plane(const SsimInputs& in, int64_t plane, float* map) {
  const int64_t width = stride_of(in.width);
  ProductRows fill(in, plane, width);
  walk<5>(in.height, width, [&](int64_t row, float* out) { fill(row, out); },
          [&](int64_t row, const float* rows, int64_t stride, int64_t rise) {
            float* target = map + (plane * in.height + row) * in.width;
            DREAMKIT_CALL(similarity_row, rows, stride, rise, in.window, in.width, target);
          });
}

void differentiate_plane(const SsimInputs& in, int64_t plane, const float* d_map, bool second, float* gradient) {
  const int64_t width = stride_of(in.width);
  Buffer<float> slopes(static_cast<size_t>(in.height * 3 * width));
  std::memset(slopes.data(), 0, sizeof(float) * static_cast<size_t>(in.height * 3 * width));
  ProductRows fill(in, plane, width);
  walk<5>(in.height, width, [&](int64_t row, float* out) { fill(row, out); },
          [&](int64_t row, const float* rows, int64_t stride, int64_t rise) {
            const float* incoming = d_map + (plane * in.height + row) * in.width;
            DREAMKIT_CALL(slope_row, rows, stride, rise, in.window, in.width, incoming, second,
                          slopes.data() + row * 3 * width);
          });
  const float* own = second ? in.y : in.x;
  const float* other = second ? in.x : in.y;
  walk<3>(in.height, width,
          [&](int64_t row, float* out) {
            DREAMKIT_CALL(blur_maps, slopes.data() + row * 3 * width, in.window, in.width, width, out);
          },
          [&](int64_t row, const float* rows, int64_t stride, int64_t rise) {
            const int64_t place = (plane * in.height + row) * in.width;
            DREAMKIT_CALL(gather_row, rows, stride, rise, in.window, in.width, own + place, other + place,
                          gradient + place);
          });
}

int useful_threads(const SsimInputs& in) {
  return in.planes * in.height * in.width < PARALLEL_THRESHOLD ? 1 : std::max(1, in.threads);
}

}  // namespace

void ssim_forward(const SsimInputs& in, float* map) {
  parallel_for(in.planes, useful_threads(in), [&](int64_t plane) { compare_plane(in, plane, map); });
}

void ssim_backward(const SsimInputs& in, const float* d_map, float* d_x, float* d_y) {
  parallel_for(in.planes, useful_threads(in), [&](int64_t plane) {
    if (d_x != nullptr) differentiate_plane(in, plane, d_map, false, d_x);
    if (d_y != nullptr) differentiate_plane(in, plane, d_map, true, d_y);
  });
}

}  // namespace dreamkit
