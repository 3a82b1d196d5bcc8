// Python bindings of volume_render.
#include "native.h"

#include <algorithm>
#include <cmath>

#include "../bindings.h"

namespace dreamkit {
namespace {

using Offsets = Array<const int64_t>;
using Mask = Array<const bool>;

const int64_t* checked_offsets(const Offsets& offsets, int64_t rays, int64_t count) {
  const int64_t* places = data_of(offsets, "offsets", {rays + 1});
  bool rising = places[0] == 0 && places[rays] == count;
  for (int64_t ray = 0; ray < rays; ++ray) rising = rising && places[ray] <= places[ray + 1];
  if (!rising) throw std::invalid_argument("offsets must rise from 0 to the number of samples");
  return places;
}

SampleInputs sample_inputs(const Input& starts, const Input& ends, const Offsets& offsets, int threads) {
  const int64_t count = size_of(starts, 0), rays = size_of(offsets, 0) - 1;
  if (rays < 0) throw std::invalid_argument("offsets must not be empty");
  const int64_t* places = checked_offsets(offsets, rays, count);
  return {rays, count, data_of(starts, "starts", {count}), data_of(ends, "ends", {count}), places, threads};
}

MarchInputs march_inputs(const Input& origins, const Input& directions, const Mask& occupied, const Input& box,
                         const Maybe<Input>& jitter, double step, double near, double far, int threads) {
  MarchInputs in{};
  in.count = size_of(origins, 0);
  in.origins = data_of(origins, "origins", {in.count, 3});
  in.directions = data_of(directions, "directions", {in.count, 3});
  for (size_t axis = 0; axis < 3; ++axis) in.size[axis] = size_of(occupied, axis);
  in.occupied = data_of(occupied, "occupied", {in.size[0], in.size[1], in.size[2]});
  const float* corners = data_of(box, "box", {2, 3});
  for (int axis = 0; axis < 3; ++axis) {
    in.low[axis] = corners[axis];
    in.high[axis] = corners[3 + axis];
  }
  const double steps = std::ceil((far - near) / step);
  if (!(step > 0.0) || !(steps >= 0.0 && steps <= 1 << 20)) throw std::invalid_argument("step, near or far");
  in.step = static_cast<float>(step);
  in.near = static_cast<float>(near);
  in.far = static_cast<float>(far);
  in.steps = static_cast<int64_t>(steps);
  in.jitter = data_of(jitter, "jitter", {in.count});
  in.threads = threads;
  return in;
}

MarchedRays bind_march_count(const Input& origins, const Input& directions, const Mask& occupied, const Input& box,
                             const Maybe<Input>& jitter, double step, double near, double far,
                             const Array<int64_t>& counts, int threads) {
  const MarchInputs in = march_inputs(origins, directions, occupied, box, jitter, step, near, far, threads);
  int64_t* result = data_of(counts, "counts", {in.count});
  nb::gil_scoped_release release;
  return march_count(in, result);
}

void bind_march_fill(const MarchedRays& found, const Output& starts, const Output& ends, int threads) {
  const int64_t count = static_cast<int64_t>(found.total);
  float* first = data_of(starts, "starts", {count});
  float* last = data_of(ends, "ends", {count});
  nb::gil_scoped_release release;
  march_fill(found, first, last, threads);
}

void bind_weights_forward(const Input& starts, const Input& ends, const Offsets& offsets, const Input& densities,
                          const Output& weights, int threads) {
  const SampleInputs in = sample_inputs(starts, ends, offsets, threads);
  const float* sigma = data_of(densities, "densities", {in.count});
  float* result = data_of(weights, "weights", {in.count});
  nb::gil_scoped_release release;
  weights_forward(in, sigma, result);
}

void bind_weights_backward(const Input& starts, const Input& ends, const Offsets& offsets, const Input& densities,
                           const Input& weights, const Input& d_weights, const Output& d_densities, int threads) {
  const SampleInputs in = sample_inputs(starts, ends, offsets, threads);
  const float* sigma = data_of(densities, "densities", {in.count});
  const float* known = data_of(weights, "weights", {in.count});
  const float* incoming = data_of(d_weights, "d_weights", {in.count});
  float* result = data_of(d_densities, "d_densities", {in.count});
  nb::gil_scoped_release release;
  weights_backward(in, sigma, known, incoming, result);
}

void bind_accumulate_forward(const Input& starts, const Input& ends, const Offsets& offsets, const Input& weights,
                             const Input& values, const Output& total, int threads) {
  const SampleInputs in = sample_inputs(starts, ends, offsets, threads);
  const int64_t channels = size_of(values, 1);
  const float* share = data_of(weights, "weights", {in.count});
  const float* rows = data_of(values, "values", {in.count, channels});
  float* result = data_of(total, "total", {in.rays, channels});
  nb::gil_scoped_release release;
  accumulate_forward(in, share, rows, channels, result);
}

void bind_accumulate_backward(const Input& starts, const Input& ends, const Offsets& offsets, const Input& weights,
                              const Input& values, const Input& d_total, const Maybe<Output>& d_weights,
                              const Maybe<Output>& d_values, int threads) {
  const SampleInputs in = sample_inputs(starts, ends, offsets, threads);
  const int64_t channels = size_of(values, 1);
  const float* share = data_of(weights, "weights", {in.count});
  const float* rows = data_of(values, "values", {in.count, channels});
  const float* incoming = data_of(d_total, "d_total", {in.rays, channels});
  float* of_weights = data_of(d_weights, "d_weights", {in.count});
  float* of_values = data_of(d_values, "d_values", {in.count, channels});
  nb::gil_scoped_release release;
  accumulate_backward(in, share, rows, channels, incoming, of_weights, of_values);
}

void bind_distortion_forward(const Input& starts, const Input& ends, const Offsets& offsets, const Input& weights,
                             const Output& loss, int threads) {
  const SampleInputs in = sample_inputs(starts, ends, offsets, threads);
  const float* share = data_of(weights, "weights", {in.count});
  float* result = data_of(loss, "loss", {in.rays});
  nb::gil_scoped_release release;
  distortion_forward(in, share, result);
}

void bind_distortion_backward(const Input& starts, const Input& ends, const Offsets& offsets, const Input& weights,
                              const Input& d_loss, const Output& d_weights, int threads) {
  const SampleInputs in = sample_inputs(starts, ends, offsets, threads);
  const float* share = data_of(weights, "weights", {in.count});
  const float* incoming = data_of(d_loss, "d_loss", {in.rays});
  float* result = data_of(d_weights, "d_weights", {in.count});
  nb::gil_scoped_release release;
  distortion_backward(in, share, incoming, result);
}

void bind_resample(const Input& edges, const Input& weights, const Maybe<Input>& jitter, double padding,
                   const Output& result, int threads) {
  const int64_t rays = size_of(weights, 0), bins = size_of(weights, 1), count = size_of(result, 1) - 1;
  if (bins < 1 || count < 1) throw std::invalid_argument("weights and result need at least one bin");
  if (std::max(bins, count) > 1 << 24) throw std::invalid_argument("weights and result can't have more than 2^24 bins");
  const ResampleInputs in{rays,
                          bins,
                          count,
                          data_of(edges, "edges", {rays, bins + 1}),
                          data_of(weights, "weights", {rays, bins}),
                          data_of(jitter, "jitter", {rays}),
                          static_cast<float>(padding),
                          threads};
  float* out = data_of(result, "result", {rays, count + 1});
  nb::gil_scoped_release release;
  resample(in, out);
}

}  // namespace

void bind_volume_render(nb::module_& module) {
  nb::class_<MarchedRays>(module, "MarchedRays", "The intervals that rays keep.");
  define(module, "march_count", &bind_march_count);
  define(module, "march_fill", &bind_march_fill);
  define(module, "weights_forward", &bind_weights_forward);
  define(module, "weights_backward", &bind_weights_backward);
  define(module, "accumulate_forward", &bind_accumulate_forward);
  define(module, "accumulate_backward", &bind_accumulate_backward);
  define(module, "distortion_forward", &bind_distortion_forward);
  define(module, "distortion_backward", &bind_distortion_backward);
  define(module, "resample", &bind_resample);
}

}  // namespace dreamkit
