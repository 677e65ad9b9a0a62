// What check_jpeg promises; both fuzzers of images hold it to that.
#pragma once
#include <cstdint>

#include "images/jpeg_check.h"

inline bool promises_hold(const uint8_t* data, size_t size, uint64_t most_pixels = 1'000'000) {
  const auto checked = sparsedet::check_jpeg(data, size, most_pixels, false);
  const auto copied = sparsedet::check_jpeg(data, size, most_pixels, true);
  if (checked.damage != copied.damage || checked.odd != copied.odd) return false;
  if (copied.clean.empty()) return true;
  const auto* clean = reinterpret_cast<const uint8_t*>(copied.clean.data());
  const auto again = sparsedet::check_jpeg(clean, copied.clean.size(), most_pixels, false);
  // libjpeg takes a channel without a scan in silence.
  return (again.damage.empty() || again.damage == "a colour channel is missing") && !again.odd;
}
