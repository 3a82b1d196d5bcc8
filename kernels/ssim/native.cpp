// Python bindings of ssim.
#include "native.h"

#include "../bindings.h"

namespace dreamkit {
namespace {

SsimInputs ssim_inputs(const Input& x, const Input& y, const Input& window, int threads) {
  const int64_t planes = size_of(x, 0), height = size_of(x, 1), width = size_of(x, 2);
  return {planes,
          height,
          width,
          data_of(x, "x", {planes, height, width}),
          data_of(y, "y", {planes, height, width}),
          data_of(window, "window", {11}),
          threads};
}

void bind_ssim_forward(const Input& x, const Input& y, const Input& window, const Output& map, int threads) {
  const SsimInputs in = ssim_inputs(x, y, window, threads);
  float* result = data_of(map, "map", {in.planes, in.height, in.width});
  nb::gil_scoped_release release;
  ssim_forward(in, result);
}

void bind_ssim_backward(const Input& x, const Input& y, const Input& window, const Input& d_map,
                        const Maybe<Output>& d_x, const Maybe<Output>& d_y, int threads) {
  const SsimInputs in = ssim_inputs(x, y, window, threads);
  const float* incoming = data_of(d_map, "d_map", {in.planes, in.height, in.width});
  float* of_x = data_of(d_x, "d_x", {in.planes, in.height, in.width});
  float* of_y = data_of(d_y, "d_y", {in.planes, in.height, in.width});
  nb::gil_scoped_release release;
  ssim_backward(in, incoming, of_x, of_y);
}

}  // namespace

void bind_ssim(nb::module_& module) {
  define(module, "ssim_forward", &bind_ssim_forward);
  define(module, "ssim_backward", &bind_ssim_backward);
}

}  // namespace dreamkit
