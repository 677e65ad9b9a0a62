// A new algorithm NAME is a file that defines NAME_algorithm, and X(NAME) in this line:
#define SPARSEDET_ALGORITHMS(X) X(sparse) X(dense) X(rowwise) X(depthwise) X(matrix) X(winograd)

#include <stdexcept>

#include "algorithms/algorithm.h"

namespace sparsedet {

#define DECLARE(name) extern const Algorithm name##_algorithm;
#define ADDRESS(name) &name##_algorithm,
SPARSEDET_ALGORITHMS(DECLARE)

std::span<const Algorithm* const> algorithms() {
  static constexpr const Algorithm* all[] = {SPARSEDET_ALGORITHMS(ADDRESS)};
  return all;
}

const Algorithm& find_algorithm(const std::string& name) {
  for (const Algorithm* a : algorithms())
    if (name == a->name) return *a;
  throw std::invalid_argument("unknown algorithm '" + name + "'");
}

const Algorithm& choose_algorithm(const ConvProblem& problem, double element_density) {
  const Algorithm* best = nullptr;
  for (const Algorithm* a : algorithms())
    if (a->eligible(problem) &&
        (!best || a->time(problem, element_density) < best->time(problem, element_density)))
      best = a;
  if (!best) throw std::invalid_argument("no algorithm can run this operation");
  return *best;
}

double taps(const ConvProblem& problem) {
  const ConvShape& s = problem.shape;
  if (!problem.rois) return s.taps();
  const auto inside = [&](int in, int out, int kernel, int before) {  // along one axis
    int n = 0;
    for (int i = 0; i < out; i++)
      for (int k = 0; k < kernel; k++) {
        const int at = i * s.stride - before + k * s.dilation;
        n += at >= 0 && at < in;
      }
    return static_cast<double>(n);
  };
  return inside(problem.in_height, problem.out_height, s.kernel_height, s.padding_top) *
         inside(problem.in_width, problem.out_width, s.kernel_width, s.padding_left);
}

}  // namespace sparsedet
