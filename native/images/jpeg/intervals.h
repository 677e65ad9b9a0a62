// The restart intervals of a scan: each is read on its own, and damage in one does not reach the
// next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "images/jpeg/decode.h"
#include "images/jpeg/stuffing.h"
#include "images/jpeg_check.h"

namespace sparsedet::jpeg {

// What a check has found so far, and the clean copy.
class Findings {
 public:
  Findings(JpegCheck& result, bool copy) : copy(copy), out(result.clean), result_(result) {}

  const bool copy;        // entropy-coded data too, not the headers alone
  bool hopeless = false;  // nothing can be kept
  std::string& out;

  // The first damage is kept.
  void note(const std::string& damage) {
    if (result_.damage.empty()) result_.damage = damage;
  }
  void odd(bool found) { result_.odd |= found; }

 private:
  JpegCheck& result_;
};

class Intervals {
 public:
  Intervals(const uint8_t* data, size_t size, Findings& findings)
      : coded_(data, size), findings_(findings) {}

  // The data of a scan, from `at` on. Returns where the next marker is.
  //   header: where in the copy the scan starts
  //   interval: MCUs between restart markers, 0: there are none
  //   only: it is the first scan, so damage at its start leaves nothing
  // Throws Damage if nothing that follows is of use.
  size_t read(const Frame& frame, const Scan& scan, size_t header, size_t at, uint32_t interval,
              bool only);
  // Does the data that was read last end as an encoder ends it: filled up with ones to a whole
  // byte? Zeros after a cut are codes as well, but end in zeros.
  bool filled() const { return filled_; }

 private:
  void one(uint64_t end);
  void drop_refinement();
  void damaged(uint64_t mcu, const std::string& what);
  void fill(uint64_t end, size_t bits);

  EntropyCoded coded_;
  Findings& findings_;

  const Frame* frame_ = nullptr;
  const Scan* scan_ = nullptr;
  size_t header_ = 0, at_ = 0;
  bool only_ = false, filled_ = false;
  Progress progress_;
};

}  // namespace sparsedet::jpeg
