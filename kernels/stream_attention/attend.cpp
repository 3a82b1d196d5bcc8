// Attention over the visible frames of a stream's cache: keys are gathered and rotated once a head, then tiles of
// queries run over threads with the softmax of Milakov and Gimelshein (arXiv 1805.02867), as in FlashAttention
// (arXiv 2205.14135). Every tile belongs to one thread and walks its keys in order, so the bits do not depend on the
// thread count.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

#define DREAMKIT_KERNELS "stream_attention/attention_kernels.h"
#include "../instruction_sets.h"

namespace dreamkit {
namespace {

constexpr int64_t TILE_ROWS = 48;      // a multiple of the six rows that a product keeps in registers
constexpr int64_t TILE_COLUMNS = 256;  // a tile of keys or queries stays in the second-level cache
constexpr int64_t PAD = 16;
constexpr float LOG2_E = 1.44269504088896340736f;

int64_t padded(int64_t count) { return (count + PAD - 1) / PAD * PAD; }

struct Tile {
  int64_t begin, end, block;
};

// Runs of at most `longest` that stay inside one block each.
std::vector<Tile> tiles_of(int64_t count, int64_t longest, const AttentionInputs& in) {
  const int64_t block = in.blocks == nullptr ? std::max<int64_t>(count, 1) : in.block;
  std::vector<Tile> tiles;
  for (int64_t first = 0; first < count; first += block) {
    const int64_t last = std::min(count, first + block);
    for (int64_t begin = first; begin < last; begin += longest) {
      tiles.push_back({begin, std::min(last, begin + longest), first / block});
    }
  }
  return tiles;
}

// Rows of one head [rows + PAD, width], and where asked for the same as columns [dim, stride], zero beyond the end.
struct Matrix {
  int64_t rows = 0, width = 0, stride = 0;
  Buffer<float> row, column;

  void allocate(int64_t count, int64_t dim, bool with_columns) {
    rows = count;
    width = padded(dim);
    stride = padded(count) + TILE_COLUMNS;  // a tile is read in whole vectors from wherever it begins
    row.allocate(static_cast<size_t>((count + PAD) * width));
    std::memset(row.data(), 0, sizeof(float) * static_cast<size_t>((count + PAD) * width));
    if (!with_columns) return;
    column.allocate(static_cast<size_t>(dim * stride));
    std::memset(column.data(), 0, sizeof(float) * static_cast<size_t>(dim * stride));
  }

  // `begin` is a multiple of the lanes, and so is `end` unless it is that of the rows, after which there are zeros.
  void transpose(int64_t begin, int64_t end, int64_t dim) {
    DREAMKIT_CALL(transpose_rows, row.data() + begin * width, width, end - begin, dim, column.data() + begin, stride);
  }
};

void turn_row_back(const float* source, const float* turn, float factor, int64_t dim, float* target) {
  for (int64_t d = 0; d < dim; d += 2) {
    const float cos = turn[d] * factor, sin = turn[d + 1] * factor, a = source[d], b = source[d + 1];
    target[d] = a * cos + b * sin;
    target[d + 1] = b * cos - a * sin;
  }
}

// One head of one sample: where its rows are, and its tiles.
struct Head {
  const AttentionInputs& in;
  int64_t sample, head, keys;
  std::vector<Tile> query_rows, query_columns, key_rows, key_columns;
  Matrix q, k, v, d_out;

  Head(const AttentionInputs& inputs, bool backward) : in(inputs), sample(0), head(0), keys(in.keys()) {
    query_rows = tiles_of(in.queries, TILE_ROWS, in);
    query_columns = tiles_of(in.queries, TILE_COLUMNS, in);
    key_rows = tiles_of(keys, TILE_ROWS, in);
    key_columns = tiles_of(keys, TILE_COLUMNS, in);
    q.allocate(in.queries, in.dim, backward);
    k.allocate(keys, in.dim, true);
    v.allocate(keys, in.dim, backward);
    if (backward) d_out.allocate(in.queries, in.dim, true);
  }

  int64_t query_place(int64_t query) const { return in.query_place(sample, head, query); }
  int64_t key_place(int64_t key) const { return in.key_place(sample, head, key); }
  bool computed(const Tile& queries_tile, const Tile& keys_tile) const {
    if (in.blocks == nullptr) return true;
    const int64_t query_blocks = (in.queries + in.block - 1) / in.block, key_blocks = (keys + in.block - 1) / in.block;
    const int64_t row = (sample * in.heads + head) * query_blocks + queries_tile.block;
    return in.blocks[row * key_blocks + keys_tile.block];
  }

  // Gathers, rotates and scales what the products need.
  void load(int64_t s, int64_t h, const float* d_rows) {
    sample = s;
    head = h;
    const float scale = LOG2_E / std::sqrt(static_cast<float>(in.dim));
    const int64_t dim = in.dim, chunk = 512;
    parallel_for((keys + chunk - 1) / chunk, in.threads, [&](int64_t i) {
      const int64_t begin = i * chunk, end = std::min(keys, begin + chunk);
      for (int64_t key = begin; key < end; ++key) {
        float* row = k.row.data() + key * k.width;
        DREAMKIT_CALL(turn_row, in.k + key_place(key), in.k_turn + key * dim, 1.0f, dim, row);
        if (in.rounded) DREAMKIT_CALL(round_row, row, k.width);
        std::memcpy(v.row.data() + key * v.width, in.v + key_place(key), sizeof(float) * static_cast<size_t>(dim));
      }
      k.transpose(begin, end, dim);
      if (d_rows != nullptr) v.transpose(begin, end, dim);
    });
    parallel_for((in.queries + chunk - 1) / chunk, in.threads, [&](int64_t i) {
      const int64_t begin = i * chunk, end = std::min(in.queries, begin + chunk);
      for (int64_t query = begin; query < end; ++query) {
        float* row = q.row.data() + query * q.width;
        DREAMKIT_CALL(turn_row, in.q + query_place(query), in.q_turn + query * dim, scale, dim, row);
        if (in.rounded) DREAMKIT_CALL(round_row, row, q.width);
        if (d_rows == nullptr) continue;
        std::memcpy(d_out.row.data() + query * d_out.width, d_rows + query_place(query),
                    sizeof(float) * static_cast<size_t>(dim));
      }
      if (d_rows == nullptr) return;
      q.transpose(begin, end, dim);
      d_out.transpose(begin, end, dim);
    });
  }
};

struct Scratch {
  Buffer<float> s, d_s, first, second;
  explicit Scratch(int64_t width)
      : s(TILE_ROWS * TILE_COLUMNS), d_s(TILE_ROWS * TILE_COLUMNS), first(static_cast<size_t>(TILE_ROWS * width)),
        second(static_cast<size_t>(TILE_ROWS * width)) {}
};

void clear(Buffer<float>& buffer, int64_t count) {
  std::memset(buffer.data(), 0, sizeof(float) * static_cast<size_t>(count));
}

void attend_tile(const Head& head, const Tile& tile, Scratch& own, float* out, float* log_sum) {
  const AttentionInputs& in = head.in;
  const int64_t rows = tile.end - tile.begin, width = head.v.width;
  float highest[TILE_ROWS], total[TILE_ROWS] = {};
  std::fill_n(highest, TILE_ROWS, -3.4028235e38f);
  clear(own.first, TILE_ROWS * width);
  for (const Tile& keys : head.key_columns) {
    if (!head.computed(tile, keys)) continue;
    const int64_t count = keys.end - keys.begin, columns = padded(count);
    DREAMKIT_CALL(product, head.q.row.data() + tile.begin * head.q.width, head.q.width,
                  head.k.column.data() + keys.begin, head.k.stride, own.s.data(), columns, rows, columns, in.dim, false);
    DREAMKIT_CALL(soften_rows, own.s.data(), rows, count, columns, highest, total, own.first.data(), width);
    DREAMKIT_CALL(product, own.s.data(), columns, head.v.row.data() + keys.begin * width, width, own.first.data(), width,
                  rows, width, count, true);
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t query = tile.begin + row;
    const float* sums = own.first.data() + row * width;
    const float factor = total[row] > 0.0f ? 1.0f / total[row] : total[row];  // zero stays zero, NaN stays NaN
    for (int64_t d = 0; d < in.dim; ++d) out[head.query_place(query) + d] = sums[d] * factor;
    log_sum[(head.sample * in.heads + head.head) * in.queries + query] = highest[row] + std::log2(total[row]);
  }
}

// Gradients of a tile of keys and values; columns of the scores are queries.
void differentiate_keys(const Head& head, const Tile& tile, const float* log_sum, const float* delta, Scratch& own,
                        const AttentionGradients& gradients) {
  const AttentionInputs& in = head.in;
  const int64_t rows = tile.end - tile.begin, width = head.v.width;
  clear(own.first, TILE_ROWS * width);
  clear(own.second, TILE_ROWS * width);
  for (const Tile& queries : head.query_columns) {
    if (!head.computed(queries, tile)) continue;
    const int64_t count = queries.end - queries.begin, columns = padded(count);
    DREAMKIT_CALL(product, head.k.row.data() + tile.begin * width, width, head.q.column.data() + queries.begin,
                  head.q.stride, own.s.data(), columns, rows, columns, in.dim, false);
    DREAMKIT_CALL(product, head.v.row.data() + tile.begin * width, width, head.d_out.column.data() + queries.begin,
                  head.d_out.stride, own.d_s.data(), columns, rows, columns, in.dim, false);
    DREAMKIT_CALL(weigh_columns, own.s.data(), own.d_s.data(), rows, columns, log_sum + queries.begin,
                  delta + queries.begin);
    DREAMKIT_CALL(product, own.s.data(), columns, head.d_out.row.data() + queries.begin * width, width,
                  own.first.data(), width, rows, width, count, true);
    DREAMKIT_CALL(product, own.d_s.data(), columns, head.q.row.data() + queries.begin * width, width,
                  own.second.data(), width, rows, width, count, true);
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t key = tile.begin + row, place = head.key_place(key);
    std::memcpy(gradients.d_v + place, own.first.data() + row * width, sizeof(float) * static_cast<size_t>(in.dim));
    // q is scaled by log2(e) / sqrt(D); the gradient wants 1 / sqrt(D).
    turn_row_back(own.second.data() + row * width, in.k_turn + key * in.dim, 1.0f / LOG2_E, in.dim,
                  gradients.d_k + place);
  }
}

// Gradients of a tile of queries.
void differentiate_queries(const Head& head, const Tile& tile, const float* log_sum, const float* delta, Scratch& own,
                           const AttentionGradients& gradients) {
  const AttentionInputs& in = head.in;
  const int64_t rows = tile.end - tile.begin, width = head.v.width;
  clear(own.first, TILE_ROWS * width);
  for (const Tile& keys : head.key_columns) {
    if (!head.computed(tile, keys)) continue;
    const int64_t count = keys.end - keys.begin, columns = padded(count);
    DREAMKIT_CALL(product, head.q.row.data() + tile.begin * width, width, head.k.column.data() + keys.begin,
                  head.k.stride, own.s.data(), columns, rows, columns, in.dim, false);
    DREAMKIT_CALL(product, head.d_out.row.data() + tile.begin * width, width, head.v.column.data() + keys.begin,
                  head.v.stride, own.d_s.data(), columns, rows, columns, in.dim, false);
    DREAMKIT_CALL(weigh_rows, own.s.data(), own.d_s.data(), rows, columns, log_sum + tile.begin, delta + tile.begin);
    DREAMKIT_CALL(product, own.d_s.data(), columns, head.k.row.data() + keys.begin * width, width, own.first.data(),
                  width, rows, width, count, true);
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(in.dim));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t query = tile.begin + row;
    turn_row_back(own.first.data() + row * width, in.q_turn + query * in.dim, scale, in.dim,
                  gradients.d_q + head.query_place(query));
  }
}

std::vector<Scratch> scratch_for(int threads, int64_t width) {
  std::vector<Scratch> all;
  for (int i = 0; i < threads; ++i) all.emplace_back(width);
  return all;
}

}  // namespace

void attention_forward(const AttentionInputs& in, float* out, float* log_sum) {
  Head head(in, false);
  std::vector<Scratch> scratch = scratch_for(in.threads, head.v.width);
  for (int64_t sample = 0; sample < in.batch; ++sample) {
    for (int64_t h = 0; h < in.heads; ++h) {
      head.load(sample, h, nullptr);
      parallel_for(static_cast<int64_t>(head.query_rows.size()), in.threads, [&](int64_t i) {
        attend_tile(head, head.query_rows[static_cast<size_t>(i)], scratch[static_cast<size_t>(thread_number())], out,
                    log_sum);
      });
    }
  }
}

void attention_backward(const AttentionInputs& in, const AttentionGradients& gradients) {
  Head head(in, true);
  std::vector<Scratch> scratch = scratch_for(in.threads, head.v.width);
  // Beyond the last query the weights have to come out as zero.
  std::vector<float> log_sum(static_cast<size_t>(in.queries + TILE_COLUMNS), INFINITY);
  std::vector<float> delta(static_cast<size_t>(in.queries + TILE_COLUMNS), 0.0f);
  for (int64_t sample = 0; sample < in.batch; ++sample) {
    for (int64_t h = 0; h < in.heads; ++h) {
      head.load(sample, h, gradients.d_out);
      std::copy_n(gradients.log_sum + (sample * in.heads + h) * in.queries, in.queries, log_sum.begin());
      for (int64_t query = 0; query < in.queries; ++query) {
        const int64_t place = head.query_place(query);
        float sum = 0.0f;
        for (int64_t d = 0; d < in.dim; ++d) sum += gradients.out[place + d] * gradients.d_out[place + d];
        delta[static_cast<size_t>(query)] = sum;
      }
      parallel_for(static_cast<int64_t>(head.key_rows.size()), in.threads, [&](int64_t i) {
        differentiate_keys(head, head.key_rows[static_cast<size_t>(i)], log_sum.data(), delta.data(),
                           scratch[static_cast<size_t>(thread_number())], gradients);
      });
      parallel_for(static_cast<int64_t>(head.query_rows.size()), in.threads, [&](int64_t i) {
        differentiate_queries(head, head.query_rows[static_cast<size_t>(i)], log_sum.data(), delta.data(),
                              scratch[static_cast<size_t>(thread_number())], gradients);
      });
    }
  }
}

}  // namespace dreamkit
