#include "algorithms/weights.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <stdexcept>

namespace sparsedet {

WeightRows::WeightRows(const Weights& weights, int rows, size_t length, Packer packer)
    : weights_(weights), length_(length) {
  if (weights.dense) return;
  const size_t bits = rows * length;
  bool good = weights.mask.size() == (bits + 7) / 8;
  first_.resize(rows + 1);
  if (good) {
    packer.parallel(rows, [&](int row, int) {
      each_run(row, [&](size_t, uint64_t bits) { first_[row + 1] += std::popcount(bits); });
    });
    std::partial_sum(first_.begin(), first_.end(), first_.begin());
    good =
        first_.back() == weights.count && (bits % 8 == 0 || weights.mask.back() >> bits % 8 == 0);
  }
  if (!good) throw std::invalid_argument("mask and values disagree");
}

int64_t Weights::nonzero(size_t size, Pool& pool) const {
  constexpr size_t kPiece = 1 << 16;
  const size_t end = dense ? size : count;
  std::atomic<int64_t> all{0};
  pool.parallel(static_cast<int>((end + kPiece - 1) / kPiece), [&](int piece, int) {
    const size_t from = piece * kPiece, n = std::min(kPiece, end - from);
    int nonzero = 0;
    if (dense || !half) {
      const float* w = (dense ? dense : static_cast<const float*>(values)) + from;
      for (size_t i = 0; i < n; i++)
        nonzero += w[i] != 0;
    } else {
      const uint16_t* w = static_cast<const uint16_t*>(values) + from;
      for (size_t i = 0; i < n; i++)
        nonzero += (w[i] & 0x7fff) != 0;
    }
    all += nonzero;
  });
  return all;
}

}  // namespace sparsedet
