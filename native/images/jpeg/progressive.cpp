// Blocks of progressive scans (annex G of ITU-T T.81). Implements decode.h.
#include <algorithm>

#include "images/jpeg/decode.h"

namespace sparsedet::jpeg {
namespace {

void dc_scan(const Scan& scan, Bits bits, uint64_t end, Progress& progress) {
  for (; progress.mcus < end; progress.mcus++) {
    for (const ScanPart& part : scan.blocks) {
      if (scan.high > 0) {
        bits.take(1);
      } else {
        const Code code = part.dc->find(bits.peek());
        bits.skip(code.length + code.value);
      }
    }
    bits.check();
    progress.bits = bits.used();
  }
}

// A symbol of a progressive scan that ends the band of this block and of further blocks.
uint64_t end_of_bands(Bits& bits, int run) {
  return (uint64_t{1} << run) + (run > 0 ? bits.take(run) : 0);
}

// First scan of a band of AC coefficients (annex G.1.2.2).
void spectral_scan(const Scan& scan, Bits bits, uint64_t end, Progress& progress) {
  const HuffmanTable& ac = *scan.parts[0].ac;
  auto& nonzero = scan.parts[0].channel->nonzero;
  while (progress.mcus < end) {
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
        nonzero[progress.mcus] |= uint64_t{1} << k;
      }
    }
    bits.check();
    if (ends > end - progress.mcus) throw Damage{"a run past the last block"};
    progress.mcus += std::max<uint64_t>(ends, 1);
    progress.bits = bits.used();
  }
}

// A further bit of a band of AC coefficients (annex G.1.2.3).
void refining_scan(const Scan& scan, Bits bits, uint64_t end, Progress& progress) {
  const HuffmanTable& ac = *scan.parts[0].ac;
  auto& nonzero = scan.parts[0].channel->nonzero;
  uint64_t ends = 0;
  for (; progress.mcus < end; progress.mcus++) {
    uint64_t& block = nonzero[progress.mcus];
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
      if (block != 0)
        for (; k <= scan.last; k++)
          if (block >> k & 1) bits.take(1);
      ends--;
    }
    bits.check();
    progress.bits = bits.used();
  }
  if (ends > 0) throw Damage{"a run past the last block"};
}

}  // namespace

void decode_progressive(const Scan& scan, Bits bits, uint64_t end, Progress& progress) {
  if (scan.first == 0)
    dc_scan(scan, bits, end, progress);
  else if (scan.high == 0)
    spectral_scan(scan, bits, end, progress);
  else
    refining_scan(scan, bits, end, progress);
}

}  // namespace sparsedet::jpeg
