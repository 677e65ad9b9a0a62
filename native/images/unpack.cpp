// Implements unpack.h.
#include "images/unpack.h"

#include <algorithm>
#include <vector>

namespace sparsedet {
namespace {

constexpr int kMaxBits = 12;

// Codes of a growing width out of a stream of bytes.
class CodeReader {
 public:
  CodeReader(const uint8_t* data, size_t size, bool high_first)
      : data_(data), size_(size), high_first_(high_first) {}

  // -1: the data have ended.
  int next(int width) {
    while (count_ < width) {
      if (at_ == size_) return -1;
      if (high_first_)
        bits_ = bits_ << 8 | data_[at_++];
      else
        bits_ |= static_cast<uint32_t>(data_[at_++]) << count_;
      count_ += 8;
    }
    count_ -= width;
    const uint32_t mask = (1u << width) - 1;
    if (high_first_) return static_cast<int>(bits_ >> count_ & mask);
    const int code = static_cast<int>(bits_ & mask);
    bits_ >>= width;
    return code;
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
  bool high_first_;
  uint32_t bits_ = 0;
  int count_ = 0;
};

// early: the width grows one code before it must, as in TIFF.
std::string unpack_lzw(CodeReader reader, size_t expected, int first_bits, bool early) {
  struct Entry {
    size_t start;  // of the string in the output
    uint32_t length;
  };
  const int clear = 1 << first_bits, stop = clear + 1;
  std::vector<Entry> table(size_t{1} << kMaxBits);
  std::string out;
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
    const Entry entry{out.size(), code < clear  ? 1
                                  : code < next ? table[code].length
                                                : last.length + 1};
    if (code > next || (code >= clear && last.length == 0)) break;
    if (code == next && next >= 1 << kMaxBits) break;
    if (code < clear) {
      out.push_back(static_cast<char>(code));
    } else {  // the string may reach into what it appends: of a new code, its own first byte
      size_t from = code < next ? table[code].start : last.start;
      const size_t length = std::min<size_t>(entry.length, expected - out.size());
      for (size_t i = 0; i < length; i++)
        out.push_back(out[from++]);
    }
    // The last string and the first byte of this one are side by side in the output.
    if (last.length > 0 && next < 1 << kMaxBits) table[next++] = {last.start, last.length + 1};
    last = entry;
    if (next + early >= 1 << width && width < kMaxBits) width++;
  }
  return out;
}

}  // namespace

std::string unpack_tiff_lzw(const uint8_t* data, size_t size, size_t expected) {
  return unpack_lzw(CodeReader(data, size, true), expected, 8, true);
}

std::string unpack_gif_lzw(const uint8_t* data, size_t size, size_t expected, int first_bits) {
  if (first_bits < 1 || first_bits >= kMaxBits) return {};
  return unpack_lzw(CodeReader(data, size, false), expected, first_bits, false);
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
