// Layers and a small network in bfloat16 and int8 by one instruction set, against the scalar kernels.
#include "test_low_precision.h"

#include <algorithm>

#include "kernels/dispatch.h"
#include "low_precision.h"
#include "report.h"

namespace {

using namespace sparsedet;

bool layer_case(const Kernels& kernels, const LayerCase& c, Zeros zeros) {
  const Layer layer(c, zeros);
  const auto run = [&](const Kernels& of, const char* algorithm) {
    const auto packed = find_algorithm(algorithm).pack(
        of, layer.problem(), Weights(layer.weights().data()), layer.bias().data(), {});
    return layer.run(of, *packed);
  };
  const auto expected = run(choose_kernels("scalar"), "sparse");
  return *std::max_element(expected.begin(), expected.end()) > 0 &&
         run(kernels, "sparse") == expected && run(kernels, "dense") == expected;
}

bool same_nonzeros(const Kernels& kernels, const LayerCase& c) {
  const Layer layer(c, Zeros::blocks);
  const auto count = [&](const Kernels& of) {
    return find_algorithm("sparse")
        .pack(of, layer.problem(), Weights(layer.weights().data()), layer.bias().data(), {})
        ->nonzero_elements();
  };
  return count(kernels) == count(choose_kernels("scalar"));
}

}  // namespace

bool test_low_precision(const Kernels& kernels, bool int8) {
  const std::string name = kernels.isa + std::string(int8 ? " int8" : " bf16");
  Report layers(name + " layers"), network(name + " network");
  for (const LayerCase& c : layer_cases()) {
    if ((c.in == ElementType::int8) != int8) continue;
    for (const Zeros zeros : {Zeros::none, Zeros::thirds, Zeros::blocks})
      layers.check(layer_case(kernels, c, zeros), c.text());
    layers.check(same_nonzeros(kernels, c), c.text() + ", nonzero elements");
  }
  for (const Zeros zeros : {Zeros::none, Zeros::thirds, Zeros::blocks})
    network.check(equal(run_network(kernels, int8, zeros),
                        run_network(choose_kernels("scalar"), int8, zeros)),
                  "zeros " + std::to_string(static_cast<int>(zeros)));
  const bool good = layers.end();
  return network.end() && good;
}
