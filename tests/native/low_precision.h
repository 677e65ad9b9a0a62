// Layers and a small network in bfloat16 and int8, whose results different kernels must agree in to
// the bit: operands are integers. The same case has the same operands every time.
#pragma once
#include <string>
#include <vector>

#include "algorithms/algorithm.h"
#include "graph/executor.h"

struct LayerCase {
  sparsedet::ElementType in, out;
  int in_channels, out_channels, kernel, stride, dilation;
  bool residual, rois;
  int height = 5, width = 19;
  bool shifted = false;  // int8: zero points, and an activation that is bent

  std::string text() const;
};

// Pairs of pixels as input, float32 results, strides, dilation, several blocks and chunks; on feature
// maps and on RoIs.
std::vector<LayerCase> layer_cases();

// Which weights are zero: none, two of three at random, or three of five blocks of four input channels.
enum class Zeros { none, thirds, blocks };

class Layer {
 public:
  Layer(const LayerCase& c, Zeros zeros);

  const sparsedet::ConvProblem& problem() const { return problem_; }
  const std::vector<float>& weights() const { return weights_; }
  const std::vector<float>& bias() const { return bias_; }
  // Runs the layer with the operands of its case. Throws std::runtime_error if anything is written
  // outside of the output.
  std::vector<float> run(const sparsedet::Kernels& kernels,
                         const sparsedet::PackedConvolution& conv) const;

 private:
  std::vector<float> run_on_map(sparsedet::Context& context,
                                const sparsedet::PackedConvolution& conv) const;
  std::vector<float> run_on_rois(sparsedet::Context& context,
                                 const sparsedet::PackedConvolution& conv) const;

  LayerCase case_;
  sparsedet::ConvProblem problem_;
  std::vector<float> weights_, bias_, input_, residual_;
};

// What a network gave: some of its values, and the algorithms of its convolutions.
struct NetworkRun {
  std::vector<sparsedet::Tensor> values;
  std::vector<std::string> algorithms;
};
NetworkRun run_network(const sparsedet::Kernels& kernels, bool int8, Zeros zeros);

// Whether all values have the same shapes and bits, and are not zero as a whole.
bool equal(const NetworkRun& a, const NetworkRun& b);
