// Python bindings: the only file that includes nanobind. Arrays are copied in and out. The engine
// works without Python's global lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstring>
#include <optional>
#include <thread>

#include "graph/engine.h"
#include "images/jpeg_check.h"
#include "images/unpack.h"
#include "kernels/dispatch.h"
#include "runtime/peak.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace sparsedet {
namespace {

// While the interpreter exits, a daemon thread that asks for Python's global lock is ended by
// unwinding its stack, but no frame of the bindings can be unwound: the program would abort. Such a
// thread waits for the end of the process instead, as Python does itself from 3.14 on. Calls of
// Python that may give up the lock and take it again therefore run in here.
template <class Call>
void or_wait_for_exit(const Call& call) {
  try {
    call();
  } catch (...) {
    while (true)
      std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

// Works without Python's global lock as long as it lives.
class WithoutLock {
 public:
  WithoutLock() : thread_(PyEval_SaveThread()) {}
  ~WithoutLock() noexcept(false) {
    or_wait_for_exit([&] { PyEval_RestoreThread(thread_); });
  }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;

 private:
  PyThreadState* const thread_;
};

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

std::vector<float> to_rows(const std::vector<Detection>& detections, float height, float width) {
  std::vector<float> rows;
  for (const Detection& d : detections)
    rows.insert(rows.end(), {0.0f, static_cast<float>(d.label), d.score, d.box[0] / width,
                             d.box[1] / height, d.box[2] / width, d.box[3] / height});
  return rows;
}

// Keys are named as in Python's ModelConfig, and so are the fields.
EngineParams to_params(nb::dict d) {
  auto number = [&](const char* key) { return nb::cast<float>(d[key]); };
  auto integer = [&](const char* key) { return nb::cast<int>(d[key]); };
  auto flag = [&](const char* key) { return nb::cast<bool>(d[key]); };
  auto floats = [&](const char* key, float* to, size_t count) {
    const auto values = nb::cast<std::vector<float>>(d[key]);
    if (values.size() != count) throw std::invalid_argument(std::string(key) + ": wrong length");
    std::copy(values.begin(), values.end(), to);
  };
  // Index of the value among `choices`.
  auto choice = [&](const char* key, std::initializer_list<const char*> choices) {
    const auto value = nb::cast<std::string>(d[key]);
    int i = 0;
    for (const char* name : choices) {
      if (value == name) return i;
      i++;
    }
    throw std::invalid_argument(std::string(key) + ": unknown value '" + value + "'");
  };
  EngineParams p{};
  floats("pixel_mean", p.pixel_mean, 3);
  floats("pixel_std", p.pixel_std, 3);
  p.roi = {
      number("roi_scale"), integer("roi_size"), integer("roi_sampling_ratio"), integer("roi_step"),
      choice("roi_sampling", {"aligned", "corners"}) ? RoiSampling::corners : RoiSampling::aligned};
  for (const auto& box : nb::cast<std::vector<std::vector<float>>>(d["cell_anchors"])) {
    if (box.size() != 4) throw std::invalid_argument("cell_anchors: a box has four numbers");
    p.boxes.cell_anchors.push_back({box[0], box[1], box[2], box[3]});
  }
  p.boxes.anchor_stride = integer("anchor_stride");
  floats("rpn_box_weights", p.boxes.rpn_box_weights.data(), 4);
  floats("box_weights", p.boxes.box_weights.data(), 4);
  p.boxes.delta_clamp = number("delta_clamp");
  p.boxes.rpn_pre_nms = integer("rpn_pre_nms");
  p.boxes.proposals = integer("proposals");
  p.boxes.rpn_nms_threshold = number("rpn_nms_threshold");
  p.boxes.rpn_remove_empty = flag("rpn_remove_empty");
  p.boxes.rpn_inclusive = flag("rpn_inclusive");
  p.boxes.num_classes = integer("num_classes");
  p.boxes.background =
      choice("background", {"first", "last"}) ? Background::last : Background::first;
  p.boxes.background_deltas = flag("background_deltas");
  p.boxes.score_threshold = number("score_threshold");
  p.boxes.nms_threshold = number("nms_threshold");
  p.boxes.max_detections = integer("max_detections");
  p.hoist = flag("hoist");
  constexpr ElementType types[] = {ElementType::float32, ElementType::bfloat16, ElementType::int8};
  p.precision = types[choice("precision", {"f32", "bf16", "int8"})];
  return p;
}

const char* const kAlgorithms[] = {"sparse", "dense", "winograd"};  // in the order of Algorithm

std::optional<Algorithm> to_algorithm(const std::string& name) {
  for (int i = 0; i < 3; i++)
    if (name == kAlgorithms[i]) return static_cast<Algorithm>(i);
  if (name.empty()) return {};
  throw std::invalid_argument("unknown algorithm '" + name + "'");
}

// The engine with the kernels of an instruction set; see engine.h.
class NativeEngine {
  using Bias = Array<float, nb::shape<-1>>;

 public:
  NativeEngine(const std::string& isa, int threads, bool pin, nb::dict params)
      : NativeEngine(isa, threads, pin, to_params(params)) {}

  NativeEngine(const NativeEngine& other, int threads) : engine_(other.engine_, threads) {}

  // weight: an array [out, in, k, k], the pair (mask, values) of the model file, or None.
  void add(const std::string& name, const std::string& source, const std::string& residual,
           const std::string& component, int in_channels, int out_channels, int kernel, int stride,
           std::pair<int, int> padding, bool relu, bool output, nb::object weight,
           std::optional<Bias> bias, const std::string& algorithm, float clipping_threshold) {
    OpSpec spec = to_spec(name, source, residual, component, in_channels, out_channels, kernel,
                          stride, padding, relu, output, weight.is_none());
    spec.clipping_threshold = clipping_threshold;
    check_bias(spec, bias);
    const auto chosen = to_algorithm(algorithm);
    if (nb::isinstance<nb::tuple>(weight)) {
      const auto [mask, values] =
          nb::cast<std::pair<Array<uint8_t, nb::ndim<1>>,
                             nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>>>(
              weight);
      const bool half = values.dtype() == nb::dlpack::dtype{2, 16, 1};
      if (!half && values.dtype() != nb::dtype<float>())
        throw std::invalid_argument(name + ": values are neither float32 nor float16");
      const WithoutLock unlocked;
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
    const WithoutLock unlocked;
    engine_.add(spec, dense ? dense->data() : nullptr, bias ? bias->data() : nullptr, chosen);
  }

  // packed: the weights from `packed` in one array, which is kept and not copied.
  void add_packed(const std::string& name, const std::string& source, const std::string& residual,
                  const std::string& component, int in_channels, int out_channels, int kernel,
                  int stride, std::pair<int, int> padding, bool relu, bool output, nb::object array,
                  Bias bias, const std::string& algorithm, int64_t nonzero, uint64_t checksum) {
    const OpSpec spec = to_spec(name, source, residual, component, in_channels, out_channels,
                                kernel, stride, padding, relu, output, false);
    check_bias(spec, bias);
    const auto chosen = to_algorithm(algorithm);
    Array<uint8_t, nb::ndim<1>> packed;
    if (!nb::try_cast(array, packed)) throw nb::type_error("packed weights are no array of bytes");
    if (!chosen) throw std::invalid_argument(name + ": packed weights need an algorithm");
    if (reinterpret_cast<uintptr_t>(packed.data()) % 64)
      throw std::invalid_argument(name + ": packed weights are not 64-byte aligned");
    const auto release = [packed, kept = array.release().ptr()](const void*) mutable {
      nb::gil_scoped_acquire acquire;
      packed = {};                                 // `kept` has the memory
      or_wait_for_exit([&] { Py_DECREF(kept); });  // unmaps a file, without the lock
    };
    const std::shared_ptr<const void> owner(packed.data(), release);
    const PackedOp op{*chosen,
                      nonzero,
                      checksum,
                      {{reinterpret_cast<const std::byte*>(packed.data()), packed.size()}}};
    engine_.add_packed(spec, op, owner, bias.data());
  }

  // (algorithm, number of nonzero weights, checksum, consecutive pieces of the packed weights)
  nb::tuple packed(const std::string& name) {
    const PackedOp op = engine_.packed(name);
    nb::list pieces;
    for (const auto& span : op.spans)
      pieces.append(nb::bytes(span.data(), span.size()));
    return nb::make_tuple(kAlgorithms[static_cast<int>(op.algorithm)], op.nonzero, op.checksum,
                          pieces);
  }

  template <class T>
  nb::ndarray<nb::numpy, float> run(Array<T, nb::shape<-1, -1, 3>> network_input) {
    std::vector<Detection> detections;
    {
      const WithoutLock unlocked;
      engine_.plan_memory(static_cast<int>(network_input.shape(0)),
                          static_cast<int>(network_input.shape(1)));
      detections = engine_.run(network_input.data());
    }
    return to_numpy(
        to_rows(detections, float(network_input.shape(0)), float(network_input.shape(1))),
        {detections.size(), 7});
  }

  nb::ndarray<nb::numpy, float> features(Array<float, nb::shape<-1, -1, 3>> network_input) {
    engine_.plan_memory(static_cast<int>(network_input.shape(0)),
                        static_cast<int>(network_input.shape(1)));
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
    const auto boxes = find_proposals(engine_.params().boxes, logits.data(), deltas.data(),
                                      engine_.feature_height(), engine_.feature_width(),
                                      float(engine_.input_height()), float(engine_.input_width()));
    return to_numpy(flatten(boxes), {boxes.size(), 4});
  }

  nb::ndarray<nb::numpy, float> roi_features(Array<float, nb::ndim<3>> features,
                                             Array<float, nb::shape<-1, 4>> rois) {
    check(features);
    const size_t bins = engine_.params().roi.roi_size;
    return to_numpy(engine_.roi_features(features.data(), to_boxes(rois)),
                    {rois.shape(0), features.shape(0), bins, bins});
  }

  nb::tuple roi_head(Array<float, nb::ndim<3>> features, Array<float, nb::shape<-1, 4>> rois) {
    check(features);
    const BoxParams& b = engine_.params().boxes;
    std::vector<float> logits, deltas;
    if (rois.shape(0)) engine_.roi_head(features.data(), to_boxes(rois), logits, deltas);
    return nb::make_tuple(
        to_numpy(logits, {rois.shape(0), size_t(b.num_classes + 1)}),
        to_numpy(deltas, {rois.shape(0), size_t(b.num_classes + b.background_deltas), 4}));
  }

  nb::ndarray<nb::numpy, float> detect(Array<float, nb::ndim<2>> logits,
                                       Array<float, nb::ndim<3>> deltas,
                                       Array<float, nb::shape<-1, 4>> rois) {
    const BoxParams& b = engine_.params().boxes;
    if (logits.shape(0) != rois.shape(0) || deltas.shape(0) != rois.shape(0) ||
        logits.shape(1) != size_t(b.num_classes + 1) ||
        deltas.shape(1) != size_t(b.num_classes + b.background_deltas) || deltas.shape(2) != 4)
      throw std::invalid_argument("logits, deltas and RoIs do not fit the model");
    const float h = float(engine_.input_height()), w = float(engine_.input_width());
    const auto detections = find_detections(b, logits.data(), deltas.data(), to_boxes(rois), h, w);
    return to_numpy(to_rows(detections, h, w), {detections.size(), 7});
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

  nb::list planned_ops() const {
    nb::list out;
    for (const auto& p : engine_.planned_ops())
      out.append(nb::make_tuple(p.name, kAlgorithms[static_cast<int>(p.algorithm)],
                                p.fraction_of_peak, p.nonzero, p.element_density, p.hoisted,
                                p.can_winograd));
    return out;
  }
  void plan_memory(int height, int width) { engine_.plan_memory(height, width); }
  size_t arena_bytes() const { return engine_.arena_bytes(); }
  size_t weight_bytes() const { return engine_.weight_bytes(); }
  size_t activation_bytes() const { return engine_.activation_bytes(); }
  std::string isa() const { return engine_.kernels().isa; }
  int threads() const { return engine_.threads(); }
  int64_t nonzero_weights() const { return engine_.nonzero_weights(); }
  const std::vector<std::pair<std::string, double>>& timings() const { return engine_.timings(); }

 private:
  static OpSpec to_spec(const std::string& name, const std::string& source,
                        const std::string& residual, const std::string& component, int in_channels,
                        int out_channels, int kernel, int stride, std::pair<int, int> padding,
                        bool relu, bool output, bool pool) {
    const Component where = component == "backbone" ? Component::backbone
                            : component == "rpn"    ? Component::rpn
                                                    : Component::roi;
    return {name,   source, residual,      where,          pool, in_channels, out_channels,
            kernel, stride, padding.first, padding.second, relu, output};
  }

  static void check_bias(const OpSpec& spec, const std::optional<Bias>& bias) {
    if (!spec.is_pool && (!bias || bias->shape(0) != size_t(spec.out_channels)))
      throw std::invalid_argument(spec.name + ": bias has the wrong shape");
  }

  NativeEngine(const std::string& isa, int threads, bool pin, const EngineParams& params)
      : engine_(choose(isa, params), threads, pin, params) {}

  static const Kernels& choose(const std::string& isa, const EngineParams& params) {
    const Kernels& kernels = choose_kernels(isa);
    const bool bf16 = params.precision == ElementType::bfloat16,
               int8 = params.precision == ElementType::int8;
    if ((bf16 && !has_bfloat16(kernels)) || (int8 && !has_int8(kernels)))
      throw std::invalid_argument(std::string("precision '") + (bf16 ? "bf16" : "int8") +
                                  "' is not available with '" + kernels.isa + "' on this CPU");
    return kernels;
  }

  void check(const Array<float, nb::ndim<3>>& features) const {
    if (!engine_.input_height())
      throw std::invalid_argument("call plan_memory() with the size of the network input first");
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
  using sparsedet::NativeEngine;
  m.doc() = "The sparse engine's core; use sparsedet.engine instead.";
  m.attr("pack_version") = sparsedet::kPackVersion;
  // For the end of a process in which threads still hold engines, as leaks that are none.
  m.def("ignore_leaks", [] { nb::set_leak_warnings(false); });
  m.def("available_isas", &sparsedet::available_isas);
  m.def("cpu_vendor", &sparsedet::cpu_vendor);
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
        const sparsedet::WithoutLock unlocked;
        return sparsedet::peak_gflops(sparsedet::choose_kernels(isa).peak, threads, seconds);
      },
      "isa"_a, "threads"_a, "seconds"_a);
  m.def(
      "peak_gflops_int8",
      [](const std::string& isa, int threads, double seconds) {
        const sparsedet::WithoutLock unlocked;
        const sparsedet::Kernels& kernels = sparsedet::choose_kernels(isa);
        if (!sparsedet::has_int8(kernels)) return 0.0;
        return sparsedet::peak_gflops(kernels.int8->peak, threads, seconds);
      },
      "isa"_a, "threads"_a, "seconds"_a);
  m.def(
      "peak_gflops_bf16",
      [](const std::string& isa, int threads, double seconds) {
        const sparsedet::WithoutLock unlocked;
        const sparsedet::Kernels& kernels = sparsedet::choose_kernels(isa);
        if (!sparsedet::has_bfloat16(kernels)) return 0.0;
        return sparsedet::peak_gflops(kernels.bf16->peak, threads, seconds);
      },
      "isa"_a, "threads"_a, "seconds"_a);
  m.def(
      "choose_isa",
      [](const std::string& isa) { return std::string(sparsedet::choose_kernels(isa).isa); },
      "isa"_a = "");
  m.def(
      "check_jpeg",
      [](nb::bytes data, uint64_t max_pixels, bool copy) {
        sparsedet::JpegCheck check;
        {
          nb::gil_scoped_release release;
          check = sparsedet::check_jpeg(static_cast<const uint8_t*>(data.data()), data.size(),
                                        max_pixels, copy);
        }
        return nb::make_tuple(check.damage, check.unsupported, check.odd,
                              nb::bytes(check.clean.data(), check.clean.size()), check.exif_start,
                              check.exif_end);
      },
      "data"_a, "max_pixels"_a, "copy"_a);
  m.def(
      "unpack",
      [](const std::string& packing, nb::bytes data, size_t expected, int first_bits) {
        std::string out;
        {
          nb::gil_scoped_release release;
          const auto* bytes = static_cast<const uint8_t*>(data.data());
          if (packing == "lzw")
            out = sparsedet::unpack_tiff_lzw(bytes, data.size(), expected);
          else if (packing == "gif")
            out = sparsedet::unpack_gif_lzw(bytes, data.size(), expected, first_bits);
          else if (packing == "packbits")
            out = sparsedet::unpack_packbits(bytes, data.size(), expected);
          else
            throw std::invalid_argument("packing: unknown value '" + packing + "'");
        }
        return nb::bytes(out.data(), out.size());
      },
      "packing"_a, "data"_a, "expected"_a, "first_bits"_a = 8);
  nb::class_<NativeEngine>(m, "NativeEngine")
      .def(nb::init<const std::string&, int, bool, nb::dict>(), "isa"_a, "threads"_a, "pin"_a,
           "params"_a)
      .def(nb::init<const NativeEngine&, int>(), "other"_a, "threads"_a)
      .def("add", &NativeEngine::add, "name"_a, "source"_a, "residual"_a, "component"_a,
           "in_channels"_a, "out_channels"_a, "kernel"_a, "stride"_a, "padding"_a, "relu"_a,
           "output"_a, "weight"_a.none(), "bias"_a.none(), "algorithm"_a = "",
           "clipping_threshold"_a = 0.0f)
      .def("add_packed", &NativeEngine::add_packed, "name"_a, "source"_a, "residual"_a,
           "component"_a, "in_channels"_a, "out_channels"_a, "kernel"_a, "stride"_a, "padding"_a,
           "relu"_a, "output"_a, "packed"_a, "bias"_a, "algorithm"_a, "nonzero"_a, "checksum"_a)
      .def("packed", &NativeEngine::packed, "name"_a)
      .def("run", &NativeEngine::run<uint8_t>, "network_input"_a)
      .def("run", &NativeEngine::run<float>, "network_input"_a)
      .def("features", &NativeEngine::features, "network_input"_a)
      .def("rpn", &NativeEngine::rpn, "features"_a)
      .def("proposals", &NativeEngine::proposals, "logits"_a, "deltas"_a)
      .def("roi_features", &NativeEngine::roi_features, "features"_a, "rois"_a)
      .def("roi_head", &NativeEngine::roi_head, "features"_a, "rois"_a)
      .def("detect", &NativeEngine::detect, "logits"_a, "deltas"_a, "rois"_a)
      .def("run_op", &NativeEngine::run_op, "name"_a, "x"_a, "residual"_a.none() = nb::none())
      .def("plan_memory", &NativeEngine::plan_memory, "height"_a, "width"_a)
      .def_prop_ro("arena_bytes", &NativeEngine::arena_bytes)
      .def_prop_ro("weight_bytes", &NativeEngine::weight_bytes)
      .def_prop_ro("activation_bytes", &NativeEngine::activation_bytes)
      .def_prop_ro("isa", &NativeEngine::isa)
      .def_prop_ro("threads", &NativeEngine::threads)
      .def_prop_ro("nonzero_weights", &NativeEngine::nonzero_weights)
      .def_prop_ro("planned_ops", &NativeEngine::planned_ops)
      .def_prop_ro("timings", &NativeEngine::timings);
}
