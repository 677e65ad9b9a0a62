// The frame header and the scan headers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "images/jpeg/huffman.h"

namespace sparsedet::jpeg {

struct Channel {
  int id, h, v, quantisation;
  uint32_t columns, rows;            // blocks, without those that fill up the last MCU
  bool has_dc = false;               // of any scan
  std::array<int8_t, 64> precision;  // progressive: lowest bit read of each coefficient, -1: none
  std::vector<uint64_t> nonzero;     // progressive: of each block, one bit for each coefficient
};

struct Frame {
  bool progressive = false;
  uint32_t height = 0, width = 0;
  int h = 1, v = 1;  // largest of the channels
  std::vector<Channel> channels;

  // code: the marker. Throws Damage or Unsupported.
  void read(int code, const uint8_t* body, size_t bytes, uint64_t max_pixels);
};

struct Tables {
  std::array<HuffmanTable, 4> dc, ac;
  unsigned quantisation = 0;  // one bit for each table that is defined; no value matters here

  // Both throw Damage.
  void read_huffman(const uint8_t* body, size_t bytes);
  void read_quantisation(const uint8_t* body, size_t bytes);
};

struct ScanPart {
  Channel* channel;
  const HuffmanTable *dc, *ac;
};

struct Scan {
  std::vector<ScanPart> parts;   // one for each channel
  std::vector<ScanPart> blocks;  // one for each block of an MCU
  int first, last, high, low;    // Ss, Se, Ah, Al
  uint64_t mcus;
  uint32_t mcu_columns;
  bool odd;       // it has wrong values that do no harm, of which libjpeg warns
  bool repeated;  // sequential: of a channel that had a scan. One is enough
};

// A scan header; the frame's channels note what the scan brings. Throws Damage.
Scan read_scan(const uint8_t* body, size_t bytes, Frame& frame, Tables& tables);

}  // namespace sparsedet::jpeg
