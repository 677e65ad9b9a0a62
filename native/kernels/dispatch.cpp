#include "kernels/dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <mutex>
#include <stdexcept>

#include "kernels/list.h"
#include "kernels/self_check.h"

namespace sparsedet {

using TableOf_f32 = Float32Kernels;
using TableOf_bf16 = LowPrecisionKernels;
using TableOf_int8 = LowPrecisionKernels;
using TableOf_bf16_matrix = MatrixKernels;
using TableOf_int8_matrix = MatrixKernels;

#define DECLARE(architecture, set, table, file, features) \
  SPARSEDET_IF_##architecture(extern const TableOf_##table kernels_##set##_##table;)
SPARSEDET_KERNELS(DECLARE)

namespace {

// A line of the list: one table is given.
struct Line {
  const char* set;
  const Float32Kernels* f32 = nullptr;
  const LowPrecisionKernels *bf16 = nullptr, *int8 = nullptr;
  const MatrixKernels *bf16_matrix = nullptr, *int8_matrix = nullptr;
};

#define LINE(architecture, set_, table, file, features) \
  SPARSEDET_IF_##architecture(Line{.set = #set_, .table = &kernels_##set_##_##table}, )
constexpr Line kLines[] = {SPARSEDET_KERNELS(LINE)};

// A compiled instruction set.
struct Set {
  Kernels kernels;
  bool supported, bf16_checked, int8_checked;
};

// Tables that failed their check, as "avx512 bf16"; changed and read under the lock.
struct Failures {
  std::mutex lock;
  std::vector<std::string> names;
};
Failures& failures() {
  static Failures all;
  return all;
}

void report_failure(const char* set, const char* table) {
  std::string name = set;
  name += ' ';
  name += table;
  Failures& all = failures();
  if (std::find(all.names.begin(), all.names.end(), name) == all.names.end())
    all.names.push_back(name);
}

// Takes the table of a line where there is none yet and this CPU supports it; says whether it does.
template <class Table>
bool take(const Table* table, const Table*& to) {
  const bool supported = table && table->supported();
  if (supported && !to) to = table;
  return supported;
}

bool take_table(const Line& line, Kernels& kernels) {
  const Float32Kernels* float32 = nullptr;
  const bool supported =
      take(line.f32, float32) || take(line.bf16, kernels.bf16) || take(line.int8, kernels.int8) ||
      take(line.bf16_matrix, kernels.bf16_matrix) || take(line.int8_matrix, kernels.int8_matrix);
  if (!float32) return supported;
  if (!check_float32(*float32)) {
    const std::lock_guard guard(failures().lock);
    report_failure(line.set, "f32");
    return false;
  }
  static_cast<Float32Kernels&>(kernels) = *float32;
  return true;
}

// first: the first line of the set.
Set make_set(const Line* first) {
  Set set{};
  set.kernels.isa = first->set;
  const auto take_tables = [&](const Line*& line) {  // all of the set that begins there
    bool float32 = false;
    for (const char* name = line->set; line < std::end(kLines) && !std::strcmp(line->set, name);
         line++) {
      set.supported |= take_table(*line, set.kernels);
      float32 |= line->f32 != nullptr;
    }
    return float32;
  };
  const Line* line = first;
  if (!take_tables(line)) {
    const bool own = set.supported;
    while (!take_tables(line)) {
    }
    set.supported = own;
  }
  set.supported &= set.kernels.supported != nullptr;  // it has a float32 table
  return set;
}

// All of them, the best first. Their tables do not change, but for those that fail their check.
std::vector<Set>& sets() {
  static std::vector<Set> all = [] {
    std::vector<Set> made;
    for (const Line& line : kLines)
      if (made.empty() || std::strcmp(made.back().kernels.isa, line.set) != 0)
        made.push_back(make_set(&line));
    return made;
  }();
  return all;
}

template <class Table>
void drop_if_wrong(const Set& set, const char* name, const Table*& table,
                   bool (*check)(const Table&)) {
  if (!table || check(*table)) return;
  table = nullptr;
  report_failure(set.kernels.isa, name);
}

// Before anything runs in a precision, its kernels are checked, once a process.
void check_precision(const Kernels& kernels, bool int8) {
  std::vector<Set>& all = sets();  // before the lock, which making them may take
  const std::lock_guard guard(failures().lock);
  for (Set& set : all) {
    bool& checked = int8 ? set.int8_checked : set.bf16_checked;
    if (&set.kernels != &kernels || checked) continue;
    checked = true;
    if (int8) {
      drop_if_wrong(set, "int8", set.kernels.int8, check_int8);
      drop_if_wrong(set, "int8_matrix", set.kernels.int8_matrix, check_int8);
    } else {
      drop_if_wrong(set, "bf16", set.kernels.bf16, check_bfloat16);
      drop_if_wrong(set, "bf16_matrix", set.kernels.bf16_matrix, check_bfloat16);
    }
  }
}

}  // namespace

std::vector<std::string> failed_kernels() {
  const std::lock_guard guard(failures().lock);
  return failures().names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Set& set : sets())
    if (set.supported) names.push_back(set.kernels.isa);
  return names;
}

const Kernels& choose_kernels(std::string isa) {
  if (isa.empty()) {
    const char* forced = std::getenv("SPARSEDET_ISA");
    isa = forced ? forced : "";
  }
  std::string known;
  for (const Set& set : sets()) {
    if (isa.empty() ? set.supported : isa == set.kernels.isa) {
      if (set.supported) return set.kernels;
      throw std::invalid_argument("instruction set '" + isa + "' is not available on this CPU");
    }
    known += (known.empty() ? "" : ", ") + std::string(set.kernels.isa);
  }
  throw std::invalid_argument("unknown instruction set '" + isa + "'; compiled in: " + known);
}

std::string cpu_vendor() {
#if defined(__x86_64__)
  unsigned leaf, name[3];
  if (__get_cpuid(0, &leaf, &name[0], &name[2], &name[1])) {
    char text[sizeof name];  // EBX, EDX, ECX
    std::memcpy(text, name, sizeof name);
    return {text, sizeof name};
  }
#endif
  return "";
}

bool has_bfloat16(const Kernels& kernels) {
  check_precision(kernels, false);
  return kernels.bf16;
}

bool has_int8(const Kernels& kernels) {
  check_precision(kernels, true);
  return kernels.int8;
}

}  // namespace sparsedet
