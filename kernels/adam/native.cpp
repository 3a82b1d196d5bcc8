// Python bindings of adam.
#include "native.h"

#include <nanobind/stl/vector.h>

#include "../bindings.h"

namespace dreamkit {
namespace {

using Inputs = std::vector<Input>;
using Outputs = std::vector<Output>;

void bind_adam_step(const Outputs& parameters, const Inputs& gradients, const Outputs& first, const Outputs& second,
                    const Maybe<Array<const bool>>& rows, const std::vector<double>& sizes, double beta_first,
                    double beta_second, double eps, double correction, int threads) {
  const size_t tensors = parameters.size();
  if (tensors == 0 || gradients.size() != tensors || first.size() != tensors || second.size() != tensors ||
      sizes.size() != tensors) {
    throw std::invalid_argument("as many gradients, moments and sizes as parameters, and at least one");
  }
  AdamInputs in{};
  in.count = size_of(parameters[0], 0);
  for (size_t i = 0; i < tensors; ++i) {
    const int64_t width = size_of(parameters[i], 1);
    in.tensors.push_back({width, data_of(parameters[i], "a parameter", {in.count, width}),
                          data_of(gradients[i], "a gradient", {in.count, width}),
                          data_of(first[i], "a first moment", {in.count, width}),
                          data_of(second[i], "a second moment", {in.count, width}), static_cast<float>(sizes[i])});
  }
  in.rows = data_of(rows, "rows", {in.count});
  in.beta_first = static_cast<float>(beta_first);
  in.beta_second = static_cast<float>(beta_second);
  in.rest_first = static_cast<float>(1.0 - beta_first);
  in.rest_second = static_cast<float>(1.0 - beta_second);
  in.eps = static_cast<float>(eps);
  in.correction = static_cast<float>(correction);
  in.threads = threads;
  nb::gil_scoped_release release;
  adam_step(in);
}

}  // namespace

void bind_adam(nb::module_& module) { define(module, "adam_step", &bind_adam_step); }

}  // namespace dreamkit
