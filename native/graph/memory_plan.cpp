#include "graph/memory_plan.h"

#include <algorithm>

namespace sparsedet {

// First fit, largest first.
size_t place(std::vector<Buffer*> buffers) {
  std::stable_sort(buffers.begin(), buffers.end(),
                   [](const Buffer* a, const Buffer* b) { return a->floats > b->floats; });
  size_t total = 0;
  std::vector<Buffer*> placed;  // sorted by offset
  for (Buffer* b : buffers) {
    b->floats = (b->floats + 15) / 16 * 16;
    b->offset = 0;
    for (const Buffer* other : placed)
      if (other->from <= b->to && b->from <= other->to && other->offset < b->offset + b->floats)
        b->offset = std::max(b->offset, other->offset + other->floats);
    placed.insert(
        std::upper_bound(placed.begin(), placed.end(), b,
                         [](const Buffer* a, const Buffer* b) { return a->offset < b->offset; }),
        b);
    total = std::max(total, b->offset + b->floats);
  }
  return total;
}

void Arena::reserve(size_t floats) {
  if (floats <= floats_) return;
  floats_ = 0;
  pages_.reset();  // release the old pages before allocating new ones
  pages_ = allocate_pages(floats * sizeof(float));
  floats_ = (floats * sizeof(float) + kHugePage - 1) / kHugePage * kHugePage / sizeof(float);
}

}  // namespace sparsedet
