// Implements jpeg_check.h: the segments of a JPEG, one after the other.
#include "images/jpeg_check.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "images/jpeg/intervals.h"

namespace sparsedet {
namespace {

using jpeg::Damage;
using jpeg::Unsupported;

constexpr int kMaxScans = 256;  // known encoders write up to 64

class Checker {
 public:
  Checker(const uint8_t* data, size_t size, uint64_t max_pixels, bool copy, JpegCheck& result)
      : data_(data),
        size_(size),
        max_pixels_(max_pixels),
        result_(result),
        out_(result.clean),
        findings_(result, copy),
        intervals_(data, size, findings_) {}

  void run() {
    if (findings_.copy) out_.reserve(size_ + 64);
    out_.append("\xff\xd8");
    at_ = 2;
    const auto& channels = frame_.channels;
    try {
      while (segment()) {
      }
      if (std::any_of(channels.begin(), channels.end(), [](const auto& c) { return !c.has_dc; }))
        findings_.note("a colour channel is missing");
    } catch (const Damage& damage) {
      if (whole_ == 0) findings_.note(damage.what);
      // What follows a whole image cannot change it. Some cameras write no end marker, but data of
      // their own.
      if (whole_ > 0) out_.resize(whole_);
      findings_.odd(whole_ > 0);
    } catch (const Unsupported& kind) {
      result_.unsupported = kind.what;
      out_.clear();
      return;
    }
    const bool any =
        std::any_of(channels.begin(), channels.end(), [](const auto& c) { return c.has_dc; });
    if (!any || findings_.hopeless) {
      findings_.note("it holds no picture");
      out_.clear();
      return;
    }
    if (adobe_ != 0) {  // libjpeg warns of other values, and takes these in their place
      const char usual = channels.size() == 4 ? 2 : 1;
      findings_.odd(out_[adobe_] != 0 && out_[adobe_] != usual);
      if (out_[adobe_] != 0) out_[adobe_] = usual;
    }
    out_.append("\xff\xd9");
    if (!findings_.copy) out_.clear();
  }

 private:
  // The next marker; at_ is then behind it.
  int marker() {
    while (at_ < size_) {
      const void* found = std::memchr(data_ + at_, 0xff, size_ - at_);
      if (found == nullptr) break;
      const size_t skipped = std::exchange(at_, static_cast<const uint8_t*>(found) - data_);
      findings_.odd(at_ != skipped);
      while (at_ < size_ && data_[at_] == 0xff)
        at_++;
      if (at_ == size_) break;
      const int code = data_[at_++];
      // Stuffed zeros are stray bytes here; 01 and the restarts have no segment.
      if (code != 0 && code != 1 && (code < 0xd0 || code > 0xd7)) return code;
      findings_.odd(true);
    }
    throw Damage{"it has no end-of-image marker"};
  }

  // False at the end of the image.
  bool segment() {
    const int code = marker();
    if (code == 0xd9) return false;
    if (code == 0xd8) throw Damage{"a second start of an image inside"};
    if (size_ - at_ < 2) throw Damage{"a segment ends past the file"};
    const size_t length = data_[at_] << 8 | data_[at_ + 1];
    if (length < 2 || length > size_ - at_) throw Damage{"a segment ends past the file"};
    const uint8_t* body = data_ + at_ + 2;
    at_ += length;
    if (code >= 0xe0 && code <= 0xef)
      application(code, body, length - 2);
    else if (code == 0xda)
      scan(body, length - 2);
    else if (code == 0xcc)  // of arithmetic coding; libjpeg looks at it even so
      findings_.odd(true);
    else if (code != 0xfe && code != 0xdc)  // a comment, a number of lines
      header(code, body, length - 2);
    return true;
  }

  void header(int code, const uint8_t* body, size_t bytes) {
    if (code == 0xc4) {
      tables_.read_huffman(body, bytes);
    } else if (code == 0xdb) {
      tables_.read_quantisation(body, bytes);
    } else if (code >= 0xc0 && code <= 0xcf && code != 0xc8) {
      frame_.read(code, body, bytes, max_pixels_);
    } else if (code == 0xdd) {
      if (bytes != 2) throw Damage{"a bad restart interval"};
      interval_ = body[0] << 8 | body[1];
    } else {
      throw Damage{"an unknown marker"};
    }
    copy(code, body, bytes);
  }

  void application(int code, const uint8_t* body, size_t bytes) {
    if (code == 0xe0 && bytes >= 14 && std::memcmp(body, "JFIF\0", 5) == 0) {
      copy(code, body, bytes);
      findings_.odd(body[5] != 1);  // the major version, of which libjpeg warns
      out_[out_.size() - bytes + 5] = 1;
    } else if (code == 0xe1 && bytes >= 6 && std::memcmp(body, "Exif\0\0", 6) == 0) {
      if (result_.exif_end != 0) return;
      result_.exif_start = body + 6 - data_;
      result_.exif_end = at_;
    } else if (code == 0xee && bytes >= 12 && std::memcmp(body, "Adobe", 5) == 0) {
      copy(code, body, bytes);
      if (scans_ == 0) adobe_ = out_.size() - bytes + 11;
    }
  }

  void scan(const uint8_t* body, size_t bytes) {
    if (frame_.channels.empty()) throw Damage{"a scan without a frame header"};
    if (complete_) throw Damage{"a further scan after the image"};
    if (++scans_ > kMaxScans) throw Damage{"more than 256 scans"};
    const jpeg::Scan scan = jpeg::read_scan(body, bytes, frame_, tables_);
    if (scan.repeated) {  // libjpeg would mix it into the first
      whole_ = 0;
      throw Damage{"a further scan of a colour channel"};
    }
    findings_.odd(scan.odd);
    const size_t start = out_.size();
    copy(0xda, body, bytes);
    out_[out_.size() - 3] = static_cast<char>(scan.first);
    out_[out_.size() - 2] = static_cast<char>(scan.last);
    out_[out_.size() - 1] = static_cast<char>(scan.high << 4 | scan.low);
    complete_ = !frame_.progressive && scan.parts.size() == frame_.channels.size();
    at_ = intervals_.read(frame_, scan, start, at_, interval_, scans_ == 1);
    // Of a progressive image nobody knows how many scans there should be.
    if (!frame_.progressive && intervals_.filled() &&
        std::all_of(frame_.channels.begin(), frame_.channels.end(),
                    [](const auto& channel) { return channel.has_dc; }))
      whole_ = out_.size();
  }

  void copy(int code, const uint8_t* body, size_t bytes) {
    const size_t length = bytes + 2;
    out_.push_back('\xff');
    for (int byte : {code, static_cast<int>(length >> 8), static_cast<int>(length & 255)})
      out_.push_back(static_cast<char>(byte));
    out_.append(reinterpret_cast<const char*>(body), bytes);
  }

  const uint8_t* data_;
  size_t size_;
  uint64_t max_pixels_;
  JpegCheck& result_;
  std::string& out_;

  size_t at_ = 0;
  int scans_ = 0;
  bool complete_ = false;
  uint32_t interval_ = 0;
  size_t whole_ = 0;  // of out_ once every pixel of a sequential image is there
  size_t adobe_ = 0;  // where in out_ the colour transform is
  jpeg::Frame frame_;
  jpeg::Tables tables_;
  jpeg::Findings findings_;
  jpeg::Intervals intervals_;
};

}  // namespace

JpegCheck check_jpeg(const uint8_t* data, size_t size, uint64_t max_pixels, bool copy) {
  JpegCheck result;
  auto checker = std::make_unique<Checker>(data, size, max_pixels, copy, result);
  checker->run();
  return result;
}

}  // namespace sparsedet
