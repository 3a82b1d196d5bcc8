// The multiresolution hash grid: levels and points over threads.
//
// Points are shared out in fixed chunks and a level's gradient is summed by one thread in the order of the points, so
// the bits do not depend on the thread count.
#include <algorithm>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

#define DREAMKIT_KERNELS "hash_grid/hash_kernels.h"
#include "../instruction_sets.h"

namespace dreamkit {
namespace {

constexpr int64_t CHUNK = 65536;             // points; long, so that a level's entries come from memory only once
constexpr int64_t PARALLEL_THRESHOLD = 512;  // points below which waking threads does not pay

template <class Body>
void for_chunks(const HashInputs& in, Body body) {
  const int threads = in.count < PARALLEL_THRESHOLD ? 1 : std::max(1, in.threads);
  const int64_t share = (in.count + threads - 1) / threads;
  const int64_t chunk = std::max<int64_t>(LANES, std::min(CHUNK, (share + LANES - 1) / LANES * LANES));
  parallel_for((in.count + chunk - 1) / chunk, threads,
               [&](int64_t i) { body(i * chunk, std::min(in.count, (i + 1) * chunk)); });
}

template <class Body>
void for_levels(const HashInputs& in, Body body) {
  const int threads = in.count < PARALLEL_THRESHOLD ? 1 : std::max(1, in.threads);
  parallel_for(in.levels, threads, [&](int64_t level) { body(static_cast<int>(level)); });
}

}  // namespace

void hash_forward(const HashInputs& in, float* encoded) {
  for_chunks(in, [&](int64_t begin, int64_t end) { DREAMKIT_CALL(encode_range, in, begin, end, encoded); });
}

void hash_backward(const HashInputs& in, const float* d_encoded, float* d_table, float* d_positions) {
  if (d_table != nullptr) {
    for_levels(in, [&](int level) { DREAMKIT_CALL(scatter, in, level, d_encoded, nullptr, d_table); });
  }
  if (d_positions != nullptr) {
    for_chunks(in, [&](int64_t begin, int64_t end) {
      DREAMKIT_CALL(differentiate_range, in, begin, end, d_encoded, nullptr, nullptr, d_positions);
    });
  }
}

void hash_second(const HashInputs& in, const float* d_encoded, const float* v, float* d_d_encoded, float* d_table,
                 float* d_positions) {
  for_chunks(in, [&](int64_t begin, int64_t end) {
    DREAMKIT_CALL(differentiate_range, in, begin, end, d_encoded, v, d_d_encoded, d_positions);
  });
  if (d_table != nullptr) {
    for_levels(in, [&](int level) { DREAMKIT_CALL(scatter, in, level, d_encoded, v, d_table); });
  }
}

}  // namespace dreamkit
