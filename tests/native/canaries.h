// Aligned memory that shows what a kernel writes where it must not.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

// Aligned floats with canaries on both sides.
class Canaries {
 public:
  explicit Canaries(size_t size) : size_(size + 2 * kGuard) {
    data_ = static_cast<float*>(std::aligned_alloc(64, (size_ * sizeof(float) + 63) / 64 * 64));
    for (size_t i = 0; i < size_; i++)
      data_[i] =
          __builtin_bit_cast(float, static_cast<uint32_t>(0x7f812345u + i));  // signalling NaNs
    expected_.assign(data_, data_ + size_);
    tolerance_.assign(size_, -1);
  }
  ~Canaries() { std::free(data_); }
  Canaries(const Canaries&) = delete;
  Canaries& operator=(const Canaries&) = delete;
  float* data() { return data_ + kGuard; }
  void put(ptrdiff_t at, float value) { data()[at] = value, expect(at, value); }
  // tolerance: negative for equal bits.
  void expect(ptrdiff_t at, float value, double tolerance = -1) {
    std::memcpy(&expected_[at + kGuard], &value, sizeof value);
    tolerance_[at + kGuard] = tolerance;
  }
  bool good() const {
    for (size_t i = 0; i < size_; i++)
      if (tolerance_[i] < 0 ? std::memcmp(&data_[i], &expected_[i], sizeof(float)) != 0
                            : !(std::abs(data_[i] - expected_[i]) <= tolerance_[i]))
        return false;
    return true;
  }
  // Whether the canaries on both sides are whole.
  bool guarded() const {
    for (size_t i = 0; i < kGuard; i++)
      for (const size_t at : {i, size_ - 1 - i})
        if (std::memcmp(&data_[at], &expected_[at], sizeof(float)) != 0) return false;
    return true;
  }

 private:
  static constexpr size_t kGuard = 64;
  size_t size_;
  float* data_;
  std::vector<float> expected_;
  std::vector<double> tolerance_;
};
