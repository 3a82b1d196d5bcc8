// Which pixels a face covers, compiled once per instruction set (see instruction_sets.h). Included by rasterize.cpp.
#include "../simd.h"

namespace dreamkit {
namespace DREAMKIT_ISA {

typedef double Double4 __attribute__((vector_size(32)));
typedef int64_t Long4 __attribute__((vector_size(32)));

DREAMKIT_INLINE Double4 splat4(double value) { return value - Double4{}; }

DREAMKIT_INLINE uint32_t bits_of(Long4 mask) {
#if defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < 4; ++lane) bits |= (static_cast<uint32_t>(mask[lane] >> 63) & 1) << lane;
  return bits;
#endif
}

// Draws faces into rows [first, last) of one view. `xs` are the columns' X, with room for a vector behind the last;
// `nearest` and `seen` are the view's depths and faces.
void cover_rows(const FaceSetup* faces, int64_t count, int64_t width, int64_t height, int64_t first, int64_t last,
                const double* xs, float* nearest, int32_t* seen) {
  const Long4 lane{0, 1, 2, 3};
  for (int64_t i = 0; i < count; ++i) {
    const FaceSetup& face = faces[i];
    const int64_t top = face.row_begin > first ? face.row_begin : first;
    const int64_t bottom = face.row_end < last ? face.row_end : last;
    for (int64_t row = top; row < bottom; ++row) {
      const double y = 1.0 - static_cast<double>(2 * row + 1) / static_cast<double>(height);
      double base[3];
      for (int edge = 0; edge < 3; ++edge) base[edge] = face.n[edge].y * y + face.n[edge].z;
      const double depth_base = face.plane.y * y + face.plane.z;
      for (int64_t column = face.column_begin; column < face.column_end; column += 4) {
        Double4 x;
        std::memcpy(&x, xs + column, sizeof(x));
        Long4 inside = lane < (Long4{} + (face.column_end - column));
        for (int edge = 0; edge < 3; ++edge) {
          inside &= splat4(face.n[edge].x) * x + splat4(base[edge]) >= splat4(face.least[edge]);
        }
        uint32_t covered = bits_of(inside);
        if (covered == 0) continue;
        const Double4 depth = splat4(face.plane.x) * x + splat4(depth_base);
        for (; covered != 0; covered &= covered - 1) {
          const int at = __builtin_ctz(covered);
          const int64_t pixel = row * width + column + at;
          const float own = static_cast<float>(depth[at]);
          if (own >= -1.0f && own <= 1.0f && own < nearest[pixel]) {  // faces come in order: they win no tie
            nearest[pixel] = own;
            seen[pixel] = face.face;
          }
        }
      }
    }
  }
}

}  // namespace DREAMKIT_ISA
}  // namespace dreamkit
