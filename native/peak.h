// The arithmetic that this CPU can do at most, to measure everything else against.
#pragma once
#include <chrono>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace sparsedet {

// Best rate, in GFLOP/s, of all threads working at once, over `seconds`.
inline double peak_gflops(int64_t (*kernel)(const PeakArgs&), int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  };
  Pool pool(threads, true);
  std::vector<float> sinks(threads * 16);  // a cache line each
  double best = 0;
  const auto start = Clock::now();
  do {
    const auto from = Clock::now();
    std::vector<int64_t> done(threads);
    pool.parallel(threads, [&](int item, int) { done[item] = kernel({1 << 20, &sinks[item * 16]}); });
    int64_t total = 0;
    for (int64_t d : done) total += d;
    best = std::max(best, static_cast<double>(total) / since(from) / 1e9);
  } while (since(start) < seconds);
  return best;
}

}  // namespace sparsedet
