// Is a JPEG whole? Walks the segments and decodes the Huffman codes, without making pixels of them.
// libjpeg inside OpenCV decodes damaged data too, and says so only on the terminal, without a file
// name. What passes here gives libjpeg nothing to say.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sparsedet {

struct JpegCheck {
  // What is wrong; empty: nothing.
  std::string damage;
  // Why a whole file is not read, as arithmetic coding; empty: it is.
  std::string unsupported;
  // There is something harmless that libjpeg warns of: stray bytes, odd header fields.
  bool odd = false;
  // The same image for a decoder, without metadata and what is odd. Of a damaged image what was
  // whole, with plain blocks for the rest; empty if that is not possible.
  std::string clean;
  // The first EXIF block, as a part of the file.
  size_t exif_start = 0, exif_end = 0;
};

// Reads nothing outside of data[0, size). Memory: about that of the file, and 8 bytes for each
// block of a progressive image, of at most max_pixels pixels. `clean` is made if copy is true.
JpegCheck check_jpeg(const uint8_t* data, size_t size, uint64_t max_pixels, bool copy);

}  // namespace sparsedet
