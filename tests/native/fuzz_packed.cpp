// libFuzzer: packed weights from elsewhere, and the masks and values of a model file.
//
// The first bytes say a convolution, an algorithm and an instruction set. Its weights are packed
// from a mask and values that the fuzzer chooses, or packed whole and then changed where it says,
// as a hostile cache would. What is not refused runs, on memory of exactly the size that the layout
// asks for: the compiler's checks see what is read or written outside.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "algorithms/algorithm.h"
#include "fuzz_bytes.h"
#include "fuzz_limits.h"
#include "kernels/dispatch.h"

namespace {

using namespace sparsedet;

struct Delete {
  void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<float, Delete>;

Buffer aligned(size_t floats) {
  Buffer buffer(static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t{64})));
  std::fill_n(buffer.get(), floats, 0.0f);
  return buffer;
}

ConvProblem problem_of(FuzzBytes& bytes) {
  ConvProblem problem{};
  ConvShape& shape = problem.shape;
  const int flags = bytes.among(0, 255);
  shape.in_channels = bytes.among(1, 40);
  shape.out_channels = flags & 1 ? shape.in_channels : bytes.among(1, 40);
  shape.kernel_height = shape.kernel_width = 1 + 2 * (flags >> 1 & 1);
  shape.stride = 1 + (flags >> 2 & 1);
  shape.padding_top = shape.padding_left = flags >> 3 & 1 ? shape.kernel_height / 2 : 0;
  shape.groups = (flags & 1) && (flags >> 4 & 1) ? shape.in_channels : 1;
  shape.activation = flags >> 5 & 1 ? Activation::relu : Activation::none;
  problem.rois = (flags >> 6 & 1) && shape.groups == 1;
  problem.in_height = problem.in_width = 7;
  problem.rowwise_pixels = 49;
  const int pad = 2 * shape.padding_top;
  problem.out_height = problem.out_width = (7 + pad - shape.kernel_height) / shape.stride + 1;
  return problem;
}

void run(const Kernels& kernels, const ConvProblem& problem, const PackedConvolution& conv) {
  static Pool pool(1, false);
  static Scratch scratch(1);
  Context context{kernels, pool, scratch};
  const ConvShape& shape = problem.shape;
  if (problem.rois) {
    const int lanes = kVectors * kernels.lanes;
    Rois in{nullptr, 1, shape.in_channels, 7, 7, lanes};
    Rois out{nullptr, 1, shape.out_channels, problem.out_height, problem.out_width, lanes};
    const Buffer from = aligned(in.size()), to = aligned(out.size());
    in.data = from.get();
    out.data = to.get();
    const Buffer work = aligned(conv.scratch_floats(out) + 16);
    conv.run(context, in, nullptr, out, 3, work.get());
  } else {
    const int border = shape.kernel_height;
    FeatureMap in{nullptr,       shape.in_channels,    7,  7,     border,
                  kernels.lanes, ElementType::float32, {}, border};
    FeatureMap out{nullptr, shape.out_channels, problem.out_height, problem.out_width,
                   0,       kernels.lanes};
    const Buffer from = aligned(in.size()), to = aligned(out.size());
    in.data = from.get();
    out.data = to.get();
    conv.run(context, in, nullptr, out);
  }
}

// The packed bytes with as many places changed as the fuzzer has bytes for.
std::vector<std::byte> changed(const PackedConvolution& conv, FuzzBytes& bytes) {
  std::vector<std::byte> all;
  for (const auto& span : conv.packed())
    all.insert(all.end(), span.begin(), span.end());
  while (bytes.left() >= 4 && !all.empty()) {
    const uint32_t at = bytes.number(2) % all.size(), value = bytes.number(2);
    if (value == 0xffff) {
      all.resize(at);
    } else {  // counts and indices are 16 bits, and at the beginning
      const size_t place = value & 1 ? at : at % std::min<size_t>(all.size(), 256);
      std::memcpy(&all[place], &value, std::min<size_t>(2, all.size() - place));
    }
  }
  return all;
}

void fuzz(FuzzBytes bytes) {
  const ConvProblem problem = problem_of(bytes);
  static const std::vector<std::string> isas = available_isas();
  const Kernels& kernels = choose_kernels(isas[bytes.number(1) % isas.size()]);
  const auto list = algorithms();
  const Algorithm& algorithm = *list[bytes.number(1) % list.size()];
  if (!algorithm.eligible(problem)) return;
  const auto count = static_cast<size_t>(problem.shape.weights());
  const std::vector<float> bias(problem.shape.out_channels, 0.5f);
  if (bytes.among(0, 1)) {
    // Mask and values as a stranger's file has them: of any length.
    const size_t mask_bytes = std::min<size_t>((count + 7) / 8, bytes.left());
    const std::vector<uint8_t> mask(bytes.rest(), bytes.rest() + mask_bytes);
    size_t set = 0;
    for (const uint8_t bits : mask)
      set += static_cast<size_t>(__builtin_popcount(bits));
    const size_t values = set + (bytes.left() > mask_bytes ? bytes.rest()[mask_bytes] % 3 : 1) - 1;
    if (values > count) return;
    const std::vector<uint16_t> halves(values, 0x3c01);
    const Weights weights({mask.data(), mask.size()}, halves.data(), halves.size(), true);
    return run(kernels, problem, *algorithm.pack(kernels, problem, weights, bias.data(), {}));
  }
  std::vector<float> dense(count);
  for (size_t i = 0; i < count; i++)
    dense[i] = i % 3 ? 0.0f : static_cast<float>(i % 7) - 3;
  const auto whole = algorithm.pack(kernels, problem, dense.data(), bias.data(), {});
  const std::vector<std::byte> all = changed(*whole, bytes);
  const Buffer memory = aligned((all.size() + 3) / 4);
  auto* data = reinterpret_cast<std::byte*>(memory.get());
  std::copy(all.begin(), all.end(), data);
  std::span<const std::byte> packed(data, all.size());
  const auto conv = algorithm.unpack(kernels, problem, packed, nullptr, bias.data());
  run(kernels, problem, *conv);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const FuzzTimeLimit limit;
  try {
    fuzz({data, size});
  } catch (const std::invalid_argument&) {  // a refusal
  }
  return 0;
}
