// Blocks of sequential scans (annex F of ITU-T T.81). Implements decode.h.
#include "images/jpeg/decode.h"

namespace sparsedet::jpeg {

// The bits are a copy, which the compiler keeps in registers.
void decode_sequential(const Scan& scan, Bits bits, uint64_t end, Progress& progress) {
  for (; progress.mcus < end; progress.mcus++) {
    for (const auto& [channel, dc, ac] : scan.blocks) {
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
    progress.bits = bits.used();
  }
}

}  // namespace sparsedet::jpeg
