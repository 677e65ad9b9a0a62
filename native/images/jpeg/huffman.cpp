// Implements huffman.h.
#include "images/jpeg/huffman.h"

#include <algorithm>
#include <iterator>

namespace sparsedet::jpeg {
namespace {

uint16_t all_codes(const std::array<HuffmanTable::Start, 1 << kFastBits>& first, uint32_t bits) {
  int length = 0, advance = 0, before = 0;
  while (length < kFastBits && advance <= 48) {
    const HuffmanTable::Start next = first[bits << length & ((1 << kFastBits) - 1)];
    if (next.length == 0 || next.length > kFastBits - length) break;
    before = advance;
    advance += HuffmanTable::advance_of(next.symbol);
    length += next.length + (next.symbol & 15);
  }
  return static_cast<uint16_t>(length | advance << 5 | (before + 3) / 4 << 12);
}

}  // namespace

void HuffmanTable::define(const uint8_t* counts, const uint8_t* values, size_t size, bool dc) {
  defined = true;
  symbols.assign(values, values + size);
  if (dc && std::any_of(symbols.begin(), symbols.end(), [](uint8_t value) { return value > 15; }))
    throw Damage{"a bad Huffman table"};
  has_start = has_fast = false;
  int code = 0, index = 0;
  for (int length = 1; length <= 16; length++, code <<= 1) {
    const int count = counts[length - 1];
    // The code of ones alone is not allowed, so the next code still fits.
    if (count > 0 && code + count >= 1 << length) throw Damage{"a bad Huffman table"};
    first_symbol[length] = index - code;
    last_code[length] = count > 0 ? code + count - 1 : -1;
    code += count;
    index += count;
  }
}

void HuffmanTable::prepare(bool ac) {
  if (!defined || (has_start && (has_fast || !ac))) return;
  std::array<Start, 1 << kFastBits> first{};
  for (int length = 1, code = 0, index = 0; length <= kFastBits; length++, code <<= 1)
    for (const int spare = kFastBits - length; code <= last_code[length]; code++, index++)
      std::fill_n(first.begin() + (code << spare), size_t{1} << spare,
                  Start{static_cast<uint8_t>(length), symbols[index]});
  for (size_t i = 0; i < start.size(); i++) {
    start[i] = first[i << (kFastBits - kStartBits)];
    if (start[i].length > kStartBits) start[i] = {};
  }
  has_start = true;
  has_fast = ac;
  if (ac)
    for (uint32_t bits = 0; bits < fast.size(); bits++)
      fast[bits] = all_codes(first, bits);
}

void HuffmanTable::define_standard(int index, bool dc) {
  static constexpr uint8_t dc_counts[2][16] = {{0, 1, 5, 1, 1, 1, 1, 1, 1},
                                               {0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}};
  static constexpr uint8_t ac_counts[2][16] = {{0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125},
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
  std::vector<uint8_t> values;
  if (!dc && index == 0) values.assign(std::begin(luma), std::end(luma));
  if (!dc && index == 1) values.assign(std::begin(chroma), std::end(chroma));
  const std::vector<uint8_t> listed = values;
  for (int value = 0; value < (dc ? 12 : 256); value++) {
    const int size = value & 15;
    const bool used = dc || (size >= 1 && size <= 10);
    if (used && std::find(listed.begin(), listed.end(), value) == listed.end())
      values.push_back(static_cast<uint8_t>(value));
  }
  define(dc ? dc_counts[index] : ac_counts[index], values.data(), values.size(), dc);
}

Code HuffmanTable::code_of(uint8_t wanted) const {
  int code = 0, index = 0;
  for (int length = 1; length <= 16; length++, code <<= 1)
    for (; code <= last_code[length]; code++, index++)
      if (symbols[index] == wanted) return {length, code};
  return {0, 0};
}

}  // namespace sparsedet::jpeg
