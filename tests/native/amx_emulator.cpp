#include "amx_emulator.h"

#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernels/amx_permission.h"

namespace amx_emulator {

namespace {

std::atomic<uint64_t> count{0};

// ---------------------------------------------------------------------------------- the registers

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

// What LDTILECFG reads. Source: Intel's manual.
struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);

struct Tile {
  uint8_t bytes[kRows][kRowBytes];
};

// The matrix unit of one thread.
struct Unit {
  bool configured = false;
  Config config = {};
  Tile tiles[kTiles] = {};

  int rows(int tile) const { return config.rows[tile]; }
  int row_bytes(int tile) const { return config.row_bytes[tile]; }
};
thread_local Unit unit;

[[noreturn]] void fail(const char* why) {
  std::fprintf(stderr, "AMX emulator: %s\n", why);
  std::abort();
}

template <class T>
T read(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

void configure(const uint8_t* memory) {
  const auto config = read<Config>(memory);
  if (config.palette != 1 || config.start_row != 0) fail("a configuration of another palette");
  for (int t = 0; t < kTiles; t++)
    if (config.rows[t] > kRows || config.row_bytes[t] > kRowBytes || config.row_bytes[t] % 4)
      fail("the shape of a tile is out of range");
  unit = {};
  unit.config = config;
  unit.configured = true;
}

void check_shape(int tile) {
  if (!unit.configured || !unit.rows(tile)) fail("a tile without a shape");
}

void load(int tile, const uint8_t* from, int64_t stride) {
  check_shape(tile);
  unit.tiles[tile] = {};
  for (int row = 0; row < unit.rows(tile); row++)
    std::memcpy(unit.tiles[tile].bytes[row], from + row * stride, unit.row_bytes(tile));
}

void store(int tile, uint8_t* to, int64_t stride) {
  check_shape(tile);
  for (int row = 0; row < unit.rows(tile); row++)
    std::memcpy(to + row * stride, unit.tiles[tile].bytes[row], unit.row_bytes(tile));
}

// ----------------------------------------------------------------------------------- the products

// sums[m][n] += products of the elements a[m][k] and b[k][n].
struct Operands {
  int sums, a, b;
};

void check(const Operands& t) {
  for (int tile : {t.sums, t.a, t.b})
    check_shape(tile);
  if (t.sums == t.a || t.sums == t.b || t.a == t.b)
    fail("a product of tiles that are not distinct");
  if (unit.rows(t.sums) != unit.rows(t.a) || unit.row_bytes(t.sums) != unit.row_bytes(t.b) ||
      unit.row_bytes(t.a) != 4 * unit.rows(t.b))
    fail("the shapes of a product do not fit");
}

const uint8_t* element(int tile, int row, int column) {
  return unit.tiles[tile].bytes[row] + 4 * column;
}

float without_denormal(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

float bfloat16_at(const uint8_t* at) {
  const uint32_t bits = static_cast<uint32_t>(read<uint16_t>(at)) << 16;
  return without_denormal(read<float>(&bits));
}

// The sums of the even and of the odd products are apart until the end.
void multiply_bfloat16(const Operands& t) {
  check(t);
  const auto add = [](float sum, const uint8_t* x, const uint8_t* y) {
    return without_denormal(std::fma(bfloat16_at(x), bfloat16_at(y), sum));
  };
  for (int m = 0; m < unit.rows(t.sums); m++)
    for (int n = 0; n < unit.row_bytes(t.sums) / 4; n++) {
      float even = 0, odd = 0;
      for (int k = 0; k < unit.rows(t.b); k++) {
        const uint8_t *x = element(t.a, m, k), *y = element(t.b, k, n);
        even = add(even, x, y);
        odd = add(odd, x + 2, y + 2);
      }
      uint8_t* const to = unit.tiles[t.sums].bytes[m] + 4 * n;
      const float sum = without_denormal(read<float>(to)) + without_denormal(even + odd);
      const float flushed = without_denormal(sum);
      std::memcpy(to, &flushed, sizeof flushed);
    }
}

void multiply_int8(const Operands& t, bool a_signed, bool b_signed) {
  check(t);
  const auto value = [](uint8_t byte, bool with_sign) {
    return with_sign ? static_cast<int8_t>(byte) : static_cast<int>(byte);
  };
  for (int m = 0; m < unit.rows(t.sums); m++)
    for (int n = 0; n < unit.row_bytes(t.sums) / 4; n++) {
      uint8_t* const to = unit.tiles[t.sums].bytes[m] + 4 * n;
      auto sum = read<uint32_t>(to);  // wraps
      for (int k = 0; k < unit.rows(t.b); k++)
        for (int i = 0; i < 4; i++)
          sum += static_cast<uint32_t>(value(element(t.a, m, k)[i], a_signed) *
                                       value(element(t.b, k, n)[i], b_signed));
      std::memcpy(to, &sum, sizeof sum);
    }
}

// -------------------------------------------------------------------------------- the instructions

int64_t register_value(const ucontext_t& thread, int number) {
  constexpr int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                           REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return thread.uc_mcontext.gregs[order[number]];
}

// An instruction with a VEX prefix of three bytes in the map 0F38, of 128 bits and W = 0: all of AMX
// are.
struct Instruction {
  const uint8_t* bytes;
  int prefix() const { return bytes[2] & 3; }  // none, 66, F3, F2
  int opcode() const { return bytes[3]; }
  int mode() const { return bytes[4] >> 6; }
  int reg() const { return bytes[4] >> 3 & 7; }
  int rm() const { return bytes[4] & 7; }
  int vvvv() const { return ~bytes[2] >> 3 & 15; }
  int x() const { return bytes[1] & 0x40 ? 0 : 8; }
  int b() const { return bytes[1] & 0x20 ? 0 : 8; }
  bool fits() const { return bytes[0] == 0xc4 && (bytes[1] & 0x1f) == 2 && (bytes[2] & 0x84) == 0; }
};

// A memory operand: base + displacement, and the index with its scale, which AMX takes as a stride.
struct Operand {
  int64_t base = 0, index = 0;
  int length = 5;  // of the whole instruction
  bool has_sib = false;
};

Operand memory_operand(const Instruction& i, const ucontext_t& thread) {
  Operand at;
  bool displacement = i.mode() == 2;
  if (i.rm() == 4) {
    const int sib = i.bytes[at.length++], index = (sib >> 3 & 7) + i.x();
    at.has_sib = true;
    if (index != 4) at.index = register_value(thread, index) * (1 << (sib >> 6));
    if ((sib & 7) == 5 && i.mode() == 0)
      displacement = true;
    else
      at.base = register_value(thread, (sib & 7) + i.b());
  } else if (i.rm() == 5 && i.mode() == 0) {  // relative to the next instruction
    displacement = true;
    at.base = thread.uc_mcontext.gregs[REG_RIP] + at.length + 4;
  } else {
    at.base = register_value(thread, i.rm() + i.b());
  }
  if (i.mode() == 1) at.base += static_cast<int8_t>(i.bytes[at.length++]);
  if (displacement) {
    at.base += read<int32_t>(i.bytes + at.length);
    at.length += 4;
  }
  return at;
}

// Length of the instruction, or 0 where it is none of AMX.
int run_on_registers(const Instruction& i) {
  constexpr int length = 5;
  const Operands operands{i.reg(), i.rm(), i.vvvv()};
  if (i.opcode() == 0x5c && i.prefix() == 2 && i.vvvv() < kTiles) {
    multiply_bfloat16(operands);
  } else if (i.opcode() == 0x5e && i.vvvv() < kTiles) {
    multiply_int8(operands, i.prefix() & 2, i.prefix() & 1);
  } else if (i.opcode() == 0x49 && i.prefix() == 3 && i.rm() == 0) {  // TILEZERO
    check_shape(i.reg());
    unit.tiles[i.reg()] = {};
  } else if (i.opcode() == 0x49 && i.prefix() == 0 && i.reg() == 0 && i.rm() == 0) {
    unit = {};  // TILERELEASE
  } else {
    return 0;
  }
  return length;
}

int run_on_memory(const Instruction& i, const ucontext_t& thread) {
  const Operand at = memory_operand(i, thread);
  auto* memory = reinterpret_cast<uint8_t*>(at.base);
  if (i.opcode() == 0x49 && i.prefix() == 0 && i.reg() == 0)  // LDTILECFG
    configure(memory + at.index);
  else if (i.opcode() == 0x4b && at.has_sib && (i.prefix() == 3 || i.prefix() == 1))
    load(i.reg(), memory, at.index);
  else if (i.opcode() == 0x4b && at.has_sib && i.prefix() == 2)
    store(i.reg(), memory, at.index);
  else
    return 0;
  return at.length;
}

void handle(int, siginfo_t*, void* context) {
  auto& thread = *static_cast<ucontext_t*>(context);
  const Instruction i{reinterpret_cast<const uint8_t*>(thread.uc_mcontext.gregs[REG_RIP])};
  int length = 0;
  if (i.fits()) length = i.mode() == 3 ? run_on_registers(i) : run_on_memory(i, thread);
  if (!length) signal(SIGILL, SIG_DFL);  // the instruction runs again, and ends the program
  thread.uc_mcontext.gregs[REG_RIP] += length;
  count += length > 0;
}

}  // namespace

uint64_t executed() {
  return count;
}

}  // namespace amx_emulator

namespace sparsedet {

const AmxPermission& amx_permission() {
  static const AmxPermission permission = [] {
    struct sigaction action = {};
    action.sa_sigaction = amx_emulator::handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, nullptr);
    return AmxPermission{true, true};
  }();
  return permission;
}

}  // namespace sparsedet
