// Counts the cases of a group, and prints the first that fail and a line at the end.
#pragma once
#include <cstdio>
#include <string>
#include <utility>

class Report {
 public:
  explicit Report(std::string name) : name_(std::move(name)) {}
  void check(bool good, const std::string& what) {
    cases_++;
    if (!good && failed_++ < 5) std::printf("FAILED %s: %s\n", name_.c_str(), what.c_str());
  }
  bool end() const {
    std::printf("%-4s %s: %d cases, %d failed\n", failed_ ? "BAD" : "ok", name_.c_str(), cases_,
                failed_);
    return !failed_;
  }

 private:
  std::string name_;
  int cases_ = 0, failed_ = 0;
};
