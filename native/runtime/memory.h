// Large blocks of zeroed memory, straight from the system; on huge pages where it has them.
//
// The heap would touch memory to clear it and return it late: both cost loading time.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sparsedet {

constexpr size_t kHugePage = size_t{2} << 20;

// Returns `bytes` of zeros, aligned to a huge page. Throws std::bad_alloc.
inline std::shared_ptr<std::byte> allocate_pages(size_t bytes) {
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
#if defined(__linux__)
  void* all =
      mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) throw std::bad_alloc();
  auto* data = reinterpret_cast<std::byte*>((reinterpret_cast<size_t>(all) + kHugePage - 1) /
                                            kHugePage * kHugePage);
  madvise(data, bytes, MADV_HUGEPAGE);
  return {data, [all, bytes](std::byte*) { munmap(all, bytes + kHugePage); }};
#else
  auto* data = static_cast<std::byte*>(std::aligned_alloc(kHugePage, bytes));
  if (!data) throw std::bad_alloc();
  std::memset(data, 0, bytes);
  return {data, [](std::byte* p) { std::free(p); }};
#endif
}

// Hands out consecutive pieces of large blocks. A block lives as long as any of its pieces.
class Memory {
 public:
  // A piece of at least `bytes`, aligned to 64 bytes.
  std::shared_ptr<std::byte> allocate(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (bytes > left_) {
      left_ = bytes > kBlock ? bytes : kBlock;
      block_ = allocate_pages(left_);
      next_ = block_.get();
    }
    left_ -= bytes;
    next_ += bytes;
    return {block_, next_ - bytes};
  }

 private:
  static constexpr size_t kBlock = size_t{32} << 20;  // untouched pages are never committed
  std::shared_ptr<std::byte> block_;
  std::byte* next_ = nullptr;
  size_t left_ = 0;
};

}  // namespace sparsedet
