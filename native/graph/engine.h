// The whole inference path: a network input in, detections out.
//
// An engine is given its operations one by one (from Python's layer table, batch norm folded),
// packs their weights at once, and plans one activation arena for a network input size. One run at a
// time; the caller guards that.
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

enum class Part { backbone, rpn, roi };

// An operation by the names of its tensors; its output bears its own name. "input", "rois" and
// "pooled" (the mean of the last residual block over the region) are sources without an operation.
struct OpSpec {
  std::string name, source, residual;  // residual: "" for none
  Part part;
  bool is_pool;
  int in_channels, out_channels, kernel, stride, padding_before, padding_after;
  bool relu;
  bool output;      // its values leave the network: always float32
  float range = 0;  // int8: the largest magnitude of its output that is kept apart
};

// How a convolution is run. Dense keeps its zeros (and is faster where there are few);
// Winograd is for 3x3 convolutions of stride 1 over regions, in float32.
enum class Method { sparse, dense, winograd };

struct EngineParams {
  float pixel_mean[3], pixel_std[3];
  RoiParams roi;
  BoxParams boxes;
  // Run the linear part of the layers that read "rois" once on the map and RoIAlign their output
  // instead of their input: the same up to rounding, as both are linear.
  bool hoist;
  // Of activations and weights; the mean over a region and the predictors that read it are
  // float32 in any case, with int8 the network input and the stem, too. So are all sums but int8's, which
  // are exact.
  Type precision;
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

// What was packed for an operation before, in this process or another (Engine::packed).
struct PackedOp {
  Method method;
  int64_t nonzero;
  uint64_t checksum;
  std::vector<std::span<const std::byte>> parts;  // one after the other, multiples of 64 bytes
};

class Engine {
 public:
  Engine(const Kernels& kernels, int threads, bool pin, const EngineParams& params);
  // Another engine with the packed weights of `other`, which are then not added to any more, and
  // threads and activations of its own: both may run at the same time.
  Engine(const Engine& other, int threads);

  // Weights [out][in][k][k] and bias [out]; null for pooling. In table order. Without a method
  // a cost model chooses one, from the shape and the zeros alone.
  void add(const OpSpec& spec, const Weights& weights, const float* bias,
           std::optional<Method> method = {});
  // The same from what was packed before (one part), 64-byte aligned and alive as long as `owner`.
  // Throws std::invalid_argument if it is damaged or does not fit; then nothing is added.
  void add_packed(const OpSpec& spec, const PackedOp& packed, std::shared_ptr<const void> owner,
                  const float* bias);
  // Of an operation with weights, for add_packed of an engine with the same kernels and parameters.
  PackedOp packed(const std::string& name);

  // Plan for a network input size; does nothing if it is the planned one already.
  void plan(int height, int width);

  // BGR network input [height][width][3] of the planned size, 0..255.
  template <class T>
  std::vector<Detection> run(const T* network_input);

  // ---- the stages of `run`, for tests: on plain row-major arrays
  template <class T>
  std::vector<float> features(const T* network_input);  // [channels][Hf][Wf]
  void rpn(const float* features, std::vector<float>& logits, std::vector<float>& deltas);
  void regions(const float* features, const std::vector<Box>& boxes, std::vector<float>& logits,
               std::vector<float>& deltas);
  // RoIAlign of the features as the regions' layers would read it without hoisting:
  // [boxes][channels][bins][bins].
  std::vector<float> roi_features(const float* features, const std::vector<Box>& boxes);
  // One operation on its own: x and residual [batch][channels][h][w]; batch 1 for map operations.
  // The shape of x comes in and that of the result goes out. Throws std::invalid_argument for one
  // that does not fit.
  using Shape = std::array<int, 4>;
  std::vector<float> run_op(const std::string& name, const float* x, Shape& shape,
                            const float* residual, const Shape& residual_shape);

  const EngineParams& params() const { return params_; }
  const Kernels& kernels() const { return kernels_; }
  int threads() const { return pool_.size(); }
  int feature_height() const { return feature_map().height; }
  int feature_width() const { return feature_map().width; }
  int feature_channels() const { return feature_map().channels; }
  int input_height() const { return input_height_; }
  int input_width() const { return input_width_; }
  size_t arena_bytes() const { return arena_.floats() * sizeof(float); }
  // What the engine holds: packed weights with what belongs to them, and activations planned and
  // in work.
  size_t weight_bytes() const;
  size_t activation_bytes() const { return arena_bytes() + scratch_.bytes(); }
  int64_t nonzero_weights() const;
  // What the plan says of every convolution, in order.
  struct Planned {
    std::string name;
    Method method;
    double share;  // of the peak that the cost model expects of its multiplications
    int64_t nonzero;
    double words;  // share of its weight words that hold a weight
    bool hoisted, can_winograd;
  };
  std::vector<Planned> planned() const;
  // (operation, seconds) of the last run, in order.
  const std::vector<std::pair<std::string, double>>& timings() const { return timings_; }

 private:
  struct Op {
    OpSpec spec;
    Method method = Method::sparse;
    PackedConv conv;
    Winograd winograd;
    int64_t nonzero = 0;  // weights
    double words = 0;     // share of words that hold a weight
    bool hoisted = false;
    std::vector<float> roi_bias;  // of a hoisted operation: added after RoIAlign
    Type type = Type::float32;    // of its output
    Quantised q;                  // int8: the same
  };
  // A span of the arena that one tensor occupies from operation `from` to operation `to`.
  struct Span {
    size_t offset = 0, floats = 0;
    int from = 0, to = 0;
  };

  const Op& op(const std::string& name) const;
  // An operation without weights, with its bias if that is added after RoIAlign, and its shape.
  std::pair<Op, ConvShape> begin(const OpSpec& spec, const float* bias) const;
  void finish(Op op);
  bool can_winograd(const OpSpec& spec, Type type) const;
  Method choose_method(const OpSpec& spec, Type type, double words) const;
  static double expected_share(Method method, Type type, double words);
  const Map& map(const std::string& name) const;
  const Regions& region_tensor(const std::string& name) const;
  const Map& feature_map() const { return map(feature_name_); }
  // Type of a tensor that the operations added so far write.
  Type type_of(const std::string& name) const;
  // Of a hoisted operation's map; int8 is what RoIAlign makes of it.
  static Type map_type(const Op& o) { return o.type == Type::int8 ? Type::float32 : o.type; }
  Quantised quantised(const std::string& name) const;
  void prepare_border(const Map& map);
  void run_maps(Part part);
  void find_boxes(std::vector<float>& logits, std::vector<float>& deltas);
  void transpose_sources();
  void run_regions(const std::vector<Box>& boxes, std::vector<float>& logits,
                   std::vector<float>& deltas);
  void load_features(const float* features);
  static void fit_letterbox(std::vector<Span*>& spans, size_t& total);

  const Kernels& kernels_;
  EngineParams params_;
  Pool pool_;
  Scratch scratch_;
  Context context_;
  Arena arena_;
  Memory weights_;
  PackScratch pack_scratch_;  // until a network input is planned
  const std::shared_ptr<std::vector<Op>> shared_ops_;
  std::vector<Op>& ops_ = *shared_ops_;
  std::string feature_name_;
  int input_height_ = 0, input_width_ = 0;
  std::vector<std::pair<std::string, Map>> maps_;
  std::vector<std::pair<std::string, Regions>> regions_;
  std::vector<std::pair<std::string, float*>> transposed_;
  float* winograd_memory_ = nullptr;
  std::vector<Map> clean_;  // maps whose border is zero now
  std::vector<std::pair<std::string, double>> timings_;
};

}  // namespace sparsedet
