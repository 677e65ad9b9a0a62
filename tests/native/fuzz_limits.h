// The most time of the CPU that an input of a native fuzzer may take. libFuzzer's own limit is by
// the clock: others may use the CPU, or the process be stopped.
#pragma once
#include <signal.h>
#include <sys/time.h>

#include <cstdio>
#include <cstdlib>

inline constexpr int kFuzzSeconds = 5;

class FuzzTimeLimit {
 public:
  FuzzTimeLimit() {
    static const bool installed = [] {
      return signal(SIGPROF, [](int) {
               std::fputs("TooSlow: an input takes more than 5 s of the CPU\n", stderr);
               std::abort();
             }) != SIG_ERR;
    }();
    if (installed) set(kFuzzSeconds);
  }
  ~FuzzTimeLimit() { set(0); }
  FuzzTimeLimit(const FuzzTimeLimit&) = delete;
  FuzzTimeLimit& operator=(const FuzzTimeLimit&) = delete;

 private:
  static void set(int seconds) {
    const itimerval timer{{0, 0}, {seconds, 0}};
    setitimer(ITIMER_PROF, &timer, nullptr);
  }
};
