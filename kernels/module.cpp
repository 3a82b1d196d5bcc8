// The Python module dreamkit_kernels._native.
#include "bindings.h"
#include "common.h"

NB_MODULE(_native, module) {
  using namespace dreamkit;
  nb::set_leak_warnings(false);  // an autograd graph alive at exit keeps its state
  module.doc() = "Native CPU kernels of DreamKit. Called through dreamkit_kernels, which checks the arguments.";
  module.def("instruction_set", &instruction_set_name, "The SIMD instruction set in use: baseline, avx2 or avx512.");
  bind_adam(module);
  bind_gaussian_rasterize(module);
  bind_hash_grid(module);
  bind_mesh_rasterize(module);
  bind_modulate(module);
  bind_noise_residual(module);
  bind_ssim(module);
  bind_stream_attention(module);
  bind_volume_render(module);
}
