// Reads the blocks of a scan, without making coefficients of them: are all its codes good?
#pragma once

#include <cstddef>
#include <cstdint>

#include "images/jpeg/bits.h"
#include "images/jpeg/scan.h"

namespace sparsedet::jpeg {

// How far a scan is read.
struct Progress {
  uint64_t mcus = 0;
  size_t bits = 0;  // of the whole MCUs of this restart interval
};

// Up to the MCU `end`. Throws Damage; `progress` then tells how far it went.
void decode_sequential(const Scan& scan, Bits bits, uint64_t end, Progress& progress);
void decode_progressive(const Scan& scan, Bits bits, uint64_t end, Progress& progress);

}  // namespace sparsedet::jpeg
