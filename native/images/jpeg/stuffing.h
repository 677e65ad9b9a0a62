// Entropy-coded data in a file: a zero is stuffed in after each 255, so that it is no marker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "images/jpeg/bits.h"

namespace sparsedet::jpeg {

// One stretch of entropy-coded data after the other, each without stuffed zeros.
class EntropyCoded {
 public:
  EntropyCoded(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  // Reads from `at` to the next marker. Returns where that is (its last 255), or the file's end.
  size_t read(size_t at);
  // The marker after what was read; 0: the file ends.
  int marker() const { return marker_; }
  const uint8_t* bytes() const { return buffer_.get(); }
  size_t size() const { return buffered_; }
  Bits bits() const { return Bits(buffer_.get(), buffered_); }
  // The first `bytes` bytes as they are in the file.
  void append_stuffed(size_t bytes, std::string& out) const;

 private:
  const uint8_t* data_;
  size_t size_;
  std::unique_ptr<uint8_t[]> buffer_;  // kPadding bytes follow what was read
  uint8_t* known_ = nullptr;           // end of what was ever written in buffer_
  size_t buffered_ = 0, raw_start_ = 0, raw_end_ = 0;
  int marker_ = 0;
};

// Bits to entropy-coded bytes.
class BitWriter {
 public:
  explicit BitWriter(std::string& out) : out_(out) {}
  void put(uint32_t code, int length);
  void finish();

 private:
  std::string& out_;
  uint32_t byte_ = 0;
  int count_ = 0;
};

}  // namespace sparsedet::jpeg
