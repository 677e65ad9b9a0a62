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

// What a core does in a cycle at present. A neighbour on the same core takes some of it: load rates
// fall first, and sparse kernels with them.
struct CycleRates {
  double loads, multiply_adds;  // vectors
};

// On the calling thread: medians of short bursts during `seconds`. A cycle is the time of an
// exclusive or that waits for the last one.
inline CycleRates cycle_rates(const Float32Kernels& kernels, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto time = [](const auto& work) {
    const auto from = Clock::now();
    const auto done = static_cast<double>(work());
    return std::chrono::duration<double>(Clock::now() - from).count() / done;
  };
  const auto median = [](std::vector<double>& values) {
    const auto middle = values.begin() + values.size() / 2;
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  };
  float sink = 0;
  std::vector<double> loads, multiply_adds;
  const auto start = Clock::now();
  do {
    const double cycle = time([] {
      constexpr int count = 1 << 15;
      uint64_t x = 1, y = 2;
      for (int i = 0; i < count; i += 8)
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
          x ^= y;
          __asm__ volatile("" : "+r"(x), "+r"(y));
        }
      return count;
    });
    loads.push_back(cycle / time([&] { return kernels.loads({1 << 11, &sink}); }));
    const int64_t operations = 2 * kernels.lanes;
    multiply_adds.push_back(cycle /
                            time([&] { return kernels.peak({1 << 12, &sink}) / operations; }));
  } while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
  return {median(loads), median(multiply_adds)};
}

}  // namespace sparsedet
