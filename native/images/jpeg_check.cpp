// Implements jpeg_check.h. Numbers of figures and annexes are those of ITU-T T.81.
#include "images/jpeg_check.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace sparsedet {
namespace {

constexpr int kMaxScans = 256;     // known encoders write up to 64
constexpr size_t kPadding = 4096;  // bytes after the data: an MCU has 10 blocks of 64 * 31 bits
constexpr int kFastBits = 12, kStartBits = 9;

// What was read before is whole.
struct Damage {
  const char* what;
};
struct Unsupported {
  const char* what;
};

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

// Bits to entropy-coded bytes, with a zero after each 255.
class BitWriter {
 public:
  explicit BitWriter(std::string& out) : out_(out) {}
  void put(uint32_t code, int length) {
    for (int i = length - 1; i >= 0; i--) {
      byte_ = byte_ << 1 | (code >> i & 1);
      if (++count_ == 8) flush();
    }
  }
  void finish() {
    while (count_ != 0)
      put(1, 1);
  }

 private:
  void flush() {
    out_.push_back(static_cast<char>(byte_));
    if (byte_ == 0xff) out_.push_back('\0');
    byte_ = count_ = 0;
  }
  std::string& out_;
  uint32_t byte_ = 0;
  int count_ = 0;
};

struct Code {
  int length, value;
};

// A Huffman table (annex C), also as tables of what the next kFastBits bits hold.
struct HuffmanTable {
  struct Start {
    uint8_t length = 0;  // of the first code; 0: longer than these bits
    uint8_t symbol = 0;
  };
  // Coefficients of a sequential block that an end of the block stands for: whatever came before,
  // the sum is at least kEnd + 1, and without an end it is at most kEnd.
  static constexpr int kEnd = 79;

  bool defined = false;
  std::array<int, 17> last_code{};  // largest code of each length, -1: none
  std::array<int, 17> first_symbol{};
  std::vector<uint8_t> symbols;
  std::array<Start, 1 << kStartBits> start;
  // Of AC tables, all whole codes with the bits of their values: 5 bits of their length, 7 bits of
  // coefficients, 4 bits of a quarter of the coefficients before the last code. 0: the first code
  // is longer. Small, since it has to stay in the first cache.
  std::array<uint16_t, 1 << kFastBits> fast;

  static int advance_of(int symbol) {
    const int run = symbol >> 4;
    return (symbol & 15) != 0 || run == 15 ? run + 1 : kEnd;
  }

  // counts: of the codes of length 1..16.
  void define(const uint8_t* counts, const uint8_t* values, size_t size, bool dc) {
    defined = true;
    symbols.assign(values, values + size);
    if (dc && std::any_of(symbols.begin(), symbols.end(), [](uint8_t value) { return value > 15; }))
      throw Damage{"a bad Huffman table"};
    std::array<Start, 1 << kFastBits> first{};
    int code = 0, index = 0;
    for (int length = 1; length <= 16; length++, code <<= 1) {
      const int count = counts[length - 1];
      // The code of ones alone is not allowed, so the next code still fits.
      if (count > 0 && code + count >= 1 << length) throw Damage{"a bad Huffman table"};
      first_symbol[length] = index - code;
      last_code[length] = count > 0 ? code + count - 1 : -1;
      for (int i = 0; i < count; i++, code++, index++)
        if (const int spare = kFastBits - length; spare >= 0)
          std::fill_n(first.begin() + (code << spare), size_t{1} << spare,
                      Start{static_cast<uint8_t>(length), symbols[index]});
    }
    for (size_t i = 0; i < start.size(); i++) {
      start[i] = first[i << (kFastBits - kStartBits)];
      if (start[i].length > kStartBits) start[i] = {};
    }
    if (!dc)
      for (uint32_t bits = 0; bits < fast.size(); bits++)
        fast[bits] = all_codes(first, bits);
  }

  // Of the code on top of 64 bits.
  Code find(uint64_t bits) const {
    const Start known = start[bits >> (64 - kStartBits)];
    if (known.length != 0) return {known.length, known.symbol};
    const auto word = static_cast<uint32_t>(bits >> 48);
    for (int length = kStartBits + 1; length <= 16; length++) {
      const int code = static_cast<int>(word >> (16 - length));
      if (code <= last_code[length]) return {length, symbols[first_symbol[length] + code]};
    }
    throw Damage{"a bad Huffman code"};
  }

  // The code of a symbol, as a number; of length 0 if there is none.
  Code code_of(uint8_t wanted) const {
    int code = 0, index = 0;
    for (int length = 1; length <= 16; length++, code <<= 1)
      for (; code <= last_code[length]; code++, index++)
        if (symbols[index] == wanted) return {length, code};
    return {0, 0};
  }

 private:
  static uint16_t all_codes(const std::array<Start, 1 << kFastBits>& first, uint32_t bits) {
    int length = 0, advance = 0, before = 0;
    while (length < kFastBits && advance <= 48) {
      const Start next = first[bits << length & ((1 << kFastBits) - 1)];
      if (next.length == 0 || next.length > kFastBits - length) break;
      before = advance;
      advance += advance_of(next.symbol);
      length += next.length + (next.symbol & 15);
    }
    return static_cast<uint16_t>(length | advance << 5 | (before + 3) / 4 << 12);
  }
};

struct Channel {
  int id, h, v;
  uint32_t columns, rows;            // blocks, without those that fill up the last MCU
  bool has_dc = false;               // of any scan
  std::array<int8_t, 64> precision;  // progressive: lowest bit read of each coefficient, -1: none
  std::vector<uint64_t> nonzero;     // progressive: of each block, one bit for each coefficient
};

struct ScanPart {
  Channel* channel;
  const HuffmanTable *dc, *ac;
};

struct Scan {
  std::vector<ScanPart> parts;
  int first, last, high, low;  // Ss, Se, Ah, Al
  uint64_t mcus;
  uint32_t mcu_columns;
  size_t header;  // where in `clean` it starts
};

uint32_t ceil_div(uint32_t a, uint32_t b) {
  return (a + b - 1) / b;
}

class Checker {
 public:
  Checker(const uint8_t* data, size_t size, uint64_t max_pixels, bool copy, JpegCheck& result)
      : data_(data),
        size_(size),
        max_pixels_(max_pixels),
        copy_(copy),
        result_(result),
        out_(result.clean) {}

  void run() {
    if (copy_) out_.reserve(size_ + 64);
    out_.append("\xff\xd8");
    at_ = 2;
    bool ended = false;
    try {
      while (!ended)
        ended = segment();
      for (const Channel& c : channels_)
        if (!c.has_dc) note("a colour channel is missing");
    } catch (const Damage& damage) {
      if (whole_ == 0) note(damage.what);
      // What follows a whole image cannot change it. Some cameras write no end marker, but data of
      // their own.
      if (whole_ > 0) out_.resize(whole_);
      result_.odd |= whole_ > 0;
    } catch (const Unsupported& kind) {
      result_.unsupported = kind.what;
      out_.clear();
      return;
    }
    const bool any =
        std::any_of(channels_.begin(), channels_.end(), [](const Channel& c) { return c.has_dc; });
    if (!any || hopeless_) {
      note("it holds no picture");
      out_.clear();
      return;
    }
    if (adobe_ != 0) {  // libjpeg warns of other values, and takes these in their place
      const char usual = channels_.size() == 4 ? 2 : 1;
      result_.odd |= out_[adobe_] != 0 && out_[adobe_] != usual;
      if (out_[adobe_] != 0) out_[adobe_] = usual;
    }
    out_.append("\xff\xd9");
    if (!copy_) out_.clear();
  }

 private:
  void note(const std::string& damage) {
    if (result_.damage.empty()) result_.damage = damage;
  }

  // ------------------------------------------------------------------ segments

  // The next marker; at_ is then behind it.
  int marker() {
    while (at_ < size_) {
      const void* found = std::memchr(data_ + at_, 0xff, size_ - at_);
      if (found == nullptr) break;
      const size_t skipped = std::exchange(at_, static_cast<const uint8_t*>(found) - data_);
      result_.odd |= at_ != skipped;
      while (at_ < size_ && data_[at_] == 0xff)
        at_++;
      if (at_ == size_) break;
      const int code = data_[at_++];
      // Stuffed zeros are stray bytes here; 01 and the restarts have no segment.
      if (code != 0 && code != 1 && (code < 0xd0 || code > 0xd7)) return code;
      result_.odd = true;
    }
    throw Damage{"it has no end-of-image marker"};
  }

  // True at the end of the image.
  bool segment() {
    const int code = marker();
    if (code == 0xd9) return true;
    if (code == 0xd8) throw Damage{"a second start of an image inside"};
    if (size_ - at_ < 2) throw Damage{"a segment ends past the file"};
    const size_t length = data_[at_] << 8 | data_[at_ + 1];
    if (length < 2 || length > size_ - at_) throw Damage{"a segment ends past the file"};
    const uint8_t* body = data_ + at_ + 2;
    const size_t bytes = length - 2;
    const size_t start = at_ - 2;
    at_ += length;
    if (code >= 0xc0 && code <= 0xcf && code != 0xc4 && code != 0xc8 && code != 0xcc) {
      frame(code, body, bytes);
    } else if (code == 0xc4) {
      huffman_tables(body, bytes);
    } else if (code == 0xdd) {
      if (bytes != 2) throw Damage{"a bad restart interval"};
      interval_ = body[0] << 8 | body[1];
    } else if (code == 0xda) {
      scan(body, bytes);
      return false;
    } else if (code == 0xe1) {
      if (result_.exif_end == 0 && bytes >= 6 && std::memcmp(body, "Exif\0\0", 6) == 0) {
        result_.exif_start = start + 10;
        result_.exif_end = at_;
      }
      return false;
    } else if (code == 0xe0) {
      if (bytes < 14 || std::memcmp(body, "JFIF\0", 5) != 0) return false;
      copy(code, body, bytes);
      result_.odd |= body[5] != 1;  // the major version, of which libjpeg warns
      out_[out_.size() - bytes + 5] = 1;
      return false;
    } else if (code == 0xee) {
      if (bytes < 12 || std::memcmp(body, "Adobe", 5) != 0) return false;
      copy(code, body, bytes);
      if (scans_ == 0) adobe_ = out_.size() - bytes + 11;
      return false;
    } else if ((code > 0xe0 && code < 0xf0) || code == 0xfe || code == 0xdc || code == 0xcc) {
      return false;  // metadata, a number of lines, arithmetic conditioning
    } else if (code != 0xdb) {
      throw Damage{"an unknown marker"};
    }
    copy(code, body, bytes);
    return false;
  }

  void copy(int code, const uint8_t* body, size_t bytes) {
    const size_t length = bytes + 2;
    out_.push_back('\xff');
    for (int byte : {code, static_cast<int>(length >> 8), static_cast<int>(length & 255)})
      out_.push_back(static_cast<char>(byte));
    out_.append(reinterpret_cast<const char*>(body), bytes);
  }

  void frame(int code, const uint8_t* body, size_t bytes) {
    if (!channels_.empty()) throw Damage{"a second frame header"};
    if (code == 0xc3) throw Unsupported{"lossless JPEG"};
    if (code >= 0xc9) throw Unsupported{"JPEG with arithmetic coding"};
    if (code > 0xc2) throw Unsupported{"hierarchical JPEG"};
    progressive_ = code == 0xc2;
    if (bytes < 6) throw Damage{"a bad frame header"};
    if (body[0] != 8) throw Unsupported{"JPEG of other than 8 bits a sample"};
    height_ = body[1] << 8 | body[2];
    const uint32_t width = body[3] << 8 | body[4];
    const size_t count = body[5];
    if (bytes != 6 + 3 * count || height_ == 0 || width == 0 ||
        uint64_t{height_} * width > max_pixels_)
      throw Damage{"a bad frame header"};
    if (count != 1 && count != 3 && count != 4) throw Unsupported{"JPEG of 2 or over 4 channels"};
    for (size_t i = 0; i < count; i++) {
      const uint8_t* c = body + 6 + 3 * i;
      const int h = c[1] >> 4, v = c[1] & 15;
      if (h < 1 || h > 4 || v < 1 || v > 4 || c[2] > 3) throw Damage{"a bad frame header"};
      h_ = std::max(h_, h);
      v_ = std::max(v_, v);
      for (const Channel& other : channels_)
        if (other.id == c[0]) throw Damage{"a bad frame header"};
      channels_.push_back({c[0], h, v, 0, 0, false, {}, {}});
    }
    width_ = width;
    for (Channel& c : channels_) {
      c.columns = ceil_div(width * c.h, h_ * 8);
      c.rows = ceil_div(height_ * c.v, v_ * 8);
      c.precision.fill(-1);
      if (progressive_) c.nonzero.assign(size_t{c.columns} * c.rows, 0);
    }
  }

  void huffman_tables(const uint8_t* body, size_t bytes) {
    while (bytes > 0) {
      if (bytes < 17) throw Damage{"a bad Huffman table"};
      const int kind = body[0] >> 4, index = body[0] & 15;
      size_t count = 0;
      for (int i = 1; i <= 16; i++)
        count += body[i];
      if (kind > 1 || index > 3 || count > 256 || count > bytes - 17)
        throw Damage{"a bad Huffman table"};
      tables_[kind * 4 + index].define(body + 1, body + 17, count, kind == 0);
      body += 17 + count;
      bytes -= 17 + count;
    }
  }

  // Those of annex K.3, which Motion JPEG leaves out and decoders know.
  void define_standard(HuffmanTable& table, int index, bool dc) {
    static constexpr uint8_t dc_counts[2][16] = {{0, 1, 5, 1, 1, 1, 1, 1, 1},
                                                 {0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}};
    static constexpr uint8_t ac_counts[2][16] = {
        {0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125},
        {0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119}};
    // The symbols with the shorter codes; the others follow in ascending order.
    static constexpr uint8_t luma[] = {0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31,
                                       0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71, 0x14, 0x32,
                                       0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52,
                                       0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72, 0x82};
    static constexpr uint8_t chroma[] = {
        0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61,
        0x71, 0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33,
        0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1};
    std::vector<uint8_t> symbols;
    if (!dc && index == 0) symbols.assign(std::begin(luma), std::end(luma));
    if (!dc && index == 1) symbols.assign(std::begin(chroma), std::end(chroma));
    const std::vector<uint8_t> listed = symbols;
    for (int value = 0; value < (dc ? 12 : 256); value++) {
      const int size = value & 15;
      const bool used = dc || (size >= 1 && size <= 10);
      if (used && std::find(listed.begin(), listed.end(), value) == listed.end())
        symbols.push_back(static_cast<uint8_t>(value));
    }
    table.define(dc ? dc_counts[index] : ac_counts[index], symbols.data(), symbols.size(), dc);
  }

  // ------------------------------------------------------------------ scans

  void scan(const uint8_t* body, size_t bytes) {
    if (channels_.empty()) throw Damage{"a scan without a frame header"};
    if (complete_) throw Damage{"a further scan after the image"};
    if (++scans_ > kMaxScans) throw Damage{"more than 256 scans"};
    const size_t count = bytes > 0 ? body[0] : 0;
    if (count < 1 || count > channels_.size() || bytes != 4 + 2 * count)
      throw Damage{"a bad scan header"};
    Scan scan{{}, body[bytes - 3], body[bytes - 2], body[bytes - 1] >> 4, body[bytes - 1] & 15, 0,
              0,  out_.size()};
    if (!progressive_) {  // other values are wrong, but harmless, and libjpeg warns of them
      result_.odd |= scan.first != 0 || scan.last != 63 || scan.high != 0 || scan.low != 0;
      scan.first = scan.high = scan.low = 0;
      scan.last = 63;
    }
    int blocks = 0;
    for (size_t i = 0; i < count; i++) {
      const uint8_t* part = body + 1 + 2 * i;
      Channel* channel = nullptr;
      for (Channel& c : channels_)
        if (c.id == part[0]) channel = &c;
      if (channel == nullptr || (part[1] >> 4) > 3 || (part[1] & 15) > 3)
        throw Damage{"a bad scan header"};
      for (const ScanPart& other : scan.parts)
        if (other.channel == channel) throw Damage{"a bad scan header"};
      const int dc = part[1] >> 4, ac = part[1] & 15;
      if (dc < 2 && !tables_[dc].defined) define_standard(tables_[dc], dc, true);
      if (ac < 2 && !tables_[4 + ac].defined) define_standard(tables_[4 + ac], ac, false);
      scan.parts.push_back({channel, &tables_[dc], &tables_[4 + ac]});
      blocks += channel->h * channel->v;
    }
    if (count > 1 && blocks > 10) throw Damage{"a bad scan header"};
    const Channel& only = *scan.parts[0].channel;
    scan.mcu_columns = count == 1 ? only.columns : ceil_div(width_, h_ * 8);
    scan.mcus = uint64_t{scan.mcu_columns} * (count == 1 ? only.rows : ceil_div(height_, v_ * 8));
    if (progressive_) progress(scan);
    for (const ScanPart& part : scan.parts)
      if ((scan.first == 0 && scan.high == 0 && !part.dc->defined) ||
          (scan.last > 0 && !part.ac->defined))
        throw Damage{"a Huffman table is missing"};

    copy(0xda, body, bytes);
    out_[out_.size() - 3] = static_cast<char>(scan.first);
    out_[out_.size() - 2] = static_cast<char>(scan.last);
    out_[out_.size() - 1] = static_cast<char>(scan.high << 4 | scan.low);
    for (const ScanPart& part : scan.parts)
      if (scan.first == 0) part.channel->has_dc = true;
    complete_ = !progressive_ && count == channels_.size();
    intervals(scan);
    // Of a progressive image nobody knows how many scans there should be.
    if (!progressive_ && filled_ &&
        std::all_of(channels_.begin(), channels_.end(),
                    [](const Channel& channel) { return channel.has_dc; }))
      whole_ = out_.size();
  }

  // The order of progressive scans (annex G.1.1.1), of which libjpeg warns.
  void progress(const Scan& scan) {
    const bool ac = scan.first > 0;
    if (scan.first > scan.last || scan.last > 63 || (scan.first == 0 && scan.last > 0) ||
        scan.low > 13 || (scan.high > 0 && scan.low != scan.high - 1) ||
        (ac && scan.parts.size() > 1))
      throw Damage{"a bad scan header"};
    for (const ScanPart& part : scan.parts) {
      auto& precision = part.channel->precision;
      if (ac && precision[0] < 0) throw Damage{"scans in a wrong order"};
      for (int k = scan.first; k <= scan.last; k++) {
        if (scan.high != std::max<int>(precision[k], 0)) throw Damage{"scans in a wrong order"};
        precision[k] = static_cast<int8_t>(scan.low);
      }
    }
  }

  // All restart intervals of a scan; at_ is then at the marker that follows.
  void intervals(const Scan& scan) {
    uint64_t done = 0;
    uint64_t missing = 0;  // intervals that are not in the file
    for (int number = 0; done < scan.mcus; number = (number + 1) & 7) {
      const uint64_t end =
          interval_ > 0 ? std::min<uint64_t>(scan.mcus, done + interval_) : scan.mcus;
      if (missing > 0) {
        missing--;
        fill(scan, done, end, 0);
        done = end;
      } else {
        one_interval(scan, done, end);
        const bool restart = next_marker_ >= 0xd0 && next_marker_ <= 0xd7;
        if (end < scan.mcus) {
          if (next_marker_ != 0xd0 + number)
            damaged(scan, done,
                    restart ? "a part of its data is missing" : "its data end too early");
          if (restart) at_ += 2;
          missing = restart ? (next_marker_ - 0xd0 - number) & 7 : UINT64_MAX;
          if (missing > 0) drop_refinement(scan);
        }
      }
      if (end < scan.mcus) {
        out_.push_back('\xff');
        out_.push_back(static_cast<char>(0xd0 + number));
      }
    }
  }

  // The MCUs [done, end), from at_ to the next marker.
  void one_interval(const Scan& scan, uint64_t& done, uint64_t end) {
    unstuff();
    size_t bits = 0;
    filled_ = false;
    try {
      decode(scan, done, end, bits);
      const size_t bytes = (bits + 7) / 8;
      append_raw(bytes);
      // The last byte is filled up with ones. Zeros after a cut are codes as well, but end in zeros.
      const uint8_t last = bytes > 0 ? buffer_[bytes - 1] : 0,
                    filling = (1 << (bytes * 8 - bits)) - 1;
      filled_ = last != 0 && (last & filling) == filling;
      // Stray bytes after a scan are common, inside of one they tell of lost blocks.
      if (end < scan.mcus && !std::all_of(
                                 buffer_.get() + bytes, buffer_.get() + buffered_,
                                 [](uint8_t byte) { return byte == 0 || byte == 255; }))
        damaged(scan, end, "stray bytes between its data");
    } catch (const Damage& damage) {
      damaged(scan, done, damage.what);
      if (scans_ == 1 && done == 0) {
        hopeless_ = true;
        throw;
      }
      drop_refinement(scan);
      fill(scan, done, end, bits);
      done = end;
    }
  }

  // A damaged progressive scan, unless it is the first of its channels: what came before it is a
  // whole image, less sharp.
  void drop_refinement(const Scan& scan) {
    if (!progressive_ || (scan.first == 0 && scan.high == 0)) return;
    out_.resize(scan.header);
    throw Damage{"a scan is damaged"};
  }

  void damaged(const Scan& scan, uint64_t mcu, const char* what) {
    if (progressive_) {
      note(what);
      return;
    }
    const int rows = 8 * (scan.parts.size() == 1 ? v_ / scan.parts[0].channel->v : v_);
    const uint64_t row = std::min<uint64_t>(mcu / scan.mcu_columns * rows, height_);
    note(std::string(what) + ", at row " + std::to_string(row) + " of " + std::to_string(height_));
  }

  // Fills buffer_ with the data from at_ to the next marker, without stuffed zeros. at_ is then at
  // that marker (its last 255) or at the end of the file.
  void unstuff() {
    if (!buffer_) {
      buffer_.reset(new uint8_t[size_ + kPadding]);
      known_ = buffer_.get();
    }
    uint8_t* to = buffer_.get();
    raw_start_ = at_;
    next_marker_ = 0;
    while (next_marker_ == 0 && at_ < size_) {
      const void* found = std::memchr(data_ + at_, 0xff, size_ - at_);
      raw_end_ = found == nullptr ? size_ : static_cast<const uint8_t*>(found) - data_;
      std::memcpy(to, data_ + at_, raw_end_ - at_);
      to += raw_end_ - at_;
      at_ = raw_end_;
      while (at_ < size_ && data_[at_] == 0xff)
        at_++;
      if (at_ == size_) break;
      if (data_[at_] == 0) {
        *to++ = 0xff;
        raw_end_ = ++at_;
      } else {
        next_marker_ = data_[at_--];
      }
    }
    buffered_ = to - buffer_.get();
    // What an earlier interval left there would do as well.
    uint8_t* const end = to + kPadding;
    if (end > known_) std::memset(std::max(to, known_), 0, end - std::max(to, known_));
    known_ = std::max(known_, end);
  }

  // The first `bytes` bytes of buffer_ as they are in the file.
  void append_raw(size_t bytes) {
    result_.odd |= bytes != buffered_;
    if (!copy_) return;
    if (bytes == buffered_) {
      out_.append(reinterpret_cast<const char*>(data_ + raw_start_), raw_end_ - raw_start_);
      return;
    }
    for (size_t i = 0; i < bytes; i++) {
      out_.push_back(static_cast<char>(buffer_[i]));
      if (buffer_[i] == 0xff) out_.push_back('\0');
    }
  }

  // Plain blocks for the MCUs [done, end), after the first `bits` bits of buffer_.
  void fill(const Scan& scan, uint64_t done, uint64_t end, size_t bits) {
    std::vector<Code> mcu;
    for (const ScanPart& part : scan.parts)
      for (int block = 0; block < blocks(scan, part); block++) {
        mcu.push_back(part.dc->code_of(0));
        if (scan.last > 0) mcu.push_back(part.ac->code_of(0));
      }
    for (const Code& code : mcu)
      if (code.length == 0) {
        hopeless_ = true;
        throw Damage{"its data cannot be completed"};
      }
    if (!copy_) return;
    BitWriter to(out_);
    for (size_t i = 0; i < bits; i++)
      to.put(buffer_[i / 8] >> (7 - i % 8) & 1, 1);
    for (; done < end; done++)
      for (const Code& code : mcu)
        to.put(code.value, code.length);
    to.finish();
  }

  // ------------------------------------------------------------------ blocks

  static int blocks(const Scan& scan, const ScanPart& part) {
    return scan.parts.size() == 1 ? 1 : part.channel->h * part.channel->v;
  }

  // Decodes the MCUs [done, end); `done` and `whole` (bits of whole MCUs) tell how far that went.
  void decode(const Scan& scan, uint64_t& done, uint64_t end, size_t& whole) {
    const Bits bits(buffer_.get(), buffered_);
    if (!progressive_)
      sequential_scan(scan, bits, done, end, whole);
    else if (scan.first == 0)
      dc_scan(scan, bits, done, end, whole);
    else if (scan.high == 0)
      spectral_scan(scan, bits, done, end, whole);
    else
      refining_scan(scan, bits, done, end, whole);
  }

  // The bits are a copy in all of these, which the compiler keeps in registers.
  static void sequential_scan(const Scan& scan, Bits bits, uint64_t& done, uint64_t end,
                              size_t& whole) {
    std::vector<ScanPart> mcu;  // one part for each block
    for (const ScanPart& part : scan.parts)
      mcu.insert(mcu.end(), blocks(scan, part), part);
    for (; done < end; done++) {
      for (const auto& [channel, dc, ac] : mcu) {
        bits.refill();
        const Code head = dc->find(bits.top());
        bits.skip(head.length + head.value);
        uint32_t k = 1;
        while (k < 64) {
          bits.refill();  // enough for two lookups of up to 27 bits
          uint32_t next = ac->fast[bits.top() >> (64 - kFastBits)];
          if (next == 0 || k + (next >> 10 & 60) >= 64) {
            const Code code = ac->find(bits.top());
            bits.skip(code.length + (code.value & 15));
            k += HuffmanTable::advance_of(code.value);
            continue;
          }
          bits.skip(next & 31);
          k += next >> 5 & 127;
          if (k >= 64) break;
          next = ac->fast[bits.top() >> (64 - kFastBits)];
          if (next == 0 || k + (next >> 10 & 60) >= 64) continue;
          bits.skip(next & 31);
          k += next >> 5 & 127;
        }
        if (k > 64 && k <= HuffmanTable::kEnd) throw Damage{"a block with too many coefficients"};
      }
      bits.check();
      whole = bits.used();
    }
  }

  static void dc_scan(const Scan& scan, Bits bits, uint64_t& done, uint64_t end, size_t& whole) {
    for (; done < end; done++) {
      for (const ScanPart& part : scan.parts)
        for (int block = blocks(scan, part); block > 0; block--) {
          if (scan.high > 0) {
            bits.take(1);
          } else {
            const Code code = part.dc->find(bits.peek());
            bits.skip(code.length + code.value);
          }
        }
      bits.check();
      whole = bits.used();
    }
  }

  // A symbol of a progressive scan that ends the band of this block and of further blocks.
  static uint64_t end_of_bands(Bits& bits, int run) {
    return (uint64_t{1} << run) + (run > 0 ? bits.take(run) : 0);
  }

  // First scan of a band of AC coefficients (annex G.1.2.2).
  static void spectral_scan(const Scan& scan, Bits bits, uint64_t& done, uint64_t end,
                            size_t& whole) {
    const HuffmanTable& ac = *scan.parts[0].ac;
    auto& nonzero = scan.parts[0].channel->nonzero;
    while (done < end) {
      uint64_t ends = 0;  // blocks, this one among them, without further coefficients
      for (int k = scan.first; k <= scan.last; k++) {
        const Code code = ac.find(bits.peek());
        const int run = code.value >> 4, size = code.value & 15;
        bits.skip(code.length);
        if (size == 0 && run < 15) {
          ends = end_of_bands(bits, run);
          break;
        }
        k += run;
        if (k > scan.last || size + scan.low > 15) throw Damage{"a bad coefficient"};
        if (size > 0) {
          bits.take(size);
          nonzero[done] |= uint64_t{1} << k;
        }
      }
      bits.check();
      if (ends > end - done) throw Damage{"a run past the last block"};
      done += std::max<uint64_t>(ends, 1);
      whole = bits.used();
    }
  }

  // A further bit of a band of AC coefficients (annex G.1.2.3).
  static void refining_scan(const Scan& scan, Bits bits, uint64_t& done, uint64_t end,
                            size_t& whole) {
    const HuffmanTable& ac = *scan.parts[0].ac;
    auto& nonzero = scan.parts[0].channel->nonzero;
    uint64_t ends = 0;
    for (; done < end; done++) {
      uint64_t& block = nonzero[done];
      int k = scan.first;
      while (ends == 0 && k <= scan.last) {
        const Code code = ac.find(bits.peek());
        const int size = code.value & 15;
        int run = code.value >> 4;
        bits.skip(code.length);
        if (size > 1) throw Damage{"a bad Huffman code"};
        if (size == 0 && run < 15) {
          ends = end_of_bands(bits, run);
          break;
        }
        if (size == 1) bits.take(1);  // its sign
        for (; k <= scan.last; k++) {
          if (block >> k & 1)
            bits.take(1);
          else if (--run < 0)
            break;
        }
        if (size == 1) {
          if (k > scan.last) throw Damage{"a bad coefficient"};
          block |= uint64_t{1} << k;
        }
        k++;
      }
      if (ends > 0) {
        for (; k <= scan.last; k++)
          if (block >> k & 1) bits.take(1);
        ends--;
      }
      bits.check();
      whole = bits.used();
    }
    if (ends > 0) throw Damage{"a run past the last block"};
  }

  const uint8_t* data_;
  size_t size_;
  uint64_t max_pixels_;
  bool copy_;
  JpegCheck& result_;
  std::string& out_;

  size_t at_ = 0;
  bool progressive_ = false, complete_ = false, hopeless_ = false;
  bool filled_ = false;  // the last interval ends as an encoder ends it
  uint32_t height_ = 0, width_ = 0;
  int h_ = 1, v_ = 1, scans_ = 0;
  uint32_t interval_ = 0;
  size_t whole_ = 0;  // of out_ once every pixel of a sequential image is there
  size_t adobe_ = 0;
  std::vector<Channel> channels_;
  std::array<HuffmanTable, 8> tables_;  // four of DC, four of AC

  std::unique_ptr<uint8_t[]> buffer_;
  uint8_t* known_ = nullptr;  // end of what was ever written in buffer_
  size_t buffered_ = 0, raw_start_ = 0, raw_end_ = 0;
  int next_marker_ = 0;  // what ended buffer_, 0: the end of the file
};

}  // namespace

JpegCheck check_jpeg(const uint8_t* data, size_t size, uint64_t max_pixels, bool copy) {
  JpegCheck result;
  auto checker = std::make_unique<Checker>(data, size, max_pixels, copy, result);
  checker->run();
  return result;
}

}  // namespace sparsedet
