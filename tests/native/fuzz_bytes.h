// A fuzzer's bytes, taken one after the other; zeros follow them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

class FuzzBytes {
 public:
  FuzzBytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  bool empty() const { return size_ == 0; }
  size_t left() const { return size_; }
  const uint8_t* rest() const { return data_; }

  uint32_t number(size_t bytes) {
    uint32_t value = 0;
    const size_t n = bytes < size_ ? bytes : size_;
    std::memcpy(&value, data_, n);
    data_ += n;
    size_ -= n;
    return value;
  }
  // low..high
  int among(int low, int high) {
    return low + static_cast<int>(number(1) % static_cast<uint32_t>(high - low + 1));
  }

 private:
  const uint8_t* data_;
  size_t size_;
};
