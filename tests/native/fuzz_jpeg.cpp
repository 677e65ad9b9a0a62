// libFuzzer: the check of JPEGs, and its two promises: both of its modes say the same, and what it
// cleans is clean.
#include <cstdlib>

#include "fuzz_promises.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (!promises_hold(data, size)) std::abort();
  return 0;
}
