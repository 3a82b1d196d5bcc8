// Shared by all native kernels: vector width, buffers, threads, the instruction set in use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <new>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace dreamkit {

constexpr int LANES = 8;  // floats in a vector

// Uninitialised, cache-line aligned memory. std::vector would clear what is overwritten anyway.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) { allocate(count); }
  Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      std::free(data_);
      data_ = other.data_;
      other.data_ = nullptr;
    }
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  void allocate(size_t count) {
    std::free(data_);
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes == 0 ? 64 : bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t index) { return data_[index]; }
  const T& operator[](size_t index) const { return data_[index]; }

 private:
  T* data_ = nullptr;
};

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Runs body(i) for i in [0, count) on `threads` threads; an exception in a thread is rethrown here. One thread enters
// no parallel region: within one, even of a single thread, libgomp starts new threads instead of waking its own.
template <class Body>
void parallel_for(int64_t count, int threads, Body body) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::exception_ptr failure;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(dreamkit_failure)
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// Instruction sets (instruction_sets.cpp).
enum class InstructionSet { baseline, avx2, avx512 };

// What this processor has, found once; DREAMKIT_SIMD=baseline or avx2 asks for less (to test those paths).
InstructionSet instruction_set();
const char* instruction_set_name();

}  // namespace dreamkit
