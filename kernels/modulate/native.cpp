// Python bindings of modulate.
#include "native.h"

#include "../bindings.h"

namespace dreamkit {
namespace {

ModulateInputs modulate_inputs(const Input& x, const Input& scale, const Input& shift, double eps, int threads) {
  const int64_t batch = size_of(x, 0), tokens = size_of(x, 1), dim = size_of(x, 2);
  if (dim < 1) throw std::invalid_argument("x must have at least one channel");
  return {batch,
          tokens,
          dim,
          data_of(x, "x", {batch, tokens, dim}),
          data_of(scale, "scale", {batch, dim}),
          data_of(shift, "shift", {batch, dim}),
          static_cast<float>(eps),
          threads};
}

void bind_modulate_forward(const Input& x, const Input& scale, const Input& shift, double eps, const Output& out,
                           int threads) {
  const ModulateInputs in = modulate_inputs(x, scale, shift, eps, threads);
  float* result = data_of(out, "out", {in.batch, in.tokens, in.dim});
  nb::gil_scoped_release release;
  modulate_forward(in, result);
}

void bind_modulate_backward(const Input& x, const Input& scale, const Input& shift, double eps, const Input& d_out,
                            const Output& d_x, const Output& d_scale, const Output& d_shift, int threads) {
  const ModulateInputs in = modulate_inputs(x, scale, shift, eps, threads);
  const ModulateGradients gradients{data_of(d_out, "d_out", {in.batch, in.tokens, in.dim}),
                                    data_of(d_x, "d_x", {in.batch, in.tokens, in.dim}),
                                    data_of(d_scale, "d_scale", {in.batch, in.dim}),
                                    data_of(d_shift, "d_shift", {in.batch, in.dim})};
  nb::gil_scoped_release release;
  modulate_backward(in, gradients);
}

}  // namespace

void bind_modulate(nb::module_& module) {
  define(module, "modulate_forward", &bind_modulate_forward);
  define(module, "modulate_backward", &bind_modulate_backward);
}

}  // namespace dreamkit
