// The memory plan: where each buffer lies in one arena.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "runtime/memory.h"

namespace sparsedet {

// Memory that is in use from time `from` to time `to`, both included.
struct Buffer {
  size_t floats = 0;
  int from = 0, to = 0;
  size_t offset = 0;  // in the arena, in floats; a multiple of 16
};

// Sets the offsets. Buffers that live at the same time do not overlap. Returns the floats of the
// arena.
size_t place(std::vector<Buffer*> buffers);

// Memory for activations.
class Arena {
 public:
  void reserve(size_t floats);
  float* data() const { return reinterpret_cast<float*>(pages_.get()); }
  size_t floats() const { return floats_; }

 private:
  std::shared_ptr<std::byte> pages_;
  size_t floats_ = 0;
};

}  // namespace sparsedet
