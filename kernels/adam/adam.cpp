// Masked Adam: blocks of rows over threads, all tensors of a block in one pass. Every number belongs to one thread, and
// blocks begin at multiples of whole vectors, so the bits do not depend on the thread count.
#include <algorithm>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

#define DREAMKIT_KERNELS "adam/adam_kernels.h"
#include "../instruction_sets.h"

namespace dreamkit {
namespace {

constexpr int64_t BLOCK = 1024;               // rows
constexpr int64_t PARALLEL_THRESHOLD = 2048;  // rows below which waking threads does not pay

}  // namespace

void adam_step(const AdamInputs& in) {
  const int64_t blocks = (in.count + BLOCK - 1) / BLOCK;
  parallel_for(blocks, in.count < PARALLEL_THRESHOLD ? 1 : std::max(1, in.threads), [&](int64_t block) {
    const int64_t last = std::min(in.count, (block + 1) * BLOCK);
    for (int64_t begin = block * BLOCK; begin < last;) {
      int64_t end = last;
      if (in.rows != nullptr) {
        while (begin < last && !in.rows[begin]) ++begin;
        for (end = begin; end < last && in.rows[end];) ++end;
      }
      for (const AdamTensor& tensor : in.tensors) {
        DREAMKIT_CALL(step_run, in, tensor, begin * tensor.width, end * tensor.width);
      }
      begin = end;
    }
  });
}

}  // namespace dreamkit
