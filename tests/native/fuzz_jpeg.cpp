// libFuzzer: the check of JPEGs, and its two promises: both of its modes say the same, and what it
// cleans is clean.
#include <cstdlib>

#include "fuzz_limits.h"
#include "fuzz_promises.h"

// More pixels take longer and are no others: what is missing of them is filled block by block, in
// up to 256 scans. fuzz_images allows a million.
constexpr uint64_t kMostPixels = 1 << 14;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const FuzzTimeLimit limit;
  if (!promises_hold(data, size, kMostPixels)) std::abort();
  return 0;
}
