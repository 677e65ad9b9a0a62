// Runs a graph of operations.
//
// The caller adds the operations one by one, in an order in which each reads only values of earlier
// ones. The executor packs their weights at once and plans one arena for each size of the network
// input. It knows domains and shapes of values, and nothing of what a network is for.
//
// Operations on RoIs that follow each other run as one loop over blocks of RoIs. The caller must
// not start two runs at the same time.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "graph/memory_plan.h"
#include "ops/operations.h"

namespace sparsedet {

// The packed weights of a convolution, from Executor::packed of this process or another one.
struct PackedWeights {
  std::string algorithm;
  int64_t nonzero;
  uint64_t checksum;
  std::vector<std::span<const std::byte>> spans;  // consecutive; lengths are multiples of 64 bytes
};

// A value as a plain row-major array.
struct Tensor {
  std::vector<size_t> shape;
  std::vector<float> data;
};

class Executor {
 public:
  // height, width: the size of network inputs to begin with.
  Executor(const Kernels& kernels, int threads, bool pin, int height, int width);
  // Shares the packed weights of `other`, but has its own threads and activations: both may run at
  // the same time. Neither takes further operations while both exist.
  Executor(const Executor& other, int threads);

  // Adds an operation. weights, bias: of a convolution, [out][in / groups][kh][kw] and [out]; of a
  // group norm, `count` scales and offsets; bias of a RoIAlign, or null for none. algorithm: "" for the choice of the cost model. Weights of an
  // earlier convolution are shared if `weights_of` names it.
  // Throws std::invalid_argument, and adds nothing, if something does not fit.
  void add(const OperationSpec& spec, const Weights* weights, const std::vector<float>* bias,
           const std::string& algorithm, const std::string& weights_of);
  // A convolution with packed weights: one span, 64-byte aligned, alive as long as `owner`.
  void add_packed(const OperationSpec& spec, const PackedWeights& packed,
                  std::shared_ptr<const void> owner, const std::vector<float>* bias);
  // Packed weights of a convolution, for add_packed of an executor with equal kernels and
  // operations.
  PackedWeights packed(const std::string& name);

  // Plans the activations for a size of the network input; does nothing if it is planned already.
  // most: bytes that they may take. Throws std::invalid_argument before it allocates more.
  void plan(int height, int width, size_t most = SIZE_MAX);

  // image: BGR [height][width][3], 0..255. content: height and width of what is in its upper left
  // corner; boxes end there. Returns the detections that the graph ends in, or those that its last
  // operation makes masks of. checked: throws std::invalid_argument if an operation makes NaN or
  // infinity; slower.
  template <class T>
  const std::vector<Detection>& run(const T* image, int height, int width,
                                    std::pair<int, int> content, bool checked = false);

  // Whether a value of the last run was too large for float32, as far as the CPU notes it.
  bool overflowed() const { return overflowed_; }

  // The masks of the last run's detections, [detections][height][width].
  Tensor masks() const;

  // ---- for tests and calibration; not fast

  // Runs what leads from the given values to the wanted ones, at the planned size. A map is
  // [channels][height][width], RoIs [count][channels][height][width], boxes [count][4], rows
  // [count][7], masks [count][height][width], the image [height][width][3].
  std::vector<Tensor> run_between(const std::map<std::string, Tensor>& given,
                                  const std::vector<std::string>& wanted);
  // Runs one operation on maps [1][channels][height][width] or RoIs [count][...] of any size.
  Tensor run_operation(const std::string& name, const std::vector<Tensor>& inputs);

  const Kernels& kernels() const { return kernels_; }
  int threads() const { return pool_.size(); }
  // Memory in bytes: packed weights with biases; planned activations and scratch memory.
  size_t weight_bytes() const;
  // Bytes that a run copies to join maps, and bytes that its conversions read and write.
  size_t copied_bytes();
  size_t converted_bytes() const;
  size_t arena_bytes() const { return arena_.floats() * sizeof(float); }
  size_t activation_bytes() const { return arena_bytes() + scratch_.bytes(); }
  // The convolutions, by name, in order of execution.
  std::vector<std::pair<std::string, const Convolution*>> convolutions() const;
  // (operation, seconds) of the last run, in order of execution.
  const std::vector<std::pair<std::string, double>>& timings() const { return timings_; }

 private:
  struct Node {
    std::string name;
    std::vector<int> inputs;  // values; value 0 is the image, value i + 1 that of node i
    std::shared_ptr<const Operation> operation;
  };
  // Nodes [first, last) on the RoIs of one value, boxes or rows.
  struct Loop {
    int first, last, boxes;
    int in_flight;  // RoIs
  };
  // Where a value lies: in the memory of the value `root`, from a channel on.
  struct Place {
    int root, first;
  };
  // What a partial run does: nothing else is run.
  struct Part {
    std::vector<bool> needed;            // by node
    std::map<int, const Tensor*> given;  // by value
    std::map<int, Tensor*> wanted;       // by value
  };

  template <class T>
  static std::vector<T> pick(const std::vector<T>& of, const std::vector<int>& values) {
    std::vector<T> picked;
    for (int v : values)
      picked.push_back(of[v]);
    return picked;
  }

  int value_of(const std::string& name) const;
  static void check_size(int height, int width);
  const Convolution* convolution(int value) const;
  std::vector<int> begin(const OperationSpec& spec) const;
  void append(const OperationSpec& spec, const std::vector<int>& inputs,
              std::shared_ptr<const Operation> operation);

  std::vector<Loop> find_loops() const;
  std::vector<Shape> find_shapes(int height, int width) const;
  void absorb(int root, const Place& place);
  void join(int node, const std::vector<Shape>& shapes);
  void find_places(const std::vector<Shape>& shapes);
  int root_of(int value) const { return places_[value].root; }
  void lay_out(Value& value, const Needs& needs, int blocks) const;
  void lay_out(const std::vector<Shape>& shapes);
  void choose_blocks();
  std::vector<int> last_reads() const;
  int overwritten(int node, const std::vector<int>& last) const;
  void place_values(size_t most);

  std::vector<Value*> inputs_of(const Node& node);
  void overwrite(const float* data, size_t floats);
  void prepare_border(const FeatureMap& map);
  void execute(int node, int first, int count);
  void check_finite(int node, int count);
  void run_node(int node, const Part* part);
  void run_block(const Loop& loop, int first, int count, const Part* part);
  int count_of(const Loop& loop, const Part* part) const;
  void run_loop(const Loop& loop, const Part* part);
  void run_nodes(const Part* part);
  void give(Value& value, const Tensor& tensor, int first, int count);
  void take(const Value& value, int count, Tensor& out) const;

  const Kernels& kernels_;
  Pool pool_;
  Scratch scratch_;
  Context context_;
  Arena arena_;
  Memory weights_;
  PackScratch pack_scratch_;  // released when a size is planned
  const std::shared_ptr<std::vector<Node>> shared_nodes_;
  std::vector<Node>& nodes_ = *shared_nodes_;
  std::vector<Format> formats_;  // by value
  std::vector<Shape> shapes_;    // by value, at the size to begin with
  bool checked_ = false;         // a run looks for NaN and infinity
  bool overflowed_ = false;
  int height_ = 0, width_ = 0;  // of the planned network input; 0: nothing is planned
  std::vector<Value> values_;   // of the planned size, as all that follows
  std::vector<Place> places_;   // by value
  std::vector<Loop> loops_;
  std::vector<float*> prepared_, node_scratch_;  // by node
  std::vector<bool> tables_;                     // by value: collected for another domain
  std::vector<FeatureMap> clean_;                // feature maps whose border is zero now
  std::vector<std::pair<std::string, double>> timings_;
};

}  // namespace sparsedet
