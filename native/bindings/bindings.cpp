// Python bindings: the only file that includes nanobind. Arrays are copied in and out; the
// interpreter lock is released while the engine works.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <optional>

#include "graph/engine.h"
#include "kernels/dispatch.h"
#include "runtime/peak.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace sparsedet {
namespace {

template <class T, class Shape>
using Array = nb::ndarray<const T, Shape, nb::c_contig, nb::device::cpu>;

// A numpy array that owns a copy of `values`.
nb::ndarray<nb::numpy, float> to_numpy(const std::vector<float>& values,
                                       std::initializer_list<size_t> shape) {
  auto* data = new float[values.size() + 1];
  std::copy(values.begin(), values.end(), data);
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return nb::ndarray<nb::numpy, float>(data, shape, owner);
}

std::vector<Box> to_boxes(const Array<float, nb::shape<-1, 4>>& array) {
  std::vector<Box> boxes(array.shape(0));
  if (!boxes.empty()) std::memcpy(boxes[0].data(), array.data(), boxes.size() * sizeof(Box));
  return boxes;
}

std::vector<float> flatten(const std::vector<Box>& boxes) {
  std::vector<float> out;
  for (const Box& b : boxes)
    out.insert(out.end(), b.begin(), b.end());
  return out;
}

std::vector<float> to_rows(const std::vector<Detection>& found, float height, float width) {
  std::vector<float> rows;
  for (const Detection& d : found)
    rows.insert(rows.end(), {0.0f, static_cast<float>(d.label), d.score, d.box[0] / width,
                             d.box[1] / height, d.box[2] / width, d.box[3] / height});
  return rows;
}

EngineParams to_params(nb::dict d) {
  auto number = [&](const char* key) { return nb::cast<float>(d[key]); };
  auto integer = [&](const char* key) { return nb::cast<int>(d[key]); };
  auto flag = [&](const char* key) { return nb::cast<bool>(d[key]); };
  auto floats = [&](const char* key, float* to, size_t count) {
    const auto values = nb::cast<std::vector<float>>(d[key]);
    if (values.size() != count) throw std::invalid_argument(std::string(key) + ": wrong length");
    std::copy(values.begin(), values.end(), to);
  };
  EngineParams p{};
  floats("pixel_mean", p.pixel_mean, 3);
  floats("pixel_std", p.pixel_std, 3);
  p.roi = {number("roi_scale"), integer("roi_size"), integer("roi_sampling_ratio"),
           integer("roi_step"), flag("roi_corners")};
  for (const auto& box : nb::cast<std::vector<std::vector<float>>>(d["cell_anchors"])) {
    if (box.size() != 4) throw std::invalid_argument("cell_anchors: boxes have four numbers");
    p.boxes.cell_anchors.push_back({box[0], box[1], box[2], box[3]});
  }
  p.boxes.anchor_stride = integer("anchor_stride");
  floats("rpn_box_weights", p.boxes.rpn_weights.data(), 4);
  floats("box_weights", p.boxes.box_weights.data(), 4);
  p.boxes.delta_clamp = number("delta_clamp");
  p.boxes.pre_nms = integer("rpn_pre_nms");
  p.boxes.proposals = integer("proposals");
  p.boxes.rpn_nms_threshold = number("rpn_nms_threshold");
  p.boxes.remove_empty = flag("rpn_remove_empty");
  p.boxes.inclusive = flag("rpn_inclusive");
  p.boxes.num_classes = integer("num_classes");
  p.boxes.background_first = flag("background_first");
  p.boxes.background_deltas = flag("background_deltas");
  p.boxes.score_threshold = number("score_threshold");
  p.boxes.nms_threshold = number("nms_threshold");
  p.boxes.max_detections = integer("max_detections");
  p.hoist = flag("hoist");
  const auto precision = nb::cast<std::string>(d["precision"]);
  p.precision = precision == "bf16"   ? Type::bfloat16
                : precision == "int8" ? Type::int8
                                      : Type::float32;
  return p;
}

const char* const kMethods[] = {"sparse", "dense", "winograd"};  // in the enum's order

std::optional<Method> to_method(const std::string& name) {
  for (int i = 0; i < 3; i++)
    if (name == kMethods[i]) return static_cast<Method>(i);
  if (name.empty()) return {};
  throw std::invalid_argument("unknown method '" + name + "'");
}

// The engine with its instruction set chosen; see engine.h.
class PyEngine {
  using Bias = Array<float, nb::shape<-1>>;

 public:
  PyEngine(const std::string& isa, int threads, bool pin, nb::dict params)
      : PyEngine(isa, threads, pin, to_params(params)) {}

  PyEngine(const PyEngine& other, int threads) : engine_(other.engine_, threads) {}

  // weight: an array [out, in, k, k], the pair (mask, values) of the model file, or None.
  void add(const std::string& name, const std::string& source, const std::string& residual,
           const std::string& part, int in_channels, int out_channels, int kernel, int stride,
           std::pair<int, int> padding, bool relu, bool output, nb::object weight,
           std::optional<Bias> bias, const std::string& method, float range) {
    OpSpec spec = to_spec(name, source, residual, part, in_channels, out_channels, kernel, stride,
                          padding, relu, output, weight.is_none());
    spec.range = range;
    check_bias(spec, bias);
    const auto chosen = to_method(method);
    if (nb::isinstance<nb::tuple>(weight)) {
      const auto [mask, values] =
          nb::cast<std::pair<Array<uint8_t, nb::ndim<1>>,
                             nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>>>(
              weight);
      const bool half = values.dtype() == nb::dlpack::dtype{2, 16, 1};
      if (!half && values.dtype() != nb::dtype<float>())
        throw std::invalid_argument(name + ": values are neither float32 nor float16");
      nb::gil_scoped_release release;
      engine_.add(spec, {{mask.data(), mask.size()}, values.data(), values.size(), half},
                  bias->data(), chosen);
      return;
    }
    std::optional<Array<float, nb::shape<-1, -1, -1, -1>>> dense;
    if (!weight.is_none()) {
      dense = nb::cast<Array<float, nb::shape<-1, -1, -1, -1>>>(weight);
      const size_t shape[] = {size_t(out_channels), size_t(in_channels), size_t(kernel),
                              size_t(kernel)};
      for (int i = 0; i < 4; i++)
        if (dense->shape(i) != shape[i])
          throw std::invalid_argument(name + ": weight has the wrong shape");
    }
    nb::gil_scoped_release release;
    engine_.add(spec, dense ? dense->data() : nullptr, bias ? bias->data() : nullptr, chosen);
  }

  // packed: what `packed` gave, in one array; kept, not copied.
  void add_packed(const std::string& name, const std::string& source, const std::string& residual,
                  const std::string& part, int in_channels, int out_channels, int kernel,
                  int stride, std::pair<int, int> padding, bool relu, bool output,
                  Array<uint8_t, nb::ndim<1>> packed, Bias bias, const std::string& method,
                  int64_t nonzero, uint64_t checksum) {
    const OpSpec spec = to_spec(name, source, residual, part, in_channels, out_channels, kernel,
                                stride, padding, relu, output, false);
    check_bias(spec, bias);
    const auto chosen = to_method(method);
    if (!chosen) throw std::invalid_argument(name + ": its method is not given");
    if (reinterpret_cast<uintptr_t>(packed.data()) % 64)
      throw std::invalid_argument(name + ": its packed weights are not aligned");
    const std::shared_ptr<const void> owner(packed.data(), [packed](const void*) mutable {
      nb::gil_scoped_acquire acquire;
      packed = {};
    });
    const PackedOp op{*chosen,
                      nonzero,
                      checksum,
                      {{reinterpret_cast<const std::byte*>(packed.data()), packed.size()}}};
    engine_.add_packed(spec, op, owner, bias.data());
  }

  // (method, nonzero weights, checksum, packed weights in some arrays that lie one after the other)
  nb::tuple packed(const std::string& name) {
    const PackedOp op = engine_.packed(name);
    nb::list parts;
    for (const auto& part : op.parts)
      parts.append(nb::bytes(part.data(), part.size()));
    return nb::make_tuple(kMethods[static_cast<int>(op.method)], op.nonzero, op.checksum, parts);
  }

  template <class T>
  nb::ndarray<nb::numpy, float> run(Array<T, nb::shape<-1, -1, 3>> network_input) {
    std::vector<Detection> found;
    {
      nb::gil_scoped_release release;
      engine_.plan(static_cast<int>(network_input.shape(0)), static_cast<int>(network_input.shape(1)));
      found = engine_.run(network_input.data());
    }
    return to_numpy(to_rows(found, float(network_input.shape(0)), float(network_input.shape(1))),
                    {found.size(), 7});
  }

  nb::ndarray<nb::numpy, float> features(Array<float, nb::shape<-1, -1, 3>> network_input) {
    engine_.plan(static_cast<int>(network_input.shape(0)), static_cast<int>(network_input.shape(1)));
    return to_numpy(engine_.features(network_input.data()),
                    {size_t(engine_.feature_channels()), size_t(engine_.feature_height()),
                     size_t(engine_.feature_width())});
  }

  nb::tuple rpn(Array<float, nb::ndim<3>> features) {
    check(features);
    std::vector<float> logits, deltas;
    engine_.rpn(features.data(), logits, deltas);
    return nb::make_tuple(to_numpy(logits, {logits.size()}), to_numpy(deltas, {logits.size(), 4}));
  }

  nb::ndarray<nb::numpy, float> proposals(Array<float, nb::ndim<1>> logits,
                                          Array<float, nb::shape<-1, 4>> deltas) {
    const size_t anchors = engine_.params().boxes.cell_anchors.size();
    const size_t expected = size_t(engine_.feature_height()) * engine_.feature_width() * anchors;
    if (logits.shape(0) != expected || deltas.shape(0) != expected)
      throw std::invalid_argument("logits and deltas do not fit the planned network input");
    const auto boxes = find_proposals(
        engine_.params().boxes, logits.data(), deltas.data(), engine_.feature_height(),
        engine_.feature_width(), float(engine_.input_height()), float(engine_.input_width()));
    return to_numpy(flatten(boxes), {boxes.size(), 4});
  }

  nb::ndarray<nb::numpy, float> roi_features(Array<float, nb::ndim<3>> features,
                                             Array<float, nb::shape<-1, 4>> boxes) {
    check(features);
    const size_t bins = engine_.params().roi.size;
    return to_numpy(engine_.roi_features(features.data(), to_boxes(boxes)),
                    {boxes.shape(0), features.shape(0), bins, bins});
  }

  nb::tuple regions(Array<float, nb::ndim<3>> features, Array<float, nb::shape<-1, 4>> boxes) {
    check(features);
    const BoxParams& b = engine_.params().boxes;
    std::vector<float> logits, deltas;
    if (boxes.shape(0)) engine_.regions(features.data(), to_boxes(boxes), logits, deltas);
    return nb::make_tuple(
        to_numpy(logits, {boxes.shape(0), size_t(b.num_classes + 1)}),
        to_numpy(deltas, {boxes.shape(0), size_t(b.num_classes + b.background_deltas), 4}));
  }

  nb::ndarray<nb::numpy, float> detect(Array<float, nb::ndim<2>> logits,
                                       Array<float, nb::ndim<3>> deltas,
                                       Array<float, nb::shape<-1, 4>> boxes) {
    const BoxParams& b = engine_.params().boxes;
    if (logits.shape(0) != boxes.shape(0) || deltas.shape(0) != boxes.shape(0) ||
        logits.shape(1) != size_t(b.num_classes + 1) ||
        deltas.shape(1) != size_t(b.num_classes + b.background_deltas) || deltas.shape(2) != 4)
      throw std::invalid_argument("logits, deltas and boxes do not fit the model");
    const float h = float(engine_.input_height()), w = float(engine_.input_width());
    const auto found = find_detections(b, logits.data(), deltas.data(), to_boxes(boxes), h, w);
    return to_numpy(to_rows(found, h, w), {found.size(), 7});
  }

  nb::ndarray<nb::numpy, float> run_op(const std::string& name, Array<float, nb::ndim<4>> x,
                                       std::optional<Array<float, nb::ndim<4>>> residual) {
    const auto shape_of = [](const Array<float, nb::ndim<4>>& array) {
      Engine::Shape shape;
      for (int i = 0; i < 4; i++)
        shape[i] = static_cast<int>(std::min<size_t>(array.shape(i), INT_MAX));
      return shape;
    };
    Engine::Shape shape = shape_of(x);
    const auto out = engine_.run_op(name, x.data(), shape, residual ? residual->data() : nullptr,
                                    residual ? shape_of(*residual) : Engine::Shape{});
    return to_numpy(out, {size_t(shape[0]), size_t(shape[1]), size_t(shape[2]), size_t(shape[3])});
  }

  nb::list planned() const {
    nb::list out;
    for (const auto& p : engine_.planned())
      out.append(nb::make_tuple(p.name, kMethods[static_cast<int>(p.method)], p.share, p.nonzero,
                                p.words, p.hoisted, p.can_winograd));
    return out;
  }
  void plan(int height, int width) { engine_.plan(height, width); }
  size_t arena_bytes() const { return engine_.arena_bytes(); }
  size_t weight_bytes() const { return engine_.weight_bytes(); }
  size_t activation_bytes() const { return engine_.activation_bytes(); }
  std::string isa() const { return engine_.kernels().isa; }
  int threads() const { return engine_.threads(); }
  int64_t nonzero_weights() const { return engine_.nonzero_weights(); }
  const std::vector<std::pair<std::string, double>>& timings() const { return engine_.timings(); }

 private:
  static OpSpec to_spec(const std::string& name, const std::string& source,
                        const std::string& residual, const std::string& part, int in_channels,
                        int out_channels, int kernel, int stride, std::pair<int, int> padding,
                        bool relu, bool output, bool pool) {
    const Part p = part == "backbone" ? Part::backbone : part == "rpn" ? Part::rpn : Part::roi;
    return {name,   source,        residual,       p,    pool,  in_channels, out_channels, kernel,
            stride, padding.first, padding.second, relu, output};
  }

  static void check_bias(const OpSpec& spec, const std::optional<Bias>& bias) {
    if (!spec.is_pool && (!bias || bias->shape(0) != size_t(spec.out_channels)))
      throw std::invalid_argument(spec.name + ": bias has the wrong shape");
  }

  PyEngine(const std::string& isa, int threads, bool pin, const EngineParams& params)
      : engine_(choose(isa, params), threads, pin, params) {}

  static const Kernels& choose(const std::string& isa, const EngineParams& params) {
    const Kernels& kernels = choose_kernels(isa);
    const bool bf16 = params.precision == Type::bfloat16, int8 = params.precision == Type::int8;
    if ((bf16 && !has_bfloat16(kernels)) || (int8 && !has_int8(kernels)))
      throw std::invalid_argument(std::string("precision '") + (bf16 ? "bf16" : "int8") +
                                  "' is not available with '" + kernels.isa + "' on this CPU");
    return kernels;
  }

  void check(const Array<float, nb::ndim<3>>& features) const {
    if (!engine_.input_height()) throw std::invalid_argument("plan a network input size first");
    if (features.shape(0) != size_t(engine_.feature_channels()) ||
        features.shape(1) != size_t(engine_.feature_height()) ||
        features.shape(2) != size_t(engine_.feature_width()))
      throw std::invalid_argument("features do not fit the planned network input");
  }

  Engine engine_;
};

}  // namespace
}  // namespace sparsedet

NB_MODULE(_native, m) {
  using sparsedet::PyEngine;
  m.doc() = "The sparse engine's core; use sparsedet.engine instead.";
  m.attr("pack_version") = sparsedet::kPackVersion;
  m.def("available_isas", &sparsedet::available_isas);
  m.def(
      "has_bfloat16",
      [](const std::string& isa) {
        return sparsedet::has_bfloat16(sparsedet::choose_kernels(isa));
      },
      "isa"_a = "");
  m.def(
      "has_int8",
      [](const std::string& isa) { return sparsedet::has_int8(sparsedet::choose_kernels(isa)); },
      "isa"_a = "");
  m.def(
      "peak_gflops",
      [](const std::string& isa, int threads, double seconds) {
        nb::gil_scoped_release release;
        return sparsedet::peak_gflops(sparsedet::choose_kernels(isa).peak, threads, seconds);
      },
      "isa"_a, "threads"_a, "seconds"_a);
  m.def(
      "peak_gflops_int8",
      [](const std::string& isa, int threads, double seconds) {
        nb::gil_scoped_release release;
        const sparsedet::Kernels& kernels = sparsedet::choose_kernels(isa);
        if (!sparsedet::has_int8(kernels)) return 0.0;
        return sparsedet::peak_gflops(kernels.bytes->peak, threads, seconds);
      },
      "isa"_a, "threads"_a, "seconds"_a);
  m.def(
      "peak_gflops_bf16",
      [](const std::string& isa, int threads, double seconds) {
        nb::gil_scoped_release release;
        const sparsedet::Kernels& kernels = sparsedet::choose_kernels(isa);
        if (!sparsedet::has_bfloat16(kernels)) return 0.0;
        return sparsedet::peak_gflops(kernels.words->peak, threads, seconds);
      },
      "isa"_a, "threads"_a, "seconds"_a);
  m.def(
      "choose_isa",
      [](const std::string& isa) { return std::string(sparsedet::choose_kernels(isa).isa); },
      "isa"_a = "");
  nb::class_<PyEngine>(m, "Engine")
      .def(nb::init<const std::string&, int, bool, nb::dict>(), "isa"_a, "threads"_a, "pin"_a,
           "params"_a)
      .def(nb::init<const PyEngine&, int>(), "other"_a, "threads"_a)
      .def("add", &PyEngine::add, "name"_a, "source"_a, "residual"_a, "part"_a, "in_channels"_a,
           "out_channels"_a, "kernel"_a, "stride"_a, "padding"_a, "relu"_a, "output"_a,
           "weight"_a.none(), "bias"_a.none(), "method"_a = "", "range"_a = 0.0f)
      .def("add_packed", &PyEngine::add_packed, "name"_a, "source"_a, "residual"_a, "part"_a,
           "in_channels"_a, "out_channels"_a, "kernel"_a, "stride"_a, "padding"_a, "relu"_a,
           "output"_a, "packed"_a, "bias"_a, "method"_a, "nonzero"_a, "checksum"_a)
      .def("packed", &PyEngine::packed, "name"_a)
      .def("run", &PyEngine::run<uint8_t>, "network_input"_a)
      .def("run", &PyEngine::run<float>, "network_input"_a)
      .def("features", &PyEngine::features, "network_input"_a)
      .def("rpn", &PyEngine::rpn, "features"_a)
      .def("proposals", &PyEngine::proposals, "logits"_a, "deltas"_a)
      .def("roi_features", &PyEngine::roi_features, "features"_a, "boxes"_a)
      .def("regions", &PyEngine::regions, "features"_a, "boxes"_a)
      .def("detect", &PyEngine::detect, "logits"_a, "deltas"_a, "boxes"_a)
      .def("run_op", &PyEngine::run_op, "name"_a, "x"_a, "residual"_a.none() = nb::none())
      .def("plan", &PyEngine::plan, "height"_a, "width"_a)
      .def_prop_ro("arena_bytes", &PyEngine::arena_bytes)
      .def_prop_ro("weight_bytes", &PyEngine::weight_bytes)
      .def_prop_ro("activation_bytes", &PyEngine::activation_bytes)
      .def_prop_ro("isa", &PyEngine::isa)
      .def_prop_ro("threads", &PyEngine::threads)
      .def_prop_ro("nonzero_weights", &PyEngine::nonzero_weights)
      .def_prop_ro("planned", &PyEngine::planned)
      .def_prop_ro("timings", &PyEngine::timings);
}
