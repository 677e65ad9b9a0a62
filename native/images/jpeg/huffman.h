// Huffman tables. Numbers of figures and annexes are those of ITU-T T.81.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "images/jpeg/damage.h"

namespace sparsedet::jpeg {

constexpr int kFastBits = 12, kStartBits = 9;

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

  bool defined = false, has_start = false, has_fast = false;
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

  // counts: of the codes of length 1..16. Throws Damage.
  void define(const uint8_t* counts, const uint8_t* values, size_t size, bool dc);
  // Table 0 or 1 of annex K.3, which Motion JPEG leaves out and decoders know.
  void define_standard(int index, bool dc);
  // Fills `start`, and `fast` if ac: before a scan that needs them, since a file may define more
  // tables than it uses.
  void prepare(bool ac);

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
  Code code_of(uint8_t wanted) const;
};

}  // namespace sparsedet::jpeg
