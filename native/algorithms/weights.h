// The weights of a convolution as they come: an array, or the form of the model file; and what
// packing them needs.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "runtime/memory.h"
#include "runtime/threads.h"

namespace sparsedet {

// The weights of a convolution, [out][in][kh][kw]: an array, or the form of the model file
// (docs/format.md), which is one mask bit for each weight and the values whose bit is set.
struct Weights {
  Weights(const float* dense) : dense(dense) {}
  Weights(std::span<const uint8_t> mask, const void* values, size_t count, bool half)
      : mask(mask), values(values), count(count), half(half) {}

  // Number of nonzero weights, of `size` weights in all.
  int64_t nonzero(size_t size, Pool& pool) const;

  const float* dense = nullptr;
  std::span<const uint8_t> mask;
  const void* values = nullptr;  // float32, or float16 if `half`
  size_t count = 0;              // number of values
  bool half = false;
};

// Scratch memory for packing, reused between convolutions: reallocating it would cost more than
// packing a small convolution.
class PackScratch {
 public:
  template <class T>
  static T* get(std::unique_ptr<T[]>& buffer, size_t& size, size_t count) {
    if (count > size) {
      buffer.reset();
      buffer.reset(new T[count]);  // not cleared: untouched pages are never committed
      size = count;
    }
    return buffer.get();
  }
  uint16_t* index(size_t count) { return get(index_, index_size_, count); }
  float* values(size_t count) { return get(values_, values_size_, count); }

 private:
  std::unique_ptr<uint16_t[]> index_;
  std::unique_ptr<float[]> values_;
  size_t index_size_ = 0, values_size_ = 0;
};

// Threads and memory for packing. Defaults: the calling thread, and memory of its own.
struct Packer {
  Pool* pool = nullptr;
  Memory* memory = nullptr;
  PackScratch* scratch = nullptr;

  template <class Body>
  void parallel(int count, const Body& body) const {
    if (pool) return pool->parallel(count, body);
    for (int item = 0; item < count; item++)
      body(item, 0);
  }
};

// The value of a finite float16; infinity and NaN become some large number.
inline float from_float16(uint16_t half) {
  const uint32_t rest = half & 0x7fffu, sign = (half & 0x8000u) << 16;
  // Subnormals have no leading 1: add one and subtract it again.
  const float small = std::bit_cast<float>((rest << 13) + (113u << 23)) - 0x1p-14f;
  const uint32_t normal = (rest << 13) + (112u << 23);
  return std::bit_cast<float>((rest < 0x400 ? std::bit_cast<uint32_t>(small) : normal) | sign);
}

// The rows of `Weights`, one for each output channel, in either form. Throws std::invalid_argument
// if mask and values do not fit each other.
class WeightRows {
 public:
  WeightRows(const Weights& weights, int rows, size_t length, Packer packer);

  // Calls put(i, value) for each weight of a row; for a mask and values only for the stored ones.
  template <class Put>
  void row(int row, const Put& put) const {
    if (weights_.dense) {
      const float* from = weights_.dense + row * length_;
      for (size_t i = 0; i < length_; i++)
        put(i, from[i]);
    } else if (weights_.half) {
      const uint16_t* next = static_cast<const uint16_t*>(weights_.values) + first_[row];
      each_set(row, [&](size_t i) { put(i, from_float16(*next++)); });
    } else {
      const float* next = static_cast<const float*>(weights_.values) + first_[row];
      each_set(row, [&](size_t i) { put(i, *next++); });
    }
  }

 private:
  // Calls use(i, bits) for runs of at most 56 mask bits, each from weight i of the row on.
  template <class Use>
  void each_run(int row, const Use& use) const {
    const size_t start = row * length_;
    for (size_t i = 0; i < length_; i += 56) {
      const size_t at = (start + i) / 8, n = std::min<size_t>(56, length_ - i);
      uint64_t bits = 0;
      std::memcpy(&bits, &weights_.mask[at], std::min<size_t>(8, weights_.mask.size() - at));
      use(i, bits >> (start + i) % 8 & ((uint64_t{1} << n) - 1));
    }
  }

  template <class Use>
  void each_set(int row, const Use& use) const {
    each_run(row, [&](size_t i, uint64_t bits) {
      for (; bits; bits &= bits - 1)
        use(i + std::countr_zero(bits));
    });
  }

  const Weights& weights_;
  const size_t length_;
  std::vector<size_t> first_;  // [rows + 1] index of each row's first value
};

}  // namespace sparsedet
