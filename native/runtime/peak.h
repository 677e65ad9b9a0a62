// The peak arithmetic rate of this CPU: the reference for every measured rate.
#pragma once
#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/threads.h"

namespace sparsedet {

// Rate of `threads` threads at once, in GFLOP/s: the median of short bursts during `seconds`. Not
// the best burst, because the measurements that are compared with it run longer than the CPU's best
// moment, and are medians too.
inline double peak_gflops(int64_t (*kernel)(const PeakArgs&), int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  };
  Pool pool(threads, true);
  std::vector<float> sinks(threads * 16);  // one cache line for each thread
  std::vector<double> rates;
  const auto start = Clock::now();
  do {
    const auto from = Clock::now();
    std::vector<int64_t> done(threads);
    pool.parallel(threads,
                  [&](int item, int) { done[item] = kernel({1 << 20, &sinks[item * 16]}); });
    int64_t total = 0;
    for (int64_t d : done)
      total += d;
    rates.push_back(static_cast<double>(total) / since(from) / 1e9);
  } while (since(start) < seconds);
  const auto middle = rates.begin() + rates.size() / 2;
  std::nth_element(rates.begin(), middle, rates.end());
  return *middle;
}

}  // namespace sparsedet
