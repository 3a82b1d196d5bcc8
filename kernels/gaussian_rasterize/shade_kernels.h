// Colours from real spherical harmonics for blocks of eight Gaussians, forward and backward, compiled once per
// instruction set (see instruction_sets.h). The definition is reference.shade. Included by projection.cpp.


namespace dreamkit {
namespace DREAMKIT_ISA {

constexpr int MAX_BASES = 16;

// Y_k(d) for a unit direction, in gsplat's order.
DREAMKIT_INLINE void evaluate_basis(int degree, const Vec3& d, Float8* basis) {
  const Float8 x = d.x, y = d.y, z = d.z;
  basis[0] = splat(0.2820947917738781f);
  if (degree < 1) return;
  basis[1] = -0.48860251190292f * y;
  basis[2] = 0.48860251190292f * z;
  basis[3] = -0.48860251190292f * x;
  if (degree < 2) return;
  const Float8 zz = z * z, difference = x * x - y * y, product = 2.0f * x * y;
  basis[4] = 0.5462742152960395f * product;
  basis[5] = -1.092548430592079f * z * y;
  basis[6] = 0.9461746957575601f * zz - 0.3153915652525201f;
  basis[7] = -1.092548430592079f * z * x;
  basis[8] = 0.5462742152960395f * difference;
  if (degree < 3) return;
  const Float8 ring = -2.285228997322329f * zz + 0.4570457994644658f;
  basis[9] = -0.5900435899266435f * (x * product + y * difference);
  basis[10] = 1.445305721320277f * z * product;
  basis[11] = ring * y;
  basis[12] = z * (1.865881662950577f * zz - 1.119528997770346f);
  basis[13] = ring * x;
  basis[14] = 1.445305721320277f * z * difference;
  basis[15] = -0.5900435899266435f * (x * difference - y * product);
}

// sum_k g_k grad Y_k(d)
DREAMKIT_INLINE Vec3 basis_backward(int degree, const Vec3& d, const Float8* g) {
  const Float8 x = d.x, y = d.y, z = d.z;
  Vec3 r = {splat(0.0f), splat(0.0f), splat(0.0f)};
  if (degree < 1) return r;
  r = {-0.48860251190292f * g[3], -0.48860251190292f * g[1], 0.48860251190292f * g[2]};
  if (degree < 2) return r;
  r.x += 1.092548430592079f * (y * g[4] - z * g[7] + x * g[8]);
  r.y += 1.092548430592079f * (x * g[4] - z * g[5] - y * g[8]);
  r.z += 1.8923493915151202f * z * g[6] - 1.092548430592079f * (y * g[5] + x * g[7]);
  if (degree < 3) return r;
  const Float8 zz = z * z, difference = x * x - y * y, product = 2.0f * x * y;
  const Float8 ring = -2.285228997322329f * zz + 0.4570457994644658f;
  r.x += -1.7701307697799305f * (product * g[9] + difference * g[15]) +
         2.890611442640554f * z * (y * g[10] + x * g[14]) + ring * g[13];
  r.y += -1.7701307697799305f * (difference * g[9] - product * g[15]) +
         2.890611442640554f * z * (x * g[10] - y * g[14]) + ring * g[11];
  r.z += 1.445305721320277f * (product * g[10] + difference * g[14]) -
         4.570457994644658f * z * (y * g[11] + x * g[13]) + (5.597644988851731f * zz - 1.119528997770346f) * g[12];
  return r;
}

// Eight Gaussians' coefficients as columns [3 * used], from rows of 3 * held.
DREAMKIT_INLINE void load_coefficients(const float* rows, int lanes, int held, int used, Float8* columns) {
  float* scratch = reinterpret_cast<float*>(columns);
  for (int lane = 0; lane < LANES; ++lane) {
    const float* row = rows + static_cast<int64_t>(lane < lanes ? lane : lanes - 1) * 3 * held;
    for (int i = 0; i < 3 * used; ++i) scratch[i * LANES + lane] = row[i];
  }
}

struct Direction {
  Vec3 unit;
  Float8 inverse_length;
};

DREAMKIT_INLINE Direction direction_from(const float* center, const Vec3& mean) {
  const Vec3 offset = mean - splat3(center);
  const Float8 inverse = splat(1.0f) / maximum(square_root(dot(offset, offset)), splat(1e-12f));
  return {inverse * offset, inverse};
}

DREAMKIT_INLINE Int8 seen_lanes(const int32_t* radii, int lanes) {
  Int8 seen = splat(0);
  for (int lane = 0; lane < lanes; ++lane) seen[lane] = radii[lane] > 0 ? -1 : 0;
  return seen;
}

inline void shade_range_forward(const ShadeInputs& in, const float* centers, float* colors, int64_t begin,
                                int64_t end) {
  const int used = (in.degree + 1) * (in.degree + 1);
  for (int64_t first = begin; first < end; first += LANES) {
    const int lanes = static_cast<int>(end - first < LANES ? end - first : LANES);
    Float8 mean[3], coefficients[3 * MAX_BASES], basis[MAX_BASES];
    load_columns<3>(in.means + 3 * first, lanes, mean);
    load_coefficients(in.coefficients + 3 * first * in.bases, lanes, in.bases, used, coefficients);
    for (int64_t view = 0; view < in.views; ++view) {
      const int64_t row = view * in.count + first;
      const Int8 seen = seen_lanes(in.radii + row, lanes);
      evaluate_basis(in.degree, direction_from(centers + 3 * view, {mean[0], mean[1], mean[2]}).unit, basis);
      Float8 color[3] = {splat(0.5f), splat(0.5f), splat(0.5f)};
      for (int k = 0; k < used; ++k) {
        for (int c = 0; c < 3; ++c) color[c] += basis[k] * coefficients[3 * k + c];
      }
      for (Float8& channel : color) channel = keep(seen, maximum(channel, splat(0.0f)));
      store_columns<3>(colors + 3 * row, lanes, color);
    }
  }
}

// `center_scratch` is [views] Vec3 (zeroed); the horizontal sums of dL/d(camera centre) go to `center_sums` [views, 3].
inline void shade_range_backward(const ShadeInputs& in, const ShadeGradients& out, const float* centers, int64_t begin,
                                 int64_t end, float* center_scratch, float* center_sums) {
  const int used = (in.degree + 1) * (in.degree + 1);
  Vec3* const center_gradients = reinterpret_cast<Vec3*>(center_scratch);
  for (int64_t first = begin; first < end; first += LANES) {
    const int lanes = static_cast<int>(end - first < LANES ? end - first : LANES);
    Float8 mean[3], coefficients[3 * MAX_BASES], basis[MAX_BASES], d_basis[MAX_BASES];
    Float8 d_coefficients[3 * MAX_BASES] = {};
    Vec3 d_mean = {};
    load_columns<3>(in.means + 3 * first, lanes, mean);
    load_coefficients(in.coefficients + 3 * first * in.bases, lanes, in.bases, used, coefficients);
    for (int64_t view = 0; view < in.views; ++view) {
      const int64_t row = view * in.count + first;
      const Int8 seen = seen_lanes(in.radii + row, lanes);
      if (!any(seen)) continue;
      const Direction direction = direction_from(centers + 3 * view, {mean[0], mean[1], mean[2]});
      evaluate_basis(in.degree, direction.unit, basis);
      Float8 color[3] = {splat(0.5f), splat(0.5f), splat(0.5f)}, g[3];
      for (int k = 0; k < used; ++k) {
        for (int c = 0; c < 3; ++c) color[c] += basis[k] * coefficients[3 * k + c];
      }
      load_columns<3>(out.colors + 3 * row, lanes, g);
      for (int c = 0; c < 3; ++c) g[c] = keep(seen & (color[c] > splat(0.0f)), g[c]);
      for (int k = 0; k < used; ++k) {
        d_basis[k] = splat(0.0f);
        for (int c = 0; c < 3; ++c) {
          d_basis[k] += g[c] * coefficients[3 * k + c];
          d_coefficients[3 * k + c] += keep(seen, g[c] * basis[k]);
        }
      }
      const Vec3 d_unit = basis_backward(in.degree, direction.unit, d_basis);
      const Vec3 tangent = d_unit - dot(d_unit, direction.unit) * direction.unit;
      const Vec3 d_offset = keep(seen, direction.inverse_length * tangent);
      d_mean = d_mean + d_offset;
      if (center_gradients != nullptr) center_gradients[view] = center_gradients[view] - d_offset;
    }
    const Float8 mean_columns[3] = {d_mean.x, d_mean.y, d_mean.z};
    store_columns<3>(out.means + 3 * first, lanes, mean_columns);
    const float* scratch = reinterpret_cast<const float*>(d_coefficients);
    for (int lane = 0; lane < lanes; ++lane) {
      float* target = out.coefficients + (first + lane) * 3 * in.bases;
      for (int i = 0; i < 3 * in.bases; ++i) target[i] = i < 3 * used ? scratch[i * LANES + lane] : 0.0f;
    }
  }
  if (center_gradients == nullptr) return;
  for (int64_t view = 0; view < in.views; ++view) {
    center_sums[3 * view] = horizontal_sum(center_gradients[view].x);
    center_sums[3 * view + 1] = horizontal_sum(center_gradients[view].y);
    center_sums[3 * view + 2] = horizontal_sum(center_gradients[view].z);
  }
}

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
