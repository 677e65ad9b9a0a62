// The whole inference path: from a network input to detections.
//
// The caller adds the operations one by one, in the order of Python's layer table and with batch
// norm folded. The engine packs their weights at once and plans one activation arena for each
// network input size. The caller must not start two runs at the same time.
#pragma once
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ops/boxes.h"
#include "ops/layers.h"
#include "runtime/memory.h"

namespace sparsedet {

enum class Component { backbone, rpn, roi };

// An operation of the network; its output has its own name. "input", "rois" (the backbone's output
// after RoIAlign) and "pooled" (the RoI head's last feature map, averaged) are sources that no
// operation writes.
struct OpSpec {
  std::string name, source, residual;  // residual: "" for none
  Component component;
  bool is_pool;
  int in_channels, out_channels, kernel, stride, padding_before, padding_after;
  bool relu;
  bool output;                   // an output of the network, always float32
  float clipping_threshold = 0;  // int8: of the output; larger magnitudes saturate
};

// How a convolution runs. `dense` keeps the zeros, which is faster where there are few of them;
// `winograd` is for 3x3 convolutions of stride 1 on RoIs, in float32.
enum class Algorithm { sparse, dense, winograd };

struct EngineParams {
  float pixel_mean[3], pixel_std[3];
  RoiParams roi;
  BoxParams boxes;
  // Run the linear part of the layers that read "rois" once on the feature map, and RoIAlign its
  // output instead of its input: the same result up to rounding, because RoIAlign is linear, too.
  bool hoist;
  // Of activations and weights. The mean over a RoI and the predictors that read it are always
  // float32; with int8 so are the network input and the stem. Sums are float32, of int8 exact
  // int32.
  ElementType precision;
};

// Memory for activations.
class Arena {
 public:
  void reserve(size_t floats);
  float* data() const { return reinterpret_cast<float*>(pages_.get()); }
  size_t floats() const { return floats_; }

 private:
  std::shared_ptr<std::byte> pages_;
  size_t floats_ = 0;
};

// The packed weights of an operation, from Engine::packed of this process or another one.
struct PackedOp {
  Algorithm algorithm;
  int64_t nonzero;
  uint64_t checksum;
  std::vector<std::span<const std::byte>> spans;  // consecutive; lengths are multiples of 64 bytes
};

class Engine {
 public:
  Engine(const Kernels& kernels, int threads, bool pin, const EngineParams& params);
  // Shares the packed weights of `other`, but has its own threads and activations: both may run at
  // the same time. Call no add() on `other` afterwards.
  Engine(const Engine& other, int threads);

  // Adds an operation, in the order of the layer table. Weights [out][in][k][k] and bias [out];
  // null for pooling. Default algorithm: the choice of a cost model, from shape and zeros only.
  void add(const OpSpec& spec, const Weights& weights, const float* bias,
           std::optional<Algorithm> algorithm = {});
  // The same with packed weights: one span, 64-byte aligned, alive as long as `owner`.
  // Throws std::invalid_argument, and adds nothing, if they are damaged or do not fit.
  void add_packed(const OpSpec& spec, const PackedOp& packed, std::shared_ptr<const void> owner,
                  const float* bias);
  // Packed weights of an operation, for add_packed of an engine with equal kernels and parameters.
  PackedOp packed(const std::string& name);

  // Plans the activations for a network input size; does nothing if it is planned already.
  void plan_memory(int height, int width);

  // network_input: BGR [height][width][3] of the planned size, 0..255.
  template <class T>
  std::vector<Detection> run(const T* network_input);

  // ---- the stages of `run`, for tests and calibration: plain row-major arrays
  template <class T>
  std::vector<float> features(const T* network_input);  // [channels][Hf][Wf]
  void rpn(const float* features, std::vector<float>& logits, std::vector<float>& deltas);
  void roi_head(const float* features, const std::vector<Box>& rois, std::vector<float>& logits,
                std::vector<float>& deltas);
  // RoIAlign of the features, as the RoI head reads it without hoisting:
  // [rois][channels][bins][bins].
  std::vector<float> roi_features(const float* features, const std::vector<Box>& rois);
  // Runs one operation: x and residual [batch][channels][h][w]; batch 1 outside the RoI head.
  // shape: of x, then of the result. Throws std::invalid_argument if a shape does not fit.
  using Shape = std::array<int, 4>;
  std::vector<float> run_op(const std::string& name, const float* x, Shape& shape,
                            const float* residual, const Shape& residual_shape);

  const EngineParams& params() const { return params_; }
  const Kernels& kernels() const { return kernels_; }
  int threads() const { return pool_.size(); }
  int feature_height() const { return backbone_map().height; }
  int feature_width() const { return backbone_map().width; }
  int feature_channels() const { return backbone_map().channels; }
  int input_height() const { return input_height_; }
  int input_width() const { return input_width_; }
  size_t arena_bytes() const { return arena_.floats() * sizeof(float); }
  // Memory in bytes: packed weights with biases; planned activations and scratch memory.
  size_t weight_bytes() const;
  size_t activation_bytes() const { return arena_bytes() + scratch_.bytes(); }
  int64_t nonzero_weights() const;
  // How each convolution runs, in order.
  struct PlannedOp {
    std::string name;
    Algorithm algorithm;
    double fraction_of_peak;  // rate that the cost model expects, 0..1
    int64_t nonzero;
    double element_density;  // fraction of weight elements that are not zero
    bool hoisted, can_winograd;
  };
  std::vector<PlannedOp> planned_ops() const;
  // (operation, seconds) of the last run, in order of execution.
  const std::vector<std::pair<std::string, double>>& timings() const { return timings_; }

 private:
  struct Op {
    OpSpec spec;
    Algorithm algorithm = Algorithm::sparse;
    PackedConv conv;
    Winograd winograd;
    int64_t nonzero = 0;         // weights
    double element_density = 0;  // fraction of weight elements that are not zero
    bool hoisted = false;
    std::vector<float> roi_bias;  // hoisted operations: bias that is added after RoIAlign
    ElementType type = ElementType::float32;  // of the output
    Quantization quantization;                // int8: of the output
  };
  // The part of the arena that a tensor occupies from operation `from` to operation `to`.
  struct Span {
    size_t offset = 0, floats = 0;
    int from = 0, to = 0;
  };

  const Op& op(const std::string& name) const;
  // The operation without its weights (only with a bias that is added after RoIAlign), and its
  // shape.
  std::pair<Op, ConvShape> begin(const OpSpec& spec, const float* bias) const;
  void finish(Op op);
  bool can_winograd(const OpSpec& spec, ElementType type) const;
  Algorithm choose_algorithm(const OpSpec& spec, ElementType type, double element_density) const;
  static double expected_fraction(Algorithm algorithm, ElementType type, double element_density);
  const FeatureMap& map(const std::string& name) const;
  const Rois& rois(const std::string& name) const;
  const FeatureMap& backbone_map() const { return map(feature_name_); }
  // Type of a tensor that an added operation writes, or of a source without an operation.
  ElementType type_of(const std::string& name) const;
  // Type of a hoisted operation's feature map; RoIAlign makes int8 of it later.
  static ElementType map_type(const Op& o) {
    return o.type == ElementType::int8 ? ElementType::float32 : o.type;
  }
  Quantization quantization(const std::string& name) const;
  void prepare_border(const FeatureMap& map);
  void run_component(Component component);
  void read_rpn_outputs(std::vector<float>& logits, std::vector<float>& deltas);
  void transpose_sources();
  void run_rois(const std::vector<Box>& boxes, std::vector<float>& logits,
                std::vector<float>& deltas);
  void load_features(const float* features);
  static void assign_offsets(std::vector<Span*>& spans, size_t& total);

  const Kernels& kernels_;
  EngineParams params_;
  Pool pool_;
  Scratch scratch_;
  Context context_;
  Arena arena_;
  Memory weights_;
  PackScratch pack_scratch_;  // released when a network input is planned
  const std::shared_ptr<std::vector<Op>> shared_ops_;
  std::vector<Op>& ops_ = *shared_ops_;
  std::string feature_name_;
  int input_height_ = 0, input_width_ = 0;
  std::vector<std::pair<std::string, FeatureMap>> maps_;
  std::vector<std::pair<std::string, Rois>> rois_;
  std::vector<std::pair<std::string, float*>> transposed_;
  float* winograd_memory_ = nullptr;
  std::vector<FeatureMap> clean_;  // feature maps whose border is zero now
  std::vector<std::pair<std::string, double>> timings_;
};

}  // namespace sparsedet
