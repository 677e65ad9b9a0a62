// The AMX kernels, as machine code, under amx_emulator.h: each against plain loops written from the
// contract in kernels.h, then layers against the sparse kernels and a small network against the
// scalar ones. Operands are integers, so that results are equal to the bit; a pass with fractions
// allows the rounding error of a float32 sum. Outputs have canaries around them and in every gap.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "algorithms/algorithm.h"
#include "amx_emulator.h"
#include "canaries.h"
#include "kernels/dispatch.h"
#include "low_precision.h"
#include "report.h"

namespace {

using namespace sparsedet;

std::mt19937 rng(3);

uint32_t bits(float x) {
  return __builtin_bit_cast(uint32_t, x);
}
float from_bits(uint32_t x) {
  return __builtin_bit_cast(float, x);
}
int draw(int low, int high) {
  return low + static_cast<int>(rng() % (high - low + 1));
}

// ----------------------------------------------------------------------------------- the products

constexpr int L = 16, kColumn = kVectors * L;

struct ProductCase {
  bool int8;
  int row_tiles, columns, P, valid;
  bool first, last, packed, fraction;
  Activation activation;
  int residual;  // none, separate, in place

  std::string text() const {
    char out[200];
    std::snprintf(out, sizeof out,
                  "int8 %d row tiles %d columns %d P %d valid %d first %d last %d packed %d "
                  "fraction %d activation %d residual %d",
                  int8, row_tiles, columns, P, valid, first, last, packed, fraction,
                  static_cast<int>(activation), residual);
    return out;
  }
};

float draw_value(bool fraction) {
  const auto v =
      fraction ? static_cast<float>(rng()) * 0x1p-31f - 1.0f : static_cast<float>(draw(-4, 4));
  return from_bits(to_bfloat16(v) << 16);
}

float draw_element(bool int8, bool fraction) {
  if (int8) return from_bits(static_cast<uint32_t>(rng()));
  return join_bfloat16(draw_value(fraction), draw_value(fraction));
}

// An exact sum, and the magnitude of its terms.
struct Total {
  double value = 0, magnitude = 0;
  int terms = 0;
  void add(double x) { value += x, magnitude += std::abs(x), terms++; }
};

Total products(const ProductCase& c, float start, const float* weights, const float* panel) {
  Total sum;
  sum.add(c.int8 ? static_cast<int32_t>(bits(start)) : start);
  for (int i = 0; i < c.columns; i++) {
    const float w = weights[i / kSquare * kSquare * kSquare + i % kSquare], x = panel[i * kColumn];
    for (int k = 0; k < 4 && c.int8; k++)
      sum.add(static_cast<int8_t>(byte_of(w, k)) * static_cast<int>(byte_of(x, k)));
    if (c.int8) continue;
    sum.add(double{even_of(w)} * even_of(x));
    sum.add(double{odd_of(w)} * odd_of(x));
  }
  return sum;
}

float activated(float x, Activation activation) {
  const float sigmoid = std::clamp(x + 3, 0.0f, 6.0f) * (1.0f / 6);
  if (activation == Activation::hardsigmoid) return sigmoid;
  if (activation == Activation::hardswish) return x * sigmoid;
  return activation == Activation::relu && !(x > 0) ? 0 : x;
}

// The operands of one case, and what must come out.
class Product {
 public:
  explicit Product(const ProductCase& c)
      : c_(c),
        rows_(c.row_tiles * kSquare),
        squares_(divide_up(c.columns, kSquare)),
        weights_(size_t(c.row_tiles) * squares_ * kSquare * kSquare),
        panel_(size_t(c.columns) * kColumn),
        partial_(size_t(rows_) * kColumn),
        out_(size_t(rows_) * kRowStride),
        residual_(size_t(rows_) * kRowStride),
        bias_(rows_),
        scale_(rows_) {
    for (int row = 0; row < rows_; row++)
      for (int i = 0; i < squares_ * kSquare; i++)
        weights_.put(weight_at(row) + i / kSquare * kSquare * kSquare + i % kSquare,
                     i < c.columns ? draw_element(c.int8, c.fraction) : 0);
    for (int i = 0; i < c.columns; i++)  // vectors from P on stay NaN
      for (int j = 0; j < c.P * L; j++)
        panel_.put(i * kColumn + j, draw_element(c.int8, c.fraction));
    for (float& b : bias_)
      b = c.int8 ? static_cast<float>(draw(-99, 299)) : draw_value(c.fraction);
    for (float& s : scale_)
      s = static_cast<float>(draw(-99, 99)) * 2e-5f;
    for (int row = 0; row < rows_ && !c.first; row++)
      for (int j = 0; j < c.P * L; j++)
        partial_.put(row * kColumn + j, c.int8 ? from_bits(static_cast<uint32_t>(draw(-9999, 9999)))
                                               : draw_value(c.fraction));
    a_.rows = !c.packed ? rows_ - 1 : c.int8 ? rows_ / 4 - 1 : rows_ / 2 - 1;
    a_.row_stride = kRowStride;
    a_.residual_scale = 0.37f;
    for (int p = 0; p < c.P; p++) {
      a_.offset[p] = (c.P - 1 - p) * (L + 1) + 1;
      a_.valid[p] = p == c.P - 1 ? c.valid : L;
    }
  }

  bool run(const MatrixKernels& k) {
    for (int p = 0; p < c_.P; p++)
      for (int l = 0; l < L; l++)
        c_.int8 ? expect_int8(p, l) : expect_bfloat16(p, l);
    a_.panel = panel_.data();
    a_.values = weights_.data();
    a_.columns = c_.columns;
    a_.row_tiles = c_.row_tiles;
    a_.vectors = c_.P;
    a_.partial = partial_.data();
    a_.first = c_.first;
    a_.last = c_.last;
    a_.bias = bias_.data();
    a_.scale = scale_.data();
    a_.out = out_.data();
    if (adds()) a_.residual = (c_.residual == 1 ? residual_ : out_).data();
    a_.activation = c_.activation;
    a_.packed_output = c_.packed;
    k.prepare_thread();
    k.product(a_);
    k.release_thread();
    return weights_.good() && panel_.good() && out_.good() && residual_.good() &&
           (c_.last || partial_.good());  // after the last block its content does not matter
  }

 private:
  static constexpr int kRowStride = kVectors * (L + 1) + 2;

  ptrdiff_t weight_at(int row) const {
    return (ptrdiff_t(row / kSquare) * squares_ * kSquare + row % kSquare) * kSquare;
  }
  bool adds() const { return c_.last && c_.residual && (c_.packed || !c_.int8); }
  float residual_of(ptrdiff_t at) {
    if (!adds()) return 0;
    Canaries& from = c_.residual == 1 ? residual_ : out_;
    from.put(at, c_.packed ? draw_element(c_.int8, c_.fraction) : draw_value(c_.fraction));
    return from.data()[at];
  }
  Total sum(int row, int p, int l) {
    const int at = row * kColumn + p * L + l;
    const float start = !c_.first ? partial_.data()[at] : c_.int8 ? 0 : bias_[row];
    return products(c_, start, weights_.data() + weight_at(row), panel_.data() + p * L + l);
  }
  static double tolerance(const Total& t, bool fraction) {
    return fraction ? (t.terms + 2) * 0x1p-24 * t.magnitude : -1;
  }

  void expect_bfloat16(int p, int l) {
    const bool exists = l < a_.valid[p];
    for (int row = 0; row < rows_; row++) {
      Total t = sum(row, p, l);
      if (!c_.last)
        partial_.expect(row * kColumn + p * L + l, static_cast<float>(t.value),
                        tolerance(t, c_.fraction));
      if (!c_.last || c_.packed || row >= a_.rows) continue;
      const ptrdiff_t at = row * kRowStride + a_.offset[p] + l;
      t.add(residual_of(at));
      const float v = activated(static_cast<float>(t.value), c_.activation);
      out_.expect(at, exists ? v : 0, exists ? tolerance(t, c_.fraction) : -1);
    }
    for (int row = 0; c_.last && c_.packed && row < a_.rows; row++) {
      const int even = row / kSquare * 2 * kSquare + row % kSquare;  // and its odd one a tile later
      const ptrdiff_t at = row * kRowStride + a_.offset[p] + l;
      const float added = residual_of(at);
      const auto low = static_cast<float>(sum(even, p, l).value) + even_of(added);
      const auto high = static_cast<float>(sum(even + kSquare, p, l).value) + odd_of(added);
      out_.expect(
          at, exists ? join_bfloat16(activated(low, c_.activation), activated(high, c_.activation))
                     : 0);
    }
  }

  void expect_int8(int p, int l) {
    const bool exists = l < a_.valid[p];
    for (int element = 0; element < rows_ / 4; element++) {
      const ptrdiff_t at = element * kRowStride + a_.offset[p] + l;
      const bool stored = c_.last && c_.packed && element < a_.rows;
      const float added = stored ? residual_of(at) : 0;
      uint32_t bytes[4];
      for (int i = 0; i < 4; i++) {
        const int row = 4 * element + i;
        const auto total = static_cast<int32_t>(sum(row, p, l).value);
        if (!c_.last)
          partial_.expect(row * kColumn + p * L + l, from_bits(static_cast<uint32_t>(total)));
        float v = std::fma(static_cast<float>(total), scale_[row], bias_[row]);
        if (stored && adds())
          v = std::fma(static_cast<float>(byte_of(added, i)), a_.residual_scale, v);
        bytes[i] = static_cast<uint32_t>(std::nearbyint(std::clamp(v, 0.0f, 255.0f)));
        if (c_.last && !c_.packed && row < a_.rows)
          out_.expect(row * kRowStride + a_.offset[p] + l,
                      exists ? activated(v, c_.activation) : 0);
      }
      if (stored) out_.expect(at, exists ? join_bytes(bytes) : 0);
    }
  }

  const ProductCase c_;
  const int rows_, squares_;
  Canaries weights_, panel_, partial_, out_, residual_;
  std::vector<float> bias_, scale_;
  SparseArgs a_ = {};
};

bool test_products(const Kernels& kernels, bool int8) {
  Report report(std::string("amx ") + (int8 ? "int8" : "bf16") + " products");
  const MatrixKernels& k = *(int8 ? kernels.int8_matrix : kernels.bf16_matrix);
  int number = 0;
  // One column, one less than a square, exactly one, one more, several squares and a rest.
  for (int columns : {1, 15, 16, 17, 37})
    for (int row_tiles : {2, 4})
      for (int P = 1; P <= kVectors; P++)
        for (int flags = 0; flags < 8; flags++, number++) {
          ProductCase c{};
          c.int8 = int8;
          c.row_tiles = row_tiles;
          c.columns = columns;
          c.P = P;
          c.first = flags & 1;
          c.last = flags & 2;
          c.packed = flags & 4;
          for (c.valid = L; c.valid > 0; c.valid -= c.valid == L ? 1 : L - 2) {
            c.residual = number % 3;
            c.activation = static_cast<Activation>(rng() % (int8 ? 2 : 4));
            report.check(Product(c).run(k), c.text());
            if (!c.last) break;  // nothing is stored
          }
          if (int8 || c.packed) continue;
          c.valid = L;
          c.fraction = true;
          c.activation = static_cast<Activation>(rng() % 2);
          report.check(Product(c).run(k), c.text());
        }
  return report.end();
}

// --------------------------------------------------------------------------- layers and a network

// By the matrix unit, from packed weights that went through a cache, and by the sparse kernels.
bool layer_case(const Kernels& kernels, const LayerCase& c) {
  const Layer layer(c, Zeros::thirds);
  ConvProblem problem = layer.problem();
  problem.matrix = c.in == ElementType::int8 ? kernels.int8_matrix : kernels.bf16_matrix;
  Pool pool(2, false);
  const Weights weights(layer.weights().data());
  const float* const bias = layer.bias().data();
  const Packer packer{&pool, nullptr, nullptr};
  const Algorithm &matrix = find_algorithm("matrix"), &sparse = find_algorithm("sparse");
  const auto packed = matrix.pack(kernels, problem, weights, bias, packer);
  auto span = packed->packed()[0];
  const auto unpacked = matrix.unpack(kernels, problem, span, nullptr, bias);
  const auto other = sparse.pack(kernels, problem, weights, bias, packer);
  bool good = matrix.eligible(problem) && span.empty();
  good &= packed->nonzero_elements() == other->nonzero_elements();
  try {
    auto shorter = packed->packed()[0];
    shorter = shorter.first(shorter.size() - 64);
    matrix.unpack(kernels, problem, shorter, nullptr, bias);
    good = false;
  } catch (const std::invalid_argument&) {
  }
  const auto expected = layer.run(kernels, *other);
  const auto largest = *std::max_element(expected.begin(), expected.end());
  good &= largest > 0 && layer.run(kernels, *packed) == expected;
  // No cache holds int8.
  return good && (c.in == ElementType::int8 || layer.run(kernels, *unpacked) == expected);
}

bool test_layers(const Kernels& kernels) {
  Report report("amx layers");
  for (const LayerCase& c : layer_cases())
    report.check(layer_case(kernels, c), c.text());
  return report.end();
}

bool test_network(const Kernels& kernels) {
  Report report("amx network");
  for (const bool int8 : {false, true}) {
    const std::string name = int8 ? "int8" : "bf16";
    const auto amx = run_network(kernels, int8, Zeros::thirds);
    const auto scalar = run_network(choose_kernels("scalar"), int8, Zeros::thirds);
    const auto by_matrix = [](const NetworkRun& run) {
      return std::count(run.algorithms.begin(), run.algorithms.end(), "matrix");
    };
    report.check(by_matrix(amx) && !by_matrix(scalar), name + ": the choice of algorithms");
    report.check(equal(amx, scalar), name + ": values");
  }
  return report.end();
}

}  // namespace

int main() {
  bool has = false;
  for (const std::string& isa : available_isas())
    has |= isa == "amx";
  if (!has) {
    std::printf("skipped: this CPU has no AVX-512 with bfloat16\n");
    return 0;
  }
  const Kernels& kernels = choose_kernels("amx");
  bool good = test_products(kernels, false);
  good &= test_products(kernels, true);
  good &= test_layers(kernels);
  good &= test_network(kernels);
  std::printf("%llu instructions were emulated\n",
              static_cast<unsigned long long>(amx_emulator::executed()));
  return good ? 0 : 1;
}
