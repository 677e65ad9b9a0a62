// The engine for Python. Arrays are copied in and out; the engine works without Python's global
// lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "bindings/bindings.h"
#include "bindings/lock.h"
#include "graph/executor.h"
#include "kernels/dispatch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace sparsedet {

namespace {

template <class T, class Shape>
using Array = nb::ndarray<const T, Shape, nb::c_contig, nb::device::cpu>;
using FloatArray = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Bias = std::optional<Array<float, nb::shape<-1>>>;

// A numpy array that owns a copy of `values`.
nb::ndarray<nb::numpy, float> to_numpy(const std::vector<float>& values,
                                       const std::vector<size_t>& shape) {
  auto* data = new float[values.size() + 1];
  std::copy(values.begin(), values.end(), data);
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return nb::ndarray<nb::numpy, float>(data, shape.size(), shape.data(), owner);
}

Tensor to_tensor(const FloatArray& array) {
  Tensor tensor;
  for (size_t i = 0; i < array.ndim(); i++)
    tensor.shape.push_back(array.shape(i));
  tensor.data.assign(array.data(), array.data() + array.size());
  return tensor;
}

std::optional<std::vector<float>> to_vector(const Bias& bias) {
  if (!bias) return {};
  return std::vector<float>(bias->data(), bias->data() + bias->size());
}

// An executor with the kernels of an instruction set; see executor.h.
class NativeEngine {
 public:
  NativeEngine(const std::string& isa, int threads, bool pin, const std::string& precision,
               std::pair<int, int> input_size)
      : executor_(choose(isa, precision), threads, pin, input_size.first, input_size.second) {}

  NativeEngine(const NativeEngine& other, int threads) : executor_(other.executor_, threads) {}

  // weight: an array [out, in / groups, kh, kw], the pair (mask, values) of the model file, or None;
  // of a group norm or affine operation, the scales [channels].
  void add(nb::dict operation, nb::object weight, const Bias& bias, const std::string& algorithm,
           const std::string& weights_of) {
    const OperationSpec spec = to_spec(operation);
    const auto offset = to_vector(bias);
    const auto add = [&](const Weights* weights) {
      const WithoutLock unlocked;
      executor_.add(spec, weights, offset ? &*offset : nullptr, algorithm, weights_of);
    };
    if (weight.is_none()) return add(nullptr);
    if (std::holds_alternative<GroupNormAttributes>(spec.attributes) ||
        std::holds_alternative<AffineAttributes>(spec.attributes)) {
      Array<float, nb::ndim<1>> scales;
      if (!nb::try_cast(weight, scales, false))
        throw std::invalid_argument(spec.name + ": weight is no float32 array [channels]");
      Weights weights(scales.data());
      weights.count = scales.size();
      return add(&weights);
    }
    const auto* conv = std::get_if<ConvolutionAttributes>(&spec.attributes);
    if (!conv) throw std::invalid_argument(spec.name + ": has no weights");
    if (nb::isinstance<nb::tuple>(weight)) {
      std::pair<Array<uint8_t, nb::ndim<1>>,
                nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>>
          pair;
      if (!nb::try_cast(weight, pair))
        throw std::invalid_argument(spec.name + ": weight is no pair of a mask and values");
      const auto& [mask, values] = pair;
      const bool half = values.dtype() == nb::dlpack::dtype{2, 16, 1};
      if (!half && values.dtype() != nb::dtype<float>())
        throw std::invalid_argument(spec.name + ": values are neither float32 nor float16");
      const Weights weights{{mask.data(), mask.size()}, values.data(), values.size(), half};
      return add(&weights);
    }
    Array<float, nb::shape<-1, -1, -1, -1>> dense;
    if (!nb::try_cast(weight, dense, false))
      throw std::invalid_argument(spec.name +
                                  ": weight is no float32 array [out][in / groups][kh][kw]");
    const int shape[] = {conv->out_channels, conv->in_channels / conv->groups, conv->kernel[0],
                         conv->kernel[1]};
    for (int i = 0; i < 4; i++)
      if (dense.shape(i) != size_t(shape[i]))
        throw std::invalid_argument(spec.name + ": weight has the wrong shape");
    const Weights weights(dense.data());
    add(&weights);
  }

  // packed: the weights from `packed` in one array, which is kept and not copied.
  void add_packed(nb::dict operation, nb::object array, const Bias& bias,
                  const std::string& algorithm, int64_t nonzero, uint64_t checksum) {
    const OperationSpec spec = to_spec(operation);
    Array<uint8_t, nb::ndim<1>> packed;
    if (!nb::try_cast(array, packed)) throw nb::type_error("packed weights are no array of bytes");
    if (reinterpret_cast<uintptr_t>(packed.data()) % 64)
      throw std::invalid_argument(spec.name + ": packed weights are not 64-byte aligned");
    const auto release = [packed, kept = array.release().ptr()](const void*) mutable {
      nb::gil_scoped_acquire acquire;
      packed = {};                                 // `kept` has the memory
      or_wait_for_exit([&] { Py_DECREF(kept); });  // unmaps a file, without the lock
    };
    const std::shared_ptr<const void> owner(packed.data(), release);
    const PackedWeights weights{
        algorithm,
        nonzero,
        checksum,
        {{reinterpret_cast<const std::byte*>(packed.data()), packed.size()}}};
    const auto offset = to_vector(bias);
    const WithoutLock unlocked;  // it reads all of a mapped file
    executor_.add_packed(spec, weights, owner, offset ? &*offset : nullptr);
  }

  // (algorithm, number of nonzero weights, checksum, consecutive pieces of the packed weights)
  nb::tuple packed(const std::string& name) {
    const PackedWeights p = [&] {
      const WithoutLock unlocked;
      return executor_.packed(name);
    }();
    nb::list pieces;
    for (const auto& span : p.spans)
      pieces.append(nb::bytes(span.data(), span.size()));
    return nb::make_tuple(p.algorithm, p.nonzero, p.checksum, pieces);
  }

  template <class T>
  nb::ndarray<nb::numpy, float> run(Array<T, nb::shape<-1, -1, 3>> network_input,
                                    std::optional<std::pair<int, int>> content, bool checked) {
    const auto height = static_cast<int>(network_input.shape(0));
    const auto width = static_cast<int>(network_input.shape(1));
    std::vector<float> rows;
    {
      const WithoutLock unlocked;
      for (const Detection& d : executor_.run(network_input.data(), height, width,
                                              content.value_or(std::pair{height, width}), checked))
        append_row(d, height, width, rows);
    }
    return to_numpy(rows, {rows.size() / 7, 7});
  }

  nb::ndarray<nb::numpy, float> masks() const {
    const Tensor masks = executor_.masks();
    return to_numpy(masks.data, masks.shape);
  }

  nb::list run_between(const std::map<std::string, FloatArray>& given,
                       const std::vector<std::string>& wanted) {
    std::map<std::string, Tensor> tensors;
    for (const auto& [name, array] : given)
      tensors[name] = to_tensor(array);
    std::vector<Tensor> out;
    {
      const WithoutLock unlocked;
      out = executor_.run_between(tensors, wanted);
    }
    nb::list arrays;
    for (const Tensor& tensor : out)
      arrays.append(to_numpy(tensor.data, tensor.shape));
    return arrays;
  }

  nb::ndarray<nb::numpy, float> run_operation(const std::string& name,
                                              const std::vector<FloatArray>& inputs) {
    std::vector<Tensor> tensors;
    for (const FloatArray& array : inputs)
      tensors.push_back(to_tensor(array));
    const Tensor out = [&] {
      const WithoutLock unlocked;
      return executor_.run_operation(name, tensors);
    }();
    return to_numpy(out.data, out.shape);
  }

  // Of each convolution: (name, algorithm, rate that the cost model expects as a fraction of the
  // peak, nonzero weights, fraction of weight elements that are not zero, eligible algorithms)
  nb::list convolutions() const {
    nb::list out;
    for (const auto& [name, conv] : executor_.convolutions()) {
      const Algorithm& algorithm = conv->algorithm();
      const double density = conv->element_density();
      const ElementType type = conv->problem().shape.in_type;
      nb::list eligible;
      for (const Algorithm* a : algorithms())
        if (a->eligible(conv->problem())) eligible.append(a->name);
      out.append(nb::make_tuple(name, algorithm.name, algorithm.fraction_of_peak(type, density),
                                conv->nonzero(), density, eligible));
    }
    return out;
  }

  int64_t nonzero_weights() const {
    int64_t n = 0;
    for (const auto& [name, conv] : executor_.convolutions())
      n += conv->nonzero();
    return n;
  }
  void plan(int height, int width, std::optional<size_t> most) {
    const WithoutLock unlocked;
    executor_.plan(height, width, most.value_or(SIZE_MAX));
  }
  size_t copied_bytes() { return executor_.copied_bytes(); }
  size_t converted_bytes() const { return executor_.converted_bytes(); }
  bool overflowed() const { return executor_.overflowed(); }
  size_t arena_bytes() const { return executor_.arena_bytes(); }
  size_t weight_bytes() const { return executor_.weight_bytes(); }
  size_t activation_bytes() const { return executor_.activation_bytes(); }
  std::string isa() const { return executor_.kernels().isa; }
  int threads() const { return executor_.threads(); }
  const std::vector<std::pair<std::string, double>>& timings() const { return executor_.timings(); }

 private:
  static const Kernels& choose(const std::string& isa, const std::string& precision) {
    if (precision != "f32" && precision != "bf16" && precision != "int8")
      throw std::invalid_argument("unknown precision '" + precision + "'");
    const Kernels& kernels = choose_kernels(isa);
    if ((precision == "bf16" && !has_bfloat16(kernels)) ||
        (precision == "int8" && !has_int8(kernels)))
      throw std::invalid_argument("precision '" + precision + "' is not available with '" +
                                  kernels.isa + "' on this CPU");
    return kernels;
  }

  Executor executor_;
};

}  // namespace

void bind_engine(nb::module_& m) {
  nb::class_<NativeEngine>(m, "NativeEngine")
      .def(nb::init<const std::string&, int, bool, const std::string&, std::pair<int, int>>(),
           "isa"_a, "threads"_a, "pin"_a, "precision"_a, "input_size"_a)
      .def(nb::init<const NativeEngine&, int>(), "other"_a, "threads"_a)
      .def("add", &NativeEngine::add, "operation"_a, "weight"_a.none() = nb::none(),
           "bias"_a.none() = nb::none(), "algorithm"_a = "", "weights_of"_a = "")
      .def("add_packed", &NativeEngine::add_packed, "operation"_a, "packed"_a, "bias"_a.none(),
           "algorithm"_a, "nonzero"_a, "checksum"_a)
      .def("packed", &NativeEngine::packed, "name"_a)
      .def("run", &NativeEngine::run<uint8_t>, "network_input"_a, "content"_a = nb::none(),
           "checked"_a = false)
      .def("run", &NativeEngine::run<float>, "network_input"_a, "content"_a = nb::none(),
           "checked"_a = false)
      .def("masks", &NativeEngine::masks)
      .def("run_between", &NativeEngine::run_between, "given"_a, "wanted"_a)
      .def("run_operation", &NativeEngine::run_operation, "name"_a, "inputs"_a)
      .def("plan", &NativeEngine::plan, "height"_a, "width"_a, "most"_a = nb::none())
      .def_prop_ro("copied_bytes", &NativeEngine::copied_bytes)
      .def_prop_ro("converted_bytes", &NativeEngine::converted_bytes)
      .def_prop_ro("overflowed", &NativeEngine::overflowed)
      .def_prop_ro("arena_bytes", &NativeEngine::arena_bytes)
      .def_prop_ro("weight_bytes", &NativeEngine::weight_bytes)
      .def_prop_ro("activation_bytes", &NativeEngine::activation_bytes)
      .def_prop_ro("isa", &NativeEngine::isa)
      .def_prop_ro("threads", &NativeEngine::threads)
      .def_prop_ro("nonzero_weights", &NativeEngine::nonzero_weights)
      .def_prop_ro("convolutions", &NativeEngine::convolutions)
      .def_prop_ro("timings", &NativeEngine::timings);
}

}  // namespace sparsedet
