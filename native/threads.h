// A small pool of threads. Work is handed out by an atomic counter, so results must not
// depend on who does what; kernels never see the pool.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace sparsedet {

class Pool {
 public:
  // The calling thread is worker 0. With `pin`, worker i stays on the i-th CPU that the process
  // may use (Linux); pinned threads keep their caches.
  explicit Pool(int threads, bool pin) : threads_(threads), pin_(pin) {
    for (int worker = 1; worker < threads; worker++)
      workers_.emplace_back([this, worker] { loop(worker); });
  }

  ~Pool() {
    stop_ = true;
    start_.fetch_add(1);
    start_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return threads_; }

  // Calls body(item, worker) once for every item in [0, count), in any order.
  void parallel(int count, const std::function<void(int, int)>& body) {
    if (threads_ == 1 || count <= 1) {
      for (int item = 0; item < count; item++) body(item, 0);
      return;
    }
    body_ = &body;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    running_.store(threads_ - 1, std::memory_order_relaxed);
    start_.fetch_add(1, std::memory_order_release);
    start_.notify_all();
    work(0);
    for (int spins = 0; running_.load(std::memory_order_acquire) > 0; spins++)
      if (spins > kSpins) std::this_thread::yield();
  }

 private:
  static constexpr int kSpins = 20000;  // some 50 us: longer than the gap between two layers

  void work(int worker) {
    const auto& body = *body_;
    for (int item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < count_;)
      body(item, worker);
  }

  void loop(int worker) {
    if (pin_) pin_self(worker);
    uint32_t seen = 0;
    while (true) {
      for (int spins = 0; start_.load(std::memory_order_acquire) == seen && spins < kSpins; spins++)
        relax();
      start_.wait(seen, std::memory_order_acquire);
      seen = start_.load(std::memory_order_acquire);
      if (stop_) return;
      work(worker);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  static void pin_self(int worker) {
#if defined(__linux__)
    cpu_set_t allowed, mine;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++)
      if (CPU_ISSET(cpu, &allowed) && seen++ == worker) {
        CPU_ZERO(&mine);
        CPU_SET(cpu, &mine);
        pthread_setaffinity_np(pthread_self(), sizeof mine, &mine);
        return;
      }
#else
    (void)worker;
#endif
  }

  const int threads_;
  const bool pin_;
  std::vector<std::thread> workers_;
  std::atomic<uint32_t> start_{0};
  std::atomic<int> next_{0}, running_{0};
  std::atomic<bool> stop_{false};
  int count_ = 0;
  const std::function<void(int, int)>* body_ = nullptr;
};

}  // namespace sparsedet
