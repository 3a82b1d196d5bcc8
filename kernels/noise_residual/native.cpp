// Python bindings of noise_residual.
#include "native.h"

#include "../bindings.h"

namespace dreamkit {
namespace {

void bind_add_noise(const Input& x, const Input& noise, const Input& levels, const Output& out, int threads) {
  const int64_t batch = size_of(x, 0), size = size_of(x, 1);
  const NoiseInputs in{batch,
                       size,
                       data_of(x, "x", {batch, size}),
                       data_of(noise, "noise", {batch, size}),
                       data_of(levels, "levels", {batch, 2}),
                       threads};
  float* result = data_of(out, "out", {batch, size});
  nb::gil_scoped_release release;
  add_noise(in, result);
}

void bind_guided_residual(const Input& positive, const Input& negative, const Input& noisy, const Input& noise,
                          const Input& table, const Output& out, const Output& clean, int threads) {
  const int64_t batch = size_of(noisy, 0), size = size_of(noisy, 1);
  const ResidualInputs in{batch,
                          size,
                          data_of(positive, "positive", {batch, size}),
                          data_of(negative, "negative", {batch, size}),
                          data_of(noisy, "noisy", {batch, size}),
                          data_of(noise, "noise", {batch, size}),
                          data_of(table, "table", {batch, 6}),
                          threads};
  float* result = data_of(out, "out", {batch, size});
  float* sample = data_of(clean, "clean", {batch, size});
  nb::gil_scoped_release release;
  guided_residual(in, result, sample);
}

}  // namespace

void bind_noise_residual(nb::module_& module) {
  define(module, "add_noise", &bind_add_noise);
  define(module, "guided_residual", &bind_guided_residual);
}

}  // namespace dreamkit
