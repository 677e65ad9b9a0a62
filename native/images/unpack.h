// Unpacks the strips of TIFF and the pictures of GIF: LZW and PackBits. Damaged data give less than
// expected, which libtiff inside OpenCV fills up without a word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sparsedet {

// LZW of TIFF: codes from 9 bits on, the first bit of a byte is its highest.
// LZW of GIF: codes from first_bits + 1 bits on (first_bits 1..11), the first bit is the lowest.
// All give at most `expected` bytes, and less if a code is bad or the data end early.
std::string unpack_tiff_lzw(const uint8_t* data, size_t size, size_t expected);
std::string unpack_gif_lzw(const uint8_t* data, size_t size, size_t expected, int first_bits);
std::string unpack_packbits(const uint8_t* data, size_t size, size_t expected);

}  // namespace sparsedet
