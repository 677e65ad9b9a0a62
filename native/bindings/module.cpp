// The module of the Python bindings: only the files of this folder include nanobind.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "algorithms/algorithm.h"
#include "algorithms/pack.h"
#include "algorithms/pack_matrix.h"
#include "bindings/bindings.h"
#include "bindings/lock.h"
#include "kernels/dispatch.h"
#include "runtime/peak.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace sparsedet {

static ElementType type_of(const std::string& precision) {
  return precision == "int8"   ? ElementType::int8
         : precision == "bf16" ? ElementType::bfloat16
                               : ElementType::float32;
}

static void bind_cpu(nb::module_& m) {
  // For the end of a process in which threads still hold engines, as leaks that are none.
  m.def("ignore_leaks", [] { nb::set_leak_warnings(false); });
  m.def("available_isas", &available_isas);
  m.def("cpu_vendor", &cpu_vendor);
  m.def("failed_kernels", &failed_kernels);
  m.def(
      "has_bfloat16", [](const std::string& isa) { return has_bfloat16(choose_kernels(isa)); },
      "isa"_a = "");
  m.def(
      "has_int8", [](const std::string& isa) { return has_int8(choose_kernels(isa)); },
      "isa"_a = "");
  m.def(
      "peak_gflops",
      [](const std::string& isa, int threads, double seconds) {
        const WithoutLock unlocked;
        return peak_gflops(choose_kernels(isa).peak, threads, seconds);
      },
      "isa"_a, "threads"_a, "seconds"_a);
  m.def(
      "peak_gflops_int8",
      [](const std::string& isa, int threads, double seconds) {
        const WithoutLock unlocked;
        const Kernels& kernels = choose_kernels(isa);
        if (!has_int8(kernels)) return 0.0;
        return peak_gflops(kernels.int8->peak, threads, seconds);
      },
      "isa"_a, "threads"_a, "seconds"_a);
  m.def(
      "peak_gflops_bf16",
      [](const std::string& isa, int threads, double seconds) {
        const WithoutLock unlocked;
        const Kernels& kernels = choose_kernels(isa);
        if (!has_bfloat16(kernels)) return 0.0;
        return peak_gflops(kernels.bf16->peak, threads, seconds);
      },
      "isa"_a, "threads"_a, "seconds"_a);
  m.def(
      "peak_gflops_matrix",
      [](const std::string& isa, const std::string& precision, int threads, double seconds) {
        const WithoutLock unlocked;
        const Kernels& kernels = choose_kernels(isa);
        if (!(precision == "int8" ? has_int8(kernels) : has_bfloat16(kernels))) return 0.0;
        const MatrixKernels* matrix = matrix_kernels(kernels, type_of(precision));
        return matrix ? peak_gflops(matrix->peak, threads, seconds) : 0.0;
      },
      "isa"_a, "precision"_a, "threads"_a, "seconds"_a);
  m.def(
      "cycle_rates",
      [](const std::string& isa, double seconds) {
        const WithoutLock unlocked;
        const CycleRates rates = cycle_rates(choose_kernels(isa), seconds);
        return std::vector<double>{rates.loads, rates.multiply_adds};
      },
      "isa"_a, "seconds"_a);
  m.def(
      "fraction_of_peak",
      [](const std::string& algorithm, const std::string& precision, double element_density) {
        return find_algorithm(algorithm).fraction_of_peak(type_of(precision), element_density);
      },
      "algorithm"_a, "precision"_a, "element_density"_a);
  m.def(
      "choose_isa", [](const std::string& isa) { return std::string(choose_kernels(isa).isa); },
      "isa"_a = "");
}

}  // namespace sparsedet

NB_MODULE(_native, m) {
  m.doc() = "The sparse engine's core; use sparsedet.engine instead.";
  m.attr("pack_version") = sparsedet::kPackVersion;
  sparsedet::bind_cpu(m);
  sparsedet::bind_images(m);
  sparsedet::bind_engine(m);
}
