// A small pool of threads. An atomic counter hands out the work items, so results must not depend
// on which thread takes an item. Kernels never see the pool. In a forked process it starts new threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace sparsedet {

// Number of forks between the process that loaded this library and this one. A forked process has
// the memory of its parent, but of its threads only the one that forked.
inline std::atomic<uint32_t> forks{0};
#if defined(__unix__) || defined(__APPLE__)
inline const int forks_are_counted = pthread_atfork(nullptr, nullptr, [] { forks++; });
#endif

class Pool {
 public:
  // The thread that calls `parallel` is worker 0. pin: worker i stays on the i-th CPU of those that
  // the creating thread may use (Linux), so that threads keep their caches. The calling thread is
  // pinned during the call only, and only if it may run on that CPU.
  explicit Pool(int threads, bool pin) : threads_(threads), pin_(pin) {
    if (pin) cpus_ = allowed_cpus();
    start();
  }

  ~Pool() {
    if (process_ == forks)
      stop();
    else
      abandon();
  }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return threads_; }

  // Whether an item made a float too large since the last call, or the calling thread did. The CPU
  // takes notes of that by itself; bfloat16 and int8 of a matrix unit and dot products do not.
  bool take_overflow() {
    note_overflow();
    return overflow_.exchange(false, std::memory_order_relaxed);
  }

  // Calls body(item, worker) once for every item in [0, count), in any order.
  void parallel(int count, const std::function<void(int, int)>& body) {
    if (threads_ == 1 || count <= 1) {
      for (int item = 0; item < count; item++)
        body(item, 0);
      return;
    }
    if (process_ != forks.load(std::memory_order_relaxed)) {
      abandon();
      start();
    }
    const Pinned pinned(*this);
    body_.store(&body, std::memory_order_relaxed);
    count_.store(count, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint64_t run = (left_.load(std::memory_order_relaxed) >> 32) + 1;
    left_.store(run << 32 | static_cast<uint32_t>(count), std::memory_order_release);
    start_.fetch_add(1, std::memory_order_release);
    start_.notify_all();
    work(0);
    // Wait until all items are done, not until all workers are: a late worker, whose CPU was busy
    // with something else, finds no item left and delays nobody.
    for (int spins = 0; done_.load(std::memory_order_acquire) < count; spins++)
      if (spins > kSpins)
        std::this_thread::yield();
      else
        relax();
  }

 private:
  static constexpr int kSpins = 20000;  // about 50 us: longer than the gap between two layers
  using Workers = std::vector<std::thread>;

  // Throws std::system_error if the system starts no more threads.
  void start() {
    process_ = forks;
    start_ = left_ = 0;
    stop_ = false;
    workers_ = std::make_unique<Workers>();
    try {
      for (int worker = 1; worker < threads_; worker++)
        workers_->emplace_back([this, worker] { loop(worker); });
    } catch (...) {
      stop();
      throw;
    }
  }

  void stop() {
    stop_ = true;
    start_.fetch_add(1);
    start_.notify_all();
    for (auto& worker : *workers_)
      worker.join();
    workers_->clear();
  }

  // The workers are threads of a parent process: there is nothing to stop here, and their handles
  // are neither joined nor destroyed.
  void abandon() { (void)workers_.release(); }

  void work(int worker) {
    uint64_t left = left_.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(left)) {
      if (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acquire)) continue;
      // body_ and count_ belong to this run until this item is done.
      const int count = count_.load(std::memory_order_relaxed);
      (*body_.load(std::memory_order_relaxed))(
          count - static_cast<int>(static_cast<uint32_t>(left)), worker);
      note_overflow();
      done_.fetch_add(1, std::memory_order_release);
      left = left_.load(std::memory_order_acquire);
    }
  }

  void note_overflow() {
    if (!std::fetestexcept(FE_OVERFLOW)) return;
    std::feclearexcept(FE_OVERFLOW);
    overflow_.store(true, std::memory_order_relaxed);
  }

  void loop(int worker) {
    if (pin_ && worker < static_cast<int>(cpus_.size())) run_on({cpus_[worker]});
    uint32_t seen = 0;
    while (true) {
      for (int spins = 0; start_.load(std::memory_order_acquire) == seen && spins < kSpins; spins++)
        relax();
      start_.wait(seen, std::memory_order_acquire);
      seen = start_.load(std::memory_order_acquire);
      if (stop_) return;
      work(worker);
    }
  }

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  // CPUs that the calling thread may use; empty where the system does not tell.
  static std::vector<int> allowed_cpus() {
    std::vector<int> cpus;
#if defined(__linux__)
    cpu_set_t set;
    if (pthread_getaffinity_np(pthread_self(), sizeof set, &set) == 0)
      for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
#endif
    return cpus;
  }

  static void run_on(const std::vector<int>& cpus) {
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int cpu : cpus)
      CPU_SET(cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#else
    (void)cpus;
#endif
  }

  // Keeps worker 0 on its CPU during the object's life.
  class Pinned {
   public:
    explicit Pinned(const Pool& pool) {
      if (!pool.pin_ || pool.cpus_.empty()) return;
      before_ = allowed_cpus();
      if (std::find(before_.begin(), before_.end(), pool.cpus_[0]) == before_.end())
        before_.clear();
      if (!before_.empty()) run_on({pool.cpus_[0]});
    }
    ~Pinned() {
      if (!before_.empty()) run_on(before_);
    }
    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;

   private:
    std::vector<int> before_;
  };

  const int threads_;
  const bool pin_;
  std::vector<int> cpus_;  // CPU of each worker, if pinned
  uint32_t process_ = 0;   // value of `forks` when the workers started
  std::unique_ptr<Workers> workers_;
  std::atomic<uint32_t> start_{0};
  std::atomic<uint64_t> left_{0};  // number of the run << 32 | items that nobody has taken
  std::atomic<int> count_{0}, done_{0};
  std::atomic<bool> stop_{false}, overflow_{false};
  std::atomic<const std::function<void(int, int)>*> body_{nullptr};
};

}  // namespace sparsedet
