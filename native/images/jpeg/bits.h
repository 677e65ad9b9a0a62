// The bits of entropy-coded data, from the highest bit of each byte on.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "images/jpeg/damage.h"

namespace sparsedet::jpeg {

constexpr size_t kPadding = 4096;  // bytes after the data: an MCU has 10 blocks of 64 * 31 bits

// Bits of one restart interval, whose stuffed zeros are removed; kPadding bytes follow the last bit.
class Bits {
 public:
  Bits(const uint8_t* data, size_t size) : data_(data), next_(data), total_(size * 8) { refill(); }

  // The first bit is on top; at least 56 bits are valid after refill().
  uint64_t top() const { return bits_; }
  // At least 32 bits.
  uint64_t peek() {
    if (count_ < 32) refill();
    return bits_;
  }
  void refill() {
    uint64_t word;
    std::memcpy(&word, next_, 8);
    if constexpr (std::endian::native == std::endian::little) word = __builtin_bswap64(word);
    bits_ |= word >> count_;
    next_ += (63 - count_) >> 3;
    count_ |= 56;
  }
  void skip(int count) {
    bits_ <<= count;
    count_ -= count;
  }
  // `count` is 1..31.
  uint32_t take(int count) {
    const auto value = static_cast<uint32_t>(peek() >> (64 - count));
    skip(count);
    return value;
  }
  size_t used() const { return static_cast<size_t>(next_ - data_) * 8 - count_; }
  // To be asked at least once in kPadding bytes.
  void check() const {
    if (used() > total_) throw Damage{"its data end too early"};
  }

 private:
  const uint8_t *data_, *next_;
  size_t total_;
  uint64_t bits_ = 0;
  int count_ = 0;
};

}  // namespace sparsedet::jpeg
