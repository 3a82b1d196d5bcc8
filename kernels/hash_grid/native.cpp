// Python bindings of hash_grid.
#include "native.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../bindings.h"

namespace dreamkit {
namespace {

// What types.py calls a HashGrid.
struct HashLayout {
  int dims, features;
  bool smoothstep;
  std::vector<HashLevel> levels;
  int64_t entries;
};

HashInputs hash_inputs(const HashLayout& layout, const Input& positions, const float* table, int threads) {
  HashInputs in{};
  in.count = size_of(positions, 0);
  in.dims = layout.dims;
  in.features = layout.features;
  in.levels = static_cast<int>(layout.levels.size());
  in.smoothstep = layout.smoothstep;
  std::copy(layout.levels.begin(), layout.levels.end(), in.level);
  in.positions = data_of(positions, "positions", {in.count, in.dims});
  in.table = table;
  in.threads = threads;
  return in;
}

void bind_forward(const HashLayout& layout, const Input& positions, const Input& table, const Output& encoded,
                  int threads) {
  const float* rows = data_of(table, "table", {layout.entries, layout.features});
  const HashInputs in = hash_inputs(layout, positions, rows, threads);
  float* result = data_of(encoded, "encoded", {in.count, static_cast<int64_t>(in.levels) * in.features});
  nb::gil_scoped_release release;
  hash_forward(in, result);
}

void bind_backward(const HashLayout& layout, const Input& positions, const Input& table, const Input& d_encoded,
                   const Maybe<Output>& d_table, const Maybe<Output>& d_positions, int threads) {
  const float* rows = data_of(table, "table", {layout.entries, layout.features});
  const HashInputs in = hash_inputs(layout, positions, rows, threads);
  const float* incoming = data_of(d_encoded, "d_encoded", {in.count, static_cast<int64_t>(in.levels) * in.features});
  float* of_table = data_of(d_table, "d_table", {layout.entries, layout.features});
  float* of_positions = data_of(d_positions, "d_positions", {in.count, in.dims});
  nb::gil_scoped_release release;
  hash_backward(in, incoming, of_table, of_positions);
}

void bind_second(const HashLayout& layout, const Input& positions, const Input& table, const Input& d_encoded,
                 const Input& v, const Output& d_d_encoded, const Maybe<Output>& d_table, const Output& d_positions,
                 int threads) {
  const float* rows = data_of(table, "table", {layout.entries, layout.features});
  const HashInputs in = hash_inputs(layout, positions, rows, threads);
  const int64_t width = static_cast<int64_t>(in.levels) * in.features;
  const float* incoming = data_of(d_encoded, "d_encoded", {in.count, width});
  const float* direction = data_of(v, "v", {in.count, in.dims});
  float* of_code = data_of(d_d_encoded, "d_d_encoded", {in.count, width});
  float* of_table = data_of(d_table, "d_table", {layout.entries, layout.features});
  float* of_positions = data_of(d_positions, "d_positions", {in.count, in.dims});
  nb::gil_scoped_release release;
  hash_second(in, incoming, direction, of_code, of_table, of_positions);
}

// Whether the kernels stay inside a level's entries: they fold a dense index back three times at most.
bool is_safe(const HashLevel& level, int dims) {
  const int64_t size = level.size, resolution = level.resolution;
  const bool ranges = size > 0 && size <= (int64_t{1} << 30) && level.scale >= 0.0f && level.scale < 1048576.0f &&
                      level.shift >= 0.0f && level.shift <= 1.0f && resolution >= 0 && resolution < (1 << 20);
  if (!ranges) return false;
  if (resolution == 0) return (size & (size - 1)) == 0;
  double stride = 1.0, most = 0.0;
  const double corner = std::floor(static_cast<double>(level.scale) + level.shift) + 1.0;
  for (int axis = 0; axis < dims; ++axis, stride *= static_cast<double>(resolution)) most += corner * stride;
  return most < 4.0 * static_cast<double>(size) && most < 2147483648.0;
}

// Rows of `numbers`: scale, shift; of `sizes`: resolution, size, offset.
HashLayout make_layout(int dims, int features, bool smoothstep, const Array<const float>& numbers,
                       const Array<const int64_t>& sizes) {
  const int64_t count = size_of(numbers, 0);
  if (count < 1 || count > MAX_LEVELS) throw std::invalid_argument("levels");
  if (dims != 2 && dims != 3) throw std::invalid_argument("dims");
  if (features != 1 && features != 2 && features != 4 && features != 8) throw std::invalid_argument("features");
  const float* scales = data_of(numbers, "numbers", {count, 2});
  const int64_t* whole = data_of(sizes, "sizes", {count, 3});
  HashLayout layout{dims, features, smoothstep, {}, 0};
  for (int64_t l = 0; l < count; ++l) {
    const HashLevel level{scales[2 * l], scales[2 * l + 1], static_cast<int32_t>(whole[3 * l]),
                          static_cast<int32_t>(whole[3 * l + 1]), whole[3 * l + 2]};
    if (level.offset != layout.entries || !is_safe(level, dims)) throw std::invalid_argument("a level's layout");
    layout.levels.push_back(level);
    layout.entries += level.size;
  }
  return layout;
}

}  // namespace

void bind_hash_grid(nb::module_& module) {
  nb::class_<HashLayout>(module, "HashLayout", "Levels of a hash grid.")
      .def("__init__", [](HashLayout* self, int dims, int features, bool smoothstep, const Array<const float>& numbers,
                          const Array<const int64_t>& sizes) {
        new (self) HashLayout(make_layout(dims, features, smoothstep, numbers, sizes));
      });
  define(module, "hash_forward", &bind_forward);
  define(module, "hash_backward", &bind_backward);
  define(module, "hash_second", &bind_second);
}

}  // namespace dreamkit
