// Python's global lock around work in C++.
#pragma once
#include <nanobind/nanobind.h>

#include <chrono>
#include <thread>

namespace sparsedet {

// While the interpreter exits, a daemon thread that asks for Python's global lock is ended by
// unwinding its stack, but no frame of the bindings can be unwound: the program would abort. Such a
// thread waits for the end of the process instead, as Python does itself from 3.14 on. Calls of
// Python that may give up the lock and take it again therefore run in here.
template <class Call>
void or_wait_for_exit(const Call& call) {
  try {
    call();
  } catch (...) {
    while (true)
      std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

// Works without Python's global lock as long as it lives.
class WithoutLock {
 public:
  WithoutLock() : thread_(PyEval_SaveThread()) {}
  ~WithoutLock() noexcept(false) {
    or_wait_for_exit([&] { PyEval_RestoreThread(thread_); });
  }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;

 private:
  PyThreadState* const thread_;
};

}  // namespace sparsedet
