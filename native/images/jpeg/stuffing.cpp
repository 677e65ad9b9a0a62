// Implements stuffing.h.
#include "images/jpeg/stuffing.h"

#include <algorithm>
#include <cstring>

namespace sparsedet::jpeg {

size_t EntropyCoded::read(size_t at) {
  if (!buffer_) {
    buffer_.reset(new uint8_t[size_ + kPadding]);
    known_ = buffer_.get();
  }
  uint8_t* to = buffer_.get();
  raw_start_ = at;
  marker_ = 0;
  while (marker_ == 0 && at < size_) {
    const void* found = std::memchr(data_ + at, 0xff, size_ - at);
    raw_end_ = found == nullptr ? size_ : static_cast<const uint8_t*>(found) - data_;
    std::memcpy(to, data_ + at, raw_end_ - at);
    to += raw_end_ - at;
    at = raw_end_;
    while (at < size_ && data_[at] == 0xff)
      at++;
    if (at == size_) break;
    if (data_[at] == 0) {
      *to++ = 0xff;
      raw_end_ = ++at;
    } else {
      marker_ = data_[at--];
    }
  }
  buffered_ = to - buffer_.get();
  // What an earlier interval left there would do as well.
  uint8_t* const end = to + kPadding;
  if (end > known_) std::memset(std::max(to, known_), 0, end - std::max(to, known_));
  known_ = std::max(known_, end);
  return at;
}

void EntropyCoded::append_stuffed(size_t bytes, std::string& out) const {
  if (bytes == buffered_) {
    out.append(reinterpret_cast<const char*>(data_ + raw_start_), raw_end_ - raw_start_);
    return;
  }
  for (size_t i = 0; i < bytes; i++) {
    out.push_back(static_cast<char>(buffer_[i]));
    if (buffer_[i] == 0xff) out.push_back('\0');
  }
}

void BitWriter::put(uint32_t code, int length) {
  for (int i = length - 1; i >= 0; i--) {
    byte_ = byte_ << 1 | (code >> i & 1);
    if (++count_ < 8) continue;
    out_.push_back(static_cast<char>(byte_));
    if (byte_ == 0xff) out_.push_back('\0');
    byte_ = count_ = 0;
  }
}

void BitWriter::finish() {
  while (count_ != 0)
    put(1, 1);
}

}  // namespace sparsedet::jpeg
