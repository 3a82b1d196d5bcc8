// Projection of blocks of eight Gaussians, forward and backward, compiled once per instruction set (see
// instruction_sets.h). The definition is reference.project; the names are the same. Included by projection.cpp.


namespace dreamkit {
namespace DREAMKIT_ISA {

// Rotation by a unit quaternion; axis[k] is column k of the matrix, where local axis k points in the world.
struct Rotation {
  Float8 w, x, y, z;    // unit quaternion
  Float8 inverse_norm;  // of the quaternion given
  Vec3 axis[3];
};

DREAMKIT_INLINE Rotation make_rotation(const Float8* quaternion) {
  const Float8 norm = square_root(quaternion[0] * quaternion[0] + quaternion[1] * quaternion[1] +
                                  quaternion[2] * quaternion[2] + quaternion[3] * quaternion[3]);
  const Float8 inverse = splat(1.0f) / maximum(norm, splat(1e-12f));
  const Float8 w = quaternion[0] * inverse, x = quaternion[1] * inverse, y = quaternion[2] * inverse,
               z = quaternion[3] * inverse;
  return {w, x, y, z, inverse,
          {{1.0f - 2.0f * (y * y + z * z), 2.0f * (x * y + w * z), 2.0f * (x * z - w * y)},
           {2.0f * (x * y - w * z), 1.0f - 2.0f * (x * x + z * z), 2.0f * (y * z + w * x)},
           {2.0f * (x * z + w * y), 2.0f * (y * z - w * x), 1.0f - 2.0f * (x * x + y * y)}}};
}

// Gradient of the quaternion as given, from the gradient d of the matrix columns.
DREAMKIT_INLINE void rotation_backward(const Rotation& r, const Vec3* d, Float8* result) {
  const Float8 w = r.w, x = r.x, y = r.y, z = r.z;
  const Float8 dw = 2.0f * (z * (d[0].y - d[1].x) + y * (d[2].x - d[0].z) + x * (d[1].z - d[2].y));
  const Float8 dx = 2.0f * (y * (d[1].x + d[0].y) + z * (d[2].x + d[0].z) + w * (d[1].z - d[2].y)) -
                    4.0f * x * (d[1].y + d[2].z);
  const Float8 dy = 2.0f * (x * (d[1].x + d[0].y) + z * (d[2].y + d[1].z) + w * (d[2].x - d[0].z)) -
                    4.0f * y * (d[0].x + d[2].z);
  const Float8 dz = 2.0f * (x * (d[2].x + d[0].z) + y * (d[2].y + d[1].z) + w * (d[0].y - d[1].x)) -
                    4.0f * z * (d[0].x + d[1].y);
  const Float8 radial = w * dw + x * dx + y * dy + z * dz;  // the length has no effect
  result[0] = (dw - w * radial) * r.inverse_norm;
  result[1] = (dx - x * radial) * r.inverse_norm;
  result[2] = (dy - y * radial) * r.inverse_norm;
  result[3] = (dz - z * radial) * r.inverse_norm;
}

// What both passes need of eight Gaussians in one view.
struct Projected {
  Vec3 camera;                // centre in the camera frame; (0, 0, 1) where not seen
  Float8 inverse_depth;       // 1 in an orthographic projection, which has no slopes either
  Float8 slope_x, slope_y;    // clamped x / z, y / z
  Int8 free_x, free_y;        // not clamped
  Vec3 row_x, row_y;          // rows of J W
  Float8 local_x[3], local_y[3];  // row . axis[k]
  Vec3 axes_x, axes_y;        // rows of P = J W R S
  Vec3 normal;                // axes_x x axes_y
  Float8 xx, xy, yy;          // cov2d with the low-pass
  Float8 determinant_sharp, determinant;
};

DREAMKIT_INLINE Projected project_block(const ViewConstants& v, const Vec3& camera, const Rotation& rotation,
                                        const Vec3& scales, float eps2d, bool orthographic) {
  Projected p;
  p.camera = camera;
  p.inverse_depth = orthographic ? splat(1.0f) : splat(1.0f) / camera.z;
  const Int8 sloped = splat(orthographic ? 0 : -1);
  const Float8 raw_x = camera.x * p.inverse_depth, raw_y = camera.y * p.inverse_depth;
  p.slope_x = keep(sloped, minimum(maximum(raw_x, splat(v.low_x)), splat(v.high_x)));
  p.slope_y = keep(sloped, minimum(maximum(raw_y, splat(v.low_y)), splat(v.high_y)));
  p.free_x = sloped & (raw_x >= splat(v.low_x)) & (raw_x <= splat(v.high_x));
  p.free_y = sloped & (raw_y >= splat(v.low_y)) & (raw_y <= splat(v.high_y));
  const Vec3 w0 = splat3(v.rotation), w1 = splat3(v.rotation + 3), w2 = splat3(v.rotation + 6);
  p.row_x = (v.focal_x * p.inverse_depth) * (w0 - p.slope_x * w2);
  p.row_y = (v.focal_y * p.inverse_depth) * (w1 - p.slope_y * w2);
  for (int k = 0; k < 3; ++k) {
    p.local_x[k] = dot(p.row_x, rotation.axis[k]);
    p.local_y[k] = dot(p.row_y, rotation.axis[k]);
  }
  p.axes_x = {p.local_x[0] * scales.x, p.local_x[1] * scales.y, p.local_x[2] * scales.z};
  p.axes_y = {p.local_y[0] * scales.x, p.local_y[1] * scales.y, p.local_y[2] * scales.z};
  p.normal = cross(p.axes_x, p.axes_y);
  const Float8 xx = dot(p.axes_x, p.axes_x), yy = dot(p.axes_y, p.axes_y);
  p.determinant_sharp = dot(p.normal, p.normal);
  p.determinant = p.determinant_sharp + eps2d * (xx + yy) + eps2d * eps2d;
  p.xx = xx + eps2d;
  p.xy = dot(p.axes_x, p.axes_y);
  p.yy = yy + eps2d;
  return p;
}

// Eight Gaussians as given, and what does not depend on the view.
struct Block {
  Vec3 mean, scales;
  Float8 opacity;
  Rotation rotation;
  Int8 shortest_y, shortest_z;  // which axis is the normal, else x; the first on a tie
  Int8 usable;
};

DREAMKIT_INLINE Int8 bounded(Float8 value) { return absolute(value) <= splat(MAX_MAGNITUDE); }  // false for NaN

DREAMKIT_INLINE Block load_block(const ProjectionInputs& in, int64_t first, int lanes) {
  Float8 means[3], quaternions[4], scales[3], opacity[1];
  load_columns<3>(in.means + 3 * first, lanes, means);
  load_columns<4>(in.quaternions + 4 * first, lanes, quaternions);
  load_columns<3>(in.scales + 3 * first, lanes, scales);
  load_columns<1>(in.opacities + first, lanes, opacity);
  Int8 usable = bounded(opacity[0]);
  for (int k = 0; k < 3; ++k) usable &= bounded(means[k]) & bounded(scales[k]);
  for (int k = 0; k < 4; ++k) usable &= bounded(quaternions[k]);
  const Int8 shortest_z = (scales[2] < scales[0]) & (scales[2] < scales[1]);
  const Int8 shortest_y = (scales[1] < scales[0]) & ~shortest_z;
  return {{means[0], means[1], means[2]},     {scales[0], scales[1], scales[2]}, opacity[0],
          make_rotation(quaternions), shortest_y, shortest_z, usable};
}

// True for rows of colours that are finite and bounded.
DREAMKIT_INLINE Int8 bounded_colors(const ProjectionInputs& in, int64_t first, int lanes) {
  Int8 result = splat(-1);
  for (int lane = 0; lane < lanes; ++lane) {
    const float* row = in.colors + (first + lane) * in.color_size;
    int64_t column = 0;
    Int8 good = splat(-1);
    for (; column + LANES <= in.color_size; column += LANES) good &= bounded(load(row + column));
    bool all = !any(~good);
    for (; column < in.color_size; ++column) all = all && __builtin_fabsf(row[column]) <= MAX_MAGNITUDE;
    result[lane] = all ? -1 : 0;
  }
  return result;
}

DREAMKIT_INLINE Vec3 to_camera(const ViewConstants& v, const Vec3& mean) {
  return {dot(splat3(v.rotation), mean) + v.translation[0], dot(splat3(v.rotation + 3), mean) + v.translation[1],
          dot(splat3(v.rotation + 6), mean) + v.translation[2]};
}

DREAMKIT_INLINE Vec3 keep_or_ahead(Int8 mask, const Vec3& camera) {
  return {keep(mask, camera.x), keep(mask, camera.y), mask ? camera.z : splat(1.0f)};
}

// Unit normal of each Gaussian towards the camera; `sign` is what the axis was multiplied by.
DREAMKIT_INLINE Vec3 facing_normal(const Block& block, const ViewConstants& v, Float8* sign) {
  const Vec3* axis = block.rotation.axis;
  const auto choose = [&](Float8 x, Float8 y, Float8 z) { return block.shortest_z ? z : (block.shortest_y ? y : x); };
  const Vec3 n{choose(axis[0].x, axis[1].x, axis[2].x), choose(axis[0].y, axis[1].y, axis[2].y),
               choose(axis[0].z, axis[1].z, axis[2].z)};
  const Float8 away = dot(n, block.mean - splat3(v.center));
  *sign = away > splat(0.0f) ? splat(-1.0f) : splat(1.0f);
  return *sign * n;
}

// One block in one view. `usable` also covers the colours.
DREAMKIT_INLINE void project_block_forward(const ProjectionInputs& in, const ProjectionOutputs& out,
                                           const ViewConstants& v, const Block& block, Int8 usable, int64_t row,
                                           int lanes) {
  const Float8 zero = splat(0.0f);
  Vec3 camera = to_camera(v, block.mean);
  Int8 seen = usable & (camera.z >= splat(in.near)) & (camera.z <= splat(in.far));
  camera = keep_or_ahead(seen, camera);
  const Projected p = project_block(v, camera, block.rotation, block.scales, in.eps2d, in.orthographic);
  const Float8 x = v.focal_x * camera.x * p.inverse_depth + v.center_x;
  const Float8 y = v.focal_y * camera.y * p.inverse_depth + v.center_y;
  seen &= (p.determinant > zero) & (p.determinant < splat(INFINITY));
  const Float8 inverse = splat(1.0f) / p.determinant;
  const Float8 a = p.yy * inverse, b = -p.xy * inverse, c = p.xx * inverse;
  Float8 opacity = block.opacity;
  if (in.antialiased) {
    const Float8 ratio = p.determinant_sharp * inverse;
    seen &= ratio > splat(1e-12f);
    opacity = opacity * square_root(maximum(ratio, zero));
  }
  seen &= opacity >= splat(ALPHA_MIN);
  const Float8 log2_opacity = log2(opacity);
  // alpha >= 1/255 inside an ellipse of "radius" sqrt(2 ln(255 opacity)) standard deviations.
  const Float8 level = 1.38629436111989061883f * maximum(log2_opacity - LOG2_ALPHA_MIN, zero);
  const Float8 extent_x = square_root(level * p.xx), extent_y = square_root(level * p.yy);
  const Float8 radius_x = ceiling(minimum(extent_x, splat(MAX_RADIUS)));
  const Float8 radius_y = ceiling(minimum(extent_y, splat(MAX_RADIUS)));
  seen &= (radius_x > splat(in.radius_clip)) | (radius_y > splat(in.radius_clip));
  seen &= (x + radius_x > zero) & (x - radius_x < splat(in.width));  // false for NaN
  seen &= (y + radius_y > zero) & (y - radius_y < splat(in.height));

  const Float8 means2d[2] = {keep(seen, x), keep(seen, y)};
  store_columns<2>(out.means2d + 2 * row, lanes, means2d);
  Float8 sign;
  const Vec3 normal = facing_normal(block, v, &sign);
  Float8 geometry[8] = {a, b, c, opacity, camera.z, normal.x, normal.y, normal.z};
  const Float8 l1 = square_root(a * 0.72134752044448170368f);  // log2(e) / 2
  const Float8 l2 = b * 0.72134752044448170368f / l1;
  const Float8 l3 = square_root(splat(0.72134752044448170368f) / p.yy);
  // The margins make the box conservative under rounding: the alpha test in the pixel loop decides.
  Float8 splats[8] = {x,  y,  l1, l2, l3, log2_opacity, extent_x * 1.0001f + 0.01f, extent_y * 1.0001f + 0.01f};
  for (int k = 0; k < 8; ++k) {
    geometry[k] = keep(seen, geometry[k]);
    splats[k] = keep(seen, splats[k]);
  }
  store_columns<8>(reinterpret_cast<float*>(out.geometry + row), lanes, geometry);
  store_columns<8>(reinterpret_cast<float*>(out.splats + row), lanes, splats);
  const Float8 radius = maximum(maximum(radius_x, radius_y), splat(1.0f));
  const Int8 radii = __builtin_convertvector(keep(seen, radius), Int8);
  for (int lane = 0; lane < lanes; ++lane) out.radii[row + lane] = radii[lane];
}

inline void project_range_forward(const ProjectionInputs& in, const ProjectionOutputs& out, const ViewConstants* views,
                           int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += LANES) {
    const int lanes = static_cast<int>(end - first < LANES ? end - first : LANES);
    const Block block = load_block(in, first, lanes);
    const Int8 usable = block.usable & bounded_colors(in, first, lanes);
    for (int64_t view = 0; view < in.views; ++view) {
      project_block_forward(in, out, views[view], block, usable, view * in.count + first, lanes);
    }
  }
}

// Sums over views of the gradients of one block.
struct BlockGradient {
  Vec3 mean, scales;
  Float8 opacity;
  Vec3 axis[3];  // columns of the rotation
};

// Gradient of P (rows axes_x and axes_y) from those of the conic and of the opacity.
DREAMKIT_INLINE void covariance_backward(const ProjectionInputs& in, const Block& block, const Projected& p,
                                         const Float8* g, Vec3* d_axes_x, Vec3* d_axes_y, Float8* d_opacity) {
  const Float8 inverse = splat(1.0f) / p.determinant;
  const Float8 a = p.yy * inverse, b = -p.xy * inverse, c = p.xx * inverse;
  // d(cov^-1) = -cov^-1 d(cov) cov^-1
  Float8 d_xx = -(a * a * g[0] + a * b * g[1] + b * b * g[2]);
  const Float8 d_xy = -(2.0f * a * b * g[0] + (a * c + b * b) * g[1] + 2.0f * b * c * g[2]);
  Float8 d_yy = -(b * b * g[0] + b * c * g[1] + c * c * g[2]);
  Float8 d_sharp = splat(0.0f);
  *d_opacity = g[3];
  if (in.antialiased) {
    const Float8 ratio = p.determinant_sharp * inverse, root = square_root(maximum(ratio, splat(1e-12f)));
    *d_opacity = g[3] * root;
    const Float8 d_ratio = g[3] * block.opacity * 0.5f / root;
    const Float8 d_determinant = -d_ratio * ratio * inverse;
    d_sharp = d_ratio * inverse + d_determinant;
    d_xx += in.eps2d * d_determinant;
    d_yy += in.eps2d * d_determinant;
  }
  *d_axes_x = (2.0f * d_xx) * p.axes_x + d_xy * p.axes_y + (2.0f * d_sharp) * cross(p.axes_y, p.normal);
  *d_axes_y = (2.0f * d_yy) * p.axes_y + d_xy * p.axes_x + (2.0f * d_sharp) * cross(p.normal, p.axes_x);
}

// One block in one view. `pose` adds up the gradients of the rotation (rows) and of the translation, or is null.
DREAMKIT_INLINE void project_block_backward(const ProjectionInputs& in, const ViewConstants& v, const Block& block,
                                            Int8 seen, const Float8* d_means2d, const Float8* g, BlockGradient* sum,
                                            Vec3* pose) {
  const Vec3 camera = keep_or_ahead(seen, to_camera(v, block.mean));
  const Projected p = project_block(v, camera, block.rotation, block.scales, in.eps2d, in.orthographic);
  Vec3 d_axes_x, d_axes_y;
  Float8 d_opacity;
  covariance_backward(in, block, p, g, &d_axes_x, &d_axes_y, &d_opacity);

  // P[., k] = (row . axis[k]) scale[k]
  const Float8 scales[3] = {block.scales.x, block.scales.y, block.scales.z};
  const Float8 d_x[3] = {d_axes_x.x, d_axes_x.y, d_axes_x.z}, d_y[3] = {d_axes_y.x, d_axes_y.y, d_axes_y.z};
  Float8 d_scales[3];
  Vec3 d_row_x = {}, d_row_y = {};
  for (int k = 0; k < 3; ++k) {
    d_scales[k] = d_x[k] * p.local_x[k] + d_y[k] * p.local_y[k];
    const Float8 weight_x = d_x[k] * scales[k], weight_y = d_y[k] * scales[k];
    sum->axis[k] = sum->axis[k] + keep(seen, weight_x * p.row_x + weight_y * p.row_y);
    d_row_x = d_row_x + weight_x * block.rotation.axis[k];
    d_row_y = d_row_y + weight_y * block.rotation.axis[k];
  }
  sum->scales = sum->scales + keep(seen, Vec3{d_scales[0], d_scales[1], d_scales[2]});
  sum->opacity += keep(seen, d_opacity);

  // row_x = fx / z (W_0 - slope_x W_2), and likewise y
  const Vec3 w0 = splat3(v.rotation), w1 = splat3(v.rotation + 3), w2 = splat3(v.rotation + 6);
  const Float8 inverse = p.inverse_depth, scale_x = v.focal_x * inverse, scale_y = v.focal_y * inverse;
  const Float8 d_slope_x = keep(p.free_x, -scale_x * dot(d_row_x, w2));
  const Float8 d_slope_y = keep(p.free_y, -scale_y * dot(d_row_y, w2));
  const Float8 d_u = d_means2d[0] * v.focal_x + d_slope_x, d_v = d_means2d[1] * v.focal_y + d_slope_y;
  const Float8 by_depth = inverse * (dot(d_row_x, p.row_x) + dot(d_row_y, p.row_y)) +
                          inverse * inverse * (d_u * camera.x + d_v * camera.y);
  const Float8 d_z = in.orthographic ? g[4] : g[4] - by_depth;
  const Vec3 d_camera = keep(seen, Vec3{d_u * inverse, d_v * inverse, d_z});
  sum->mean = sum->mean + d_camera.x * w0 + d_camera.y * w1 + d_camera.z * w2;

  Float8 sign;
  facing_normal(block, v, &sign);
  const Vec3 d_normal = keep(seen, Vec3{g[5] * sign, g[6] * sign, g[7] * sign});
  const Int8 shortest_x = ~(block.shortest_y | block.shortest_z);
  sum->axis[0] = sum->axis[0] + keep(shortest_x, d_normal);
  sum->axis[1] = sum->axis[1] + keep(block.shortest_y, d_normal);
  sum->axis[2] = sum->axis[2] + keep(block.shortest_z, d_normal);

  if (pose == nullptr) return;
  const Vec3 d_w0 = keep(seen, scale_x * d_row_x), d_w1 = keep(seen, scale_y * d_row_y);
  const Vec3 mean = keep(seen, block.mean);
  pose[0] = pose[0] + d_w0 + d_camera.x * mean;
  pose[1] = pose[1] + d_w1 + d_camera.y * mean;
  pose[2] = pose[2] - p.slope_x * d_w0 - p.slope_y * d_w1 + d_camera.z * mean;
  pose[3] = pose[3] + d_camera;
}

// `pose` is [views, 4] vectors of scratch (zeroed), whose horizontal sums go to `pose_sums` [views, 12]; or null.
inline void project_range_backward(const ProjectionInputs& in, const int32_t* radii, const ProjectionGradients& out,
                            const ViewConstants* views, int64_t begin, int64_t end, float* pose_scratch,
                            float* pose_sums) {
  Vec3* const pose = reinterpret_cast<Vec3*>(pose_scratch);
  for (int64_t first = begin; first < end; first += LANES) {
    const int lanes = static_cast<int>(end - first < LANES ? end - first : LANES);
    const Block block = load_block(in, first, lanes);
    BlockGradient sum = {};
    for (int64_t view = 0; view < in.views; ++view) {
      const int64_t row = view * in.count + first;
      Int8 seen = splat(0);
      for (int lane = 0; lane < lanes; ++lane) seen[lane] = radii[row + lane] > 0 ? -1 : 0;
      if (!any(seen)) continue;
      Float8 d_means2d[2], d_geometry[8];
      load_columns<2>(out.means2d + 2 * row, lanes, d_means2d);
      load_columns<8>(reinterpret_cast<const float*>(out.geometry + row), lanes, d_geometry);
      project_block_backward(in, views[view], block, seen, d_means2d, d_geometry, &sum,
                             pose == nullptr ? nullptr : pose + 4 * view);
    }
    Float8 quaternion[4];
    rotation_backward(block.rotation, sum.axis, quaternion);
    for (Float8& part : quaternion) part = keep(block.usable, part);
    const Float8 mean[3] = {sum.mean.x, sum.mean.y, sum.mean.z}, scales[3] = {sum.scales.x, sum.scales.y, sum.scales.z};
    store_columns<3>(out.means + 3 * first, lanes, mean);
    store_columns<4>(out.quaternions + 4 * first, lanes, quaternion);
    store_columns<3>(out.scales + 3 * first, lanes, scales);
    store_columns<1>(out.opacities + first, lanes, &sum.opacity);
  }
  if (pose == nullptr) return;
  for (int64_t i = 0; i < 4 * in.views; ++i) {
    pose_sums[3 * i] = horizontal_sum(pose[i].x);
    pose_sums[3 * i + 1] = horizontal_sum(pose[i].y);
    pose_sums[3 * i + 2] = horizontal_sum(pose[i].z);
  }
}

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
