// Damages files in many ways and gives them to the readers of native/images. Built with
// SPARSEDET_SANITIZE it finds reads outside of the data. It also holds check_jpeg to two promises:
// both of its modes say the same, and what it cleans is clean. fuzz_files.py makes files for it.
//
//   fuzz_images SEED COUNT FILE...
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "fuzz_promises.h"
#include "images/unpack.h"

namespace {

using Bytes = std::vector<uint8_t>;

Bytes damage(Bytes data, std::mt19937& random) {
  const unsigned kind = random() % 6;
  for (unsigned times = 1 + random() % 4; times > 0 && data.size() > 4; times--) {
    // Half of the damage is in the headers.
    const auto place = [&] {
      return random() % (random() % 2 ? data.size() : std::min<size_t>(data.size(), 700));
    };
    const size_t at = place(), from = place();
    const size_t room = data.size() - std::max(at, from);
    const size_t length = std::min<size_t>(random() % 200, room);
    const auto begin = data.begin() + static_cast<std::ptrdiff_t>(at);
    if (kind == 0) data[at] ^= 1 << (random() % 8);
    if (kind == 1) data[at] = static_cast<uint8_t>(random());
    if (kind == 2) data.resize(std::max<size_t>(3, at));
    if (kind == 3) data.erase(begin, begin + static_cast<std::ptrdiff_t>(length / 4));
    if (kind == 4)
      data.insert(begin, length / 8, static_cast<uint8_t>(random() % 3 ? random() : 255));
    if (kind == 5) std::memmove(data.data() + at, data.data() + from, length);
  }
  return data;
}

bool promises_hold(const Bytes& data) {
  return ::promises_hold(data.data(), data.size());
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) return 2;
  std::mt19937 random(static_cast<unsigned>(std::atoi(arguments[1])));
  std::vector<Bytes> files;
  for (int i = 3; i < count; i++) {
    std::ifstream file(arguments[i], std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (files.back().empty() || !promises_hold(files.back())) {
      std::fprintf(stderr, "%s: no image\n", arguments[i]);
      return 1;
    }
  }
  for (int i = std::atoi(arguments[2]); i > 0; i--) {
    Bytes bad = damage(files[random() % files.size()], random);
    bad.shrink_to_fit();  // so that the sanitizer sees a read past the end
    if (!promises_hold(bad)) {
      std::fprintf(stderr, "a promise is broken, %d before the end\n", i);
      return 1;
    }
    const size_t expected = random() % 5000;
    const int bits = static_cast<int>(random() % 14);
    if (sparsedet::unpack_tiff_lzw(bad.data(), bad.size(), expected).size() > expected ||
        sparsedet::unpack_gif_lzw(bad.data(), bad.size(), expected, bits).size() > expected ||
        sparsedet::unpack_packbits(bad.data(), bad.size(), expected).size() > expected)
      return 1;
  }
  std::printf("%s damaged files, no fault found\n", arguments[2]);
  return 0;
}
