// libFuzzer: the packings of TIFF and GIF. The first bytes say which, and how much is expected.
#include <cstdlib>

#include "fuzz_bytes.h"
#include "fuzz_limits.h"
#include "images/unpack.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const FuzzTimeLimit limit;
  FuzzBytes bytes(data, size);
  const int kind = bytes.among(0, 2), bits = bytes.among(0, 13);
  const size_t expected = bytes.number(2), left = bytes.left();
  const uint8_t* rest = bytes.rest();
  const std::string out = kind == 0   ? sparsedet::unpack_tiff_lzw(rest, left, expected)
                          : kind == 1 ? sparsedet::unpack_gif_lzw(rest, left, expected, bits)
                                      : sparsedet::unpack_packbits(rest, left, expected);
  if (out.size() > expected) std::abort();
  return 0;
}
