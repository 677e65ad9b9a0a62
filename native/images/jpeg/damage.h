// What ends the check of a JPEG early.
#pragma once

namespace sparsedet::jpeg {

// What was read before is whole.
struct Damage {
  const char* what;
};

// A whole file of a kind that is not read.
struct Unsupported {
  const char* what;
};

}  // namespace sparsedet::jpeg
