// Attention on bfloat16, forwards: products of bfloat16 and sums in float32 (VDPBF16PS), where the processor has them.
//
// An instruction multiplies pairs of neighbours and adds both products up. Queries and keys are paired by the two
// channels that the rotary embedding turns together, weights and values by two neighbouring keys. Otherwise this is the
// forward pass of attend.cpp: a tile of queries belongs to one thread and walks its keys in order.
#include "native.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 11))
#define DREAMKIT_BFLOAT16 1
#include <immintrin.h>
#endif

namespace dreamkit {

#if defined(DREAMKIT_BFLOAT16)

namespace {

using Pair = uint32_t;  // two bfloat16, the first one in the lower half

constexpr int64_t ROWS = 12;           // of a product that stay in registers, with two vectors of columns
constexpr int64_t COLUMNS = 32;        // of those vectors
constexpr int64_t TILE_ROWS = 48;      // queries of a tile
constexpr int64_t TILE_COLUMNS = 256;  // keys of a tile, whose scores stay in the second-level cache
constexpr int64_t KEY_CHUNK = 128;     // keys that a thread gathers at once, an even number
constexpr float LEAST = -3.4028235e38f;
constexpr float LOG2_E = 1.44269504088896340736f;

int64_t padded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16")
#endif

// 2^x for x <= 0, to the precision that bfloat16 keeps and a thousand times better.
inline __attribute__((always_inline)) __m512 exp2_half(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 fraction = _mm512_sub_ps(x, whole);  // in [-1/2, 1/2]
  __m512 p = _mm512_set1_ps(9.618437357674640e-3f);
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(5.550332471162809e-2f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(2.402264791363012e-1f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(6.931472028550421e-1f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, whole);
}

// A row's pairs (a, b) turned to (a cos - b sin, a sin + b cos), all times a factor, and rounded.
void turn_row_half(const Bfloat16* source, const float* turn, float factor, int64_t dim, Pair* target) {
  for (int64_t d = 0; d < dim; d += 16) {
    const __mmask16 mask = static_cast<__mmask16>(dim - d >= 16 ? 0xffff : (1 << (dim - d)) - 1);
    const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, source + d)), 16);
    const __m512 x = _mm512_castsi512_ps(bits);
    const __m512 y = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, turn + d), _mm512_set1_ps(factor));
    const __m512 other = _mm512_mul_ps(_mm512_permute_ps(x, 0xb1), _mm512_movehdup_ps(y));
    const __m512 turned = _mm512_fmaddsub_ps(x, _mm512_moveldup_ps(y), other);
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(turned);
    _mm256_mask_storeu_epi16(reinterpret_cast<Bfloat16*>(target) + d, mask, rounded);
  }
}

// Two rows of values side by side, channel by channel; `second` may be null for zeros. Whole vectors are written.
void pair_rows(const Bfloat16* first, const Bfloat16* second, int64_t dim, Pair* target) {
  for (int64_t d = 0; d < dim; d += 16) {
    const __mmask16 mask = static_cast<__mmask16>(dim - d >= 16 ? 0xffff : (1 << (dim - d)) - 1);
    __m512i pairs = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, first + d));
    if (second != nullptr) {
      const __m512i upper = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, second + d));
      pairs = _mm512_or_si512(pairs, _mm512_slli_epi32(upper, 16));
    }
    _mm512_storeu_si512(target + d, pairs);
  }
}

// Rows of pairs [16, stride] to columns [count, 16 of to_stride].
void transpose_pairs(const Pair* rows, int64_t stride, int64_t count, Pair* columns, int64_t to_stride) {
  const __m512i step = _mm512_mullo_epi32(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32((int)stride));
  for (int64_t i = 0; i < count; ++i) {
    _mm512_storeu_si512(columns + i * to_stride, _mm512_i32gather_epi32(step, rows + i, 4));
  }
}

// C[12, 32] (+)= A[12, depth] B[depth, 32], where A and B hold pairs.
void product_half(const Pair* a, int64_t a_stride, const Pair* b, int64_t b_stride, float* c, int64_t c_stride,
                  int64_t depth, bool add) {
  __m512 sum[ROWS][2];
  for (int r = 0; r < ROWS; ++r) {
    sum[r][0] = add ? _mm512_loadu_ps(c + r * c_stride) : _mm512_setzero_ps();
    sum[r][1] = add ? _mm512_loadu_ps(c + r * c_stride + 16) : _mm512_setzero_ps();
  }
  for (int64_t i = 0; i < depth; ++i) {
    const __m512bh left = (__m512bh)_mm512_loadu_si512(b + i * b_stride);
    const __m512bh right = (__m512bh)_mm512_loadu_si512(b + i * b_stride + 16);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const __m512bh factor = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[r * a_stride + i]));
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], factor, left);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], factor, right);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    _mm512_storeu_ps(c + r * c_stride, sum[r][0]);
    _mm512_storeu_ps(c + r * c_stride + 16, sum[r][1]);
  }
}

// One step of the running softmax of a row: scores s [columns] to weights 2^(s - highest) in bfloat16, of which only
// the first `count` exist. Returns the factor on what was added up before.
float soften_half(float* s, int64_t count, int64_t columns, float& highest, float& total, Bfloat16* weights) {
  for (int64_t i = count; i < columns; ++i) s[i] = LEAST;
  __m512 top = _mm512_set1_ps(highest);
  for (int64_t i = 0; i < columns; i += 16) top = _mm512_max_ps(_mm512_loadu_ps(s + i), top);
  const float peak = _mm512_reduce_max_ps(top);
  const __m512 shift = _mm512_set1_ps(peak);
  __m512 sums = _mm512_setzero_ps();
  for (int64_t i = 0; i < columns; i += COLUMNS) {
    const __m512 left = exp2_half(_mm512_sub_ps(_mm512_loadu_ps(s + i), shift));
    const __m512 right = exp2_half(_mm512_sub_ps(_mm512_loadu_ps(s + i + 16), shift));
    sums = _mm512_add_ps(sums, _mm512_add_ps(left, right));
    _mm512_storeu_si512(weights + i, (__m512i)_mm512_cvtne2ps_pbh(right, left));
  }
  const float factor = ::exp2f(highest - peak);
  highest = peak;
  total = total * factor + _mm512_reduce_add_ps(sums);
  return factor;
}

void scale_row(float* row, int64_t width, float factor) {
  for (int64_t i = 0; i < width; i += 16) {
    _mm512_storeu_ps(row + i, _mm512_mul_ps(_mm512_loadu_ps(row + i), _mm512_set1_ps(factor)));
  }
}

void store_row_half(const float* row, float factor, int64_t dim, Bfloat16* target) {
  for (int64_t d = 0; d < dim; d += 16) {
    const __mmask16 mask = static_cast<__mmask16>(dim - d >= 16 ? 0xffff : (1 << (dim - d)) - 1);
    const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(row + d), _mm512_set1_ps(factor));
    _mm256_mask_storeu_epi16(target + d, mask, (__m256i)_mm512_cvtneps_pbh(x));
  }
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

// Keys and values of one head as the products read them, zero beyond the last key.
struct HalfHead {
  int64_t stride, width;  // keys, and channels of a value, padded
  Buffer<Pair> key;       // [D / 2, stride], a pair of channels
  Buffer<Pair> value;     // [stride / 2, width], a pair of keys

  void allocate(int64_t keys, int64_t dim) {
    stride = padded(keys, TILE_COLUMNS);
    width = padded(dim, COLUMNS);
    key.allocate(static_cast<size_t>(dim / 2 * stride));
    value.allocate(static_cast<size_t>(stride / 2 * width));
    std::memset(value.data(), 0, sizeof(Pair) * static_cast<size_t>(stride / 2 * width));
  }

  // Gathers and turns a run of keys that begins at a multiple of sixteen.
  void load(const HalfInputs& in, int64_t sample, int64_t head, int64_t begin, int64_t end) {
    const int64_t pairs = in.dim / 2;
    Pair rows[16 * 128];  // sixteen rows of at most 128 pairs
    for (int64_t first = begin; first < end; first += 16) {
      std::memset(rows, 0, sizeof(Pair) * static_cast<size_t>(16 * pairs));
      for (int64_t key_row = first; key_row < std::min(end, first + 16); ++key_row) {
        turn_row_half(in.k + in.key_place(sample, head, key_row), in.k_turn + key_row * in.dim, 1.0f, in.dim,
                      rows + (key_row - first) * pairs);
      }
      transpose_pairs(rows, pairs, pairs, key.data() + first, stride);
    }
    for (int64_t first = begin; first < end; first += 2) {
      const Bfloat16* second = first + 1 < end ? in.v + in.key_place(sample, head, first + 1) : nullptr;
      pair_rows(in.v + in.key_place(sample, head, first), second, in.dim, value.data() + first / 2 * width);
    }
  }
};

struct HalfScratch {
  Buffer<Pair> query, weight;
  Buffer<float> score, sum;
  explicit HalfScratch(const HalfInputs& in)
      : query(static_cast<size_t>(TILE_ROWS * in.dim / 2)), weight(TILE_ROWS * TILE_COLUMNS / 2),
        score(TILE_ROWS * TILE_COLUMNS), sum(static_cast<size_t>(TILE_ROWS * padded(in.dim, COLUMNS))) {}
};

void attend_tile_half(const HalfInputs& in, const HalfHead& head, int64_t sample, int64_t h, int64_t begin,
                      HalfScratch& own, Bfloat16* out, float* log_sum) {
  const int64_t rows = std::min(TILE_ROWS, in.queries - begin), padded_rows = padded(rows, ROWS);
  const int64_t pairs = in.dim / 2, width = head.width, keys = in.keys();
  const float scale = LOG2_E / std::sqrt(static_cast<float>(in.dim));
  float highest[TILE_ROWS], total[TILE_ROWS] = {};
  std::fill_n(highest, TILE_ROWS, LEAST);
  std::memset(own.query.data(), 0, sizeof(Pair) * static_cast<size_t>(padded_rows * pairs));
  std::memset(own.sum.data(), 0, sizeof(float) * static_cast<size_t>(padded_rows * width));
  for (int64_t row = 0; row < rows; ++row) {
    turn_row_half(in.q + in.query_place(sample, h, begin + row), in.q_turn + (begin + row) * in.dim, scale, in.dim,
                  own.query.data() + row * pairs);
  }
  for (int64_t first = 0; first < keys; first += TILE_COLUMNS) {
    const int64_t count = std::min(TILE_COLUMNS, keys - first), columns = padded(count, COLUMNS);
    // The keys' columns on the outside: they are read once, and the queries lie in the first-level cache.
    for (int64_t column = 0; column < columns; column += COLUMNS) {
      for (int64_t row = 0; row < padded_rows; row += ROWS) {
        product_half(own.query.data() + row * pairs, pairs, head.key.data() + first + column, head.stride,
                     own.score.data() + row * columns + column, columns, pairs, false);
      }
    }
    Bfloat16* weights = reinterpret_cast<Bfloat16*>(own.weight.data());
    for (int64_t row = 0; row < padded_rows; ++row) {
      float* s = own.score.data() + row * columns;
      const float factor = soften_half(s, count, columns, highest[row], total[row], weights + row * columns);
      if (factor != 1.0f) scale_row(own.sum.data() + row * width, width, factor);
    }
    for (int64_t column = 0; column < width; column += COLUMNS) {
      for (int64_t row = 0; row < padded_rows; row += ROWS) {
        product_half(own.weight.data() + row * columns / 2, columns / 2, head.value.data() + first / 2 * width + column,
                     width, own.sum.data() + row * width + column, width, columns / 2, true);
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const float factor = total[row] > 0.0f ? 1.0f / total[row] : total[row];  // zero stays zero, NaN stays NaN
    store_row_half(own.sum.data() + row * width, factor, in.dim, out + in.query_place(sample, h, begin + row));
    log_sum[(sample * in.heads + h) * in.queries + begin + row] = highest[row] + std::log2(total[row]);
  }
}

}  // namespace

bool has_bfloat16() {
  static const bool found = instruction_set() == InstructionSet::avx512 && __builtin_cpu_supports("avx512bf16");
  return found;
}

void attention_forward_half(const HalfInputs& in, Bfloat16* out, float* log_sum) {
  // As many heads at a time as there are threads: so both loops have work for all of them, and memory stays small.
  const int64_t all = in.batch * in.heads, group = std::min<int64_t>(all, in.threads), keys = in.keys();
  const int64_t chunks = (keys + KEY_CHUNK - 1) / KEY_CHUNK, tiles = (in.queries + TILE_ROWS - 1) / TILE_ROWS;
  std::vector<HalfHead> heads(static_cast<size_t>(group));
  for (HalfHead& head : heads) head.allocate(keys, in.dim);
  std::vector<HalfScratch> scratch;
  for (int i = 0; i < in.threads; ++i) scratch.emplace_back(in);
  for (int64_t first = 0; first < all; first += group) {
    const int64_t count = std::min(group, all - first);
    parallel_for(count * chunks, in.threads, [&](int64_t i) {
      const int64_t which = first + i / chunks, begin = i % chunks * KEY_CHUNK;
      heads[static_cast<size_t>(i / chunks)].load(in, which / in.heads, which % in.heads, begin,
                                                  std::min(keys, begin + KEY_CHUNK));
    });
    parallel_for(count * tiles, in.threads, [&](int64_t i) {
      const int64_t which = first + i / tiles;
      attend_tile_half(in, heads[static_cast<size_t>(i / tiles)], which / in.heads, which % in.heads,
                       i % tiles * TILE_ROWS, scratch[static_cast<size_t>(thread_number())], out, log_sum);
    });
  }
}

#else

bool has_bfloat16() { return false; }

void attention_forward_half(const HalfInputs&, Bfloat16*, float*) {}

#endif

}  // namespace dreamkit
