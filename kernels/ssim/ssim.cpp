// Structural similarity: rows are blurred along once and kept for as long as the window needs them, so that nothing of
// the size of a plane is written in between. A band of a plane's rows belongs to one thread; what a band computes of
// its neighbours' rows is the same to the bit, so the number of bands changes no result.
#include <algorithm>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

namespace dreamkit {

constexpr int SSIM_WINDOW = 11;
constexpr int SSIM_REACH = SSIM_WINDOW / 2;
constexpr int SSIM_SUMS = 4;  // x, y, x x + y y, x y
constexpr float SSIM_C1 = 1e-4f, SSIM_C2 = 9e-4f;

}  // namespace dreamkit

#define DREAMKIT_KERNELS "ssim/ssim_kernels.h"
#include "../instruction_sets.h"

namespace dreamkit {
namespace {

constexpr int64_t PARALLEL_THRESHOLD = 4096;  // pixels below which waking threads does not pay
constexpr int64_t LEAST_BAND = 128;           // rows; a gradient's band needs ten more on either side

// Floats of a row with its zero borders, in whole vectors that may be read from any pixel of the row.
int64_t stride_of(int64_t width) { return (width + 2 * SSIM_REACH + 2 * LANES - 1) / LANES * LANES; }

// The latest eleven rows of some quantities; zero to begin with. Each row is stored twice, eleven rows apart, so that
// the eleven are always one after the other in memory.
class RowRing {
 public:
  RowRing(int quantities, int64_t stride)
      : rise_(quantities * stride), rows_(static_cast<size_t>(2 * SSIM_WINDOW * rise_)) {
    std::memset(rows_.data(), 0, sizeof(float) * static_cast<size_t>(2 * SSIM_WINDOW * rise_));
  }
  int64_t rise() const { return rise_; }
  // Where the next row is written before `push`.
  float* next() { return rows_.data() + place_ * rise_; }
  void push() {
    std::memcpy(next() + SSIM_WINDOW * rise_, next(), sizeof(float) * static_cast<size_t>(rise_));
    place_ = (place_ + 1) % SSIM_WINDOW;
  }
  void push_zeros() {
    std::memset(next(), 0, sizeof(float) * static_cast<size_t>(rise_));
    push();
  }
  // The latest rows, oldest first.
  const float* window() const { return rows_.data() + place_ * rise_; }

 private:
  int64_t rise_, place_ = 0;
  Buffer<float> rows_;
};

// Rows [first, last) of a plane.
struct Band {
  int64_t plane, first, last;
};

// The ring of blurred products of x and y, fed row by row.
class ProductRows {
 public:
  ProductRows(const SsimInputs& inputs, int64_t plane)
      : in_(inputs), plane_(plane), stride_(stride_of(inputs.width)), line_(static_cast<size_t>(SSIM_SUMS * stride_)),
        ring_(SSIM_SUMS, stride_) {
    std::memset(line_.data(), 0, sizeof(float) * static_cast<size_t>(SSIM_SUMS * stride_));
  }
  const RowRing& ring() const { return ring_; }
  int64_t place(int64_t row) const { return (plane_ * in_.height + row) * in_.width; }
  // Takes in a row, which may lie outside of the plane.
  void push(int64_t row) {
    if (row < 0 || row >= in_.height) return ring_.push_zeros();
    const size_t bytes = sizeof(float) * static_cast<size_t>(in_.width);
    std::memcpy(line_.data() + SSIM_REACH, in_.x + place(row), bytes);
    std::memcpy(line_.data() + stride_ + SSIM_REACH, in_.y + place(row), bytes);
    DREAMKIT_CALL(blur_products, line_.data(), in_.window, in_.width, stride_, ring_.next());
    ring_.push();
  }

 private:
  const SsimInputs& in_;
  int64_t plane_, stride_;
  Buffer<float> line_;
  RowRing ring_;
};

void compare_band(const SsimInputs& in, const Band& band, float* map) {
  const int64_t stride = stride_of(in.width);
  ProductRows products(in, band.plane);
  for (int64_t row = band.first - SSIM_REACH; row < band.last + SSIM_REACH; ++row) {
    products.push(row);
    if (row < band.first + SSIM_REACH) continue;
    DREAMKIT_CALL(similarity_row, products.ring().window(), stride, products.ring().rise(), in.window, in.width,
                  map + products.place(row - SSIM_REACH));
  }
}

void differentiate_band(const SsimInputs& in, const Band& band, const float* d_map, float* d_x, float* d_y) {
  const int64_t stride = stride_of(in.width);
  const int maps = d_x != nullptr && d_y != nullptr ? 4 : 3;
  ProductRows products(in, band.plane);
  RowRing slopes(maps, stride);
  Buffer<float> line(static_cast<size_t>(maps * stride));
  std::memset(line.data(), 0, sizeof(float) * static_cast<size_t>(maps * stride));
  for (int64_t row = band.first - 2 * SSIM_REACH; row < band.last + 2 * SSIM_REACH; ++row) {
    products.push(row);
    const int64_t middle = row - SSIM_REACH, done = row - 2 * SSIM_REACH;
    if (middle < band.first - SSIM_REACH) continue;  // its window is not complete, nor is it needed
    if (middle < 0 || middle >= in.height) {
      slopes.push_zeros();
    } else {
      DREAMKIT_CALL(slope_row, products.ring().window(), stride, products.ring().rise(), in.window, in.width,
                    d_map + products.place(middle), d_x != nullptr, d_y != nullptr, line.data());
      DREAMKIT_CALL(blur_maps, line.data(), in.window, in.width, stride, maps, slopes.next());
      slopes.push();
    }
    if (done < band.first) continue;
    const int64_t place = products.place(done);
    DREAMKIT_CALL(gather_row, slopes.window(), stride, slopes.rise(), in.window, in.width, in.x + place, in.y + place,
                  d_x == nullptr ? nullptr : d_x + place, d_y == nullptr ? nullptr : d_y + place);
  }
}

template <class Work>
void for_each_band(const SsimInputs& in, Work work) {
  const bool small = in.planes * in.height * in.width < PARALLEL_THRESHOLD;
  const int threads = small ? 1 : std::max(1, in.threads);
  const int64_t wanted = threads == 1 ? 1 : (4 * threads + in.planes - 1) / std::max<int64_t>(1, in.planes);
  const int64_t bands = std::max<int64_t>(1, std::min(wanted, in.height / LEAST_BAND));
  parallel_for(in.planes * bands, threads, [&](int64_t task) {
    const int64_t band = task % bands;
    work(Band{task / bands, in.height * band / bands, in.height * (band + 1) / bands});
  });
}

}  // namespace

void ssim_forward(const SsimInputs& in, float* map) {
  for_each_band(in, [&](const Band& band) { compare_band(in, band, map); });
}

void ssim_backward(const SsimInputs& in, const float* d_map, float* d_x, float* d_y) {
  if (d_x == nullptr && d_y == nullptr) return;
  for_each_band(in, [&](const Band& band) { differentiate_band(in, band, d_map, d_x, d_y); });
}

}  // namespace dreamkit
