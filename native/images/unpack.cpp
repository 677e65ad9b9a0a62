// Implements unpack.h.
#include "images/unpack.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace sparsedet {
namespace {

constexpr int kMaxBits = 12;

// Codes of a growing width out of a stream of bytes. The bits that come next are on top if
// kHighFirst, else at the bottom.
template <bool kHighFirst>
class CodeReader {
 public:
  CodeReader(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  // -1: the data have ended.
  int next(int width) {
    if (count_ < width) {
      for (; count_ <= 56 && data_ != end_; count_ += 8)
        bits_ |= uint64_t{*data_++} << (kHighFirst ? 56 - count_ : count_);
      if (count_ < width) return -1;
    }
    count_ -= width;
    if constexpr (kHighFirst) {
      const int code = static_cast<int>(bits_ >> (64 - width));
      bits_ <<= width;
      return code;
    } else {
      const int code = static_cast<int>(bits_ & ((1u << width) - 1));
      bits_ >>= width;
      return code;
    }
  }

 private:
  const uint8_t *data_, *end_;
  uint64_t bits_ = 0;
  int count_ = 0;
};

// A string that grows up to a size, and the copies of LZW inside of it.
class Output {
 public:
  static constexpr size_t kStep = 8;  // bytes of a copy at once; so many follow the last byte

  Output(size_t most, size_t guess) : most_(most) { bytes_.resize(std::min(most, guess) + kStep); }

  size_t size() const { return size_; }
  void append(char byte) {
    make_room(1);
    bytes_[size_++] = byte;
  }
  // Of what is there, up to its end; less where the output is full.
  void append_copy(size_t from, size_t length) {
    length = std::min(length, most_ - size_);
    make_room(length);
    const char* source = bytes_.data() + from;
    char* to = bytes_.data() + size_;
    size_ += length;
    if (length <= kStep && from + kStep <= static_cast<size_t>(to - bytes_.data()))
      std::memcpy(to, source, kStep);
    else
      std::memcpy(to, source, length);
  }
  std::string take() {
    bytes_.resize(size_);
    return std::move(bytes_);
  }

 private:
  void make_room(size_t length) {
    const size_t needed = size_ + length + kStep;
    if (needed > bytes_.size()) bytes_.resize(std::min(most_ + kStep, 2 * needed));
  }

  std::string bytes_;
  size_t most_, size_ = 0;
};

// early: the width grows one code before it must, as in TIFF.
template <bool kHighFirst>
std::string unpack_lzw(const uint8_t* data, size_t size, size_t expected, int first_bits,
                       bool early) {
  struct Entry {             // of 8 bytes, so that the table stays in the first cache
    uint32_t start, length;  // of the string in the output
  };
  expected = std::min<size_t>(expected, UINT32_MAX);
  const int clear = 1 << first_bits, stop = clear + 1;
  std::vector<Entry> table(size_t{1} << kMaxBits);
  CodeReader<kHighFirst> reader(data, size);
  Output out(expected, 4 * size);
  int next = stop + 1, width = first_bits + 1;
  Entry last{0, 0};  // length 0: none since the last clearing
  while (out.size() < expected) {
    const int code = reader.next(width);
    if (code < 0 || code == stop) break;
    if (code == clear) {
      next = stop + 1;
      width = first_bits + 1;
      last.length = 0;
      continue;
    }
    if (code > next || (code >= clear && last.length == 0)) break;
    if (code == next && next >= 1 << kMaxBits) break;
    const auto start = static_cast<uint32_t>(out.size());
    if (code < clear) {
      out.append(static_cast<char>(code));
    } else if (code < next) {
      out.append_copy(table[code].start, table[code].length);
    } else {  // a new code: the last string and its own first byte
      out.append_copy(last.start, last.length);
      out.append_copy(last.start, 1);
    }
    // The last string and the first byte of this one are side by side in the output.
    if (last.length > 0 && next < 1 << kMaxBits) table[next++] = {last.start, last.length + 1};
    last = {start, static_cast<uint32_t>(out.size()) - start};
    if (next + early >= 1 << width && width < kMaxBits) width++;
  }
  return out.take();
}

}  // namespace

std::string unpack_tiff_lzw(const uint8_t* data, size_t size, size_t expected) {
  return unpack_lzw<true>(data, size, expected, 8, true);
}

std::string unpack_gif_lzw(const uint8_t* data, size_t size, size_t expected, int first_bits) {
  if (first_bits < 1 || first_bits >= kMaxBits) return {};
  return unpack_lzw<false>(data, size, expected, first_bits, false);
}

std::string unpack_packbits(const uint8_t* data, size_t size, size_t expected) {
  std::string out;
  for (size_t at = 0; at < size && out.size() < expected;) {
    const int head = static_cast<int8_t>(data[at++]);
    const size_t room = expected - out.size();
    if (head >= 0) {
      const size_t length = std::min(static_cast<size_t>(head) + 1, size - at);
      out.append(reinterpret_cast<const char*>(data + at), std::min(length, room));
      at += length;
    } else if (head != -128 && at < size) {
      out.append(std::min<size_t>(1 - head, room), static_cast<char>(data[at++]));
    }
  }
  return out;
}

}  // namespace sparsedet
