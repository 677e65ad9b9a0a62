// Implements scan.h. Numbers of annexes are those of ITU-T T.81.
#include "images/jpeg/scan.h"

#include <algorithm>

namespace sparsedet::jpeg {
namespace {

uint32_t ceil_div(uint32_t a, uint32_t b) {
  return (a + b - 1) / b;
}

// The order of progressive scans (annex G.1.1.1), of which libjpeg warns.
void note_precision(const Scan& scan) {
  const bool ac = scan.first > 0;
  if (scan.first > scan.last || scan.last > 63 || (scan.first == 0 && scan.last > 0) ||
      scan.low > 13 || (scan.high > 0 && scan.low != scan.high - 1) ||
      (ac && scan.parts.size() > 1))
    throw Damage{"a bad scan header"};
  for (const ScanPart& part : scan.parts) {
    auto& precision = part.channel->precision;
    if (ac && precision[0] < 0) throw Damage{"scans in a wrong order"};
    for (int k = scan.first; k <= scan.last; k++) {
      const bool first = precision[k] < 0;
      if (first ? scan.high != 0 : scan.high == 0 || scan.high != precision[k])
        throw Damage{"scans in a wrong order"};
      precision[k] = static_cast<int8_t>(scan.low);
    }
  }
}

// Two bytes of a scan header: a channel and its tables.
ScanPart read_part(const uint8_t* bytes, Frame& frame, Tables& tables) {
  Channel* channel = nullptr;
  for (Channel& c : frame.channels)
    if (c.id == bytes[0]) channel = &c;
  const int dc = bytes[1] >> 4, ac = bytes[1] & 15;
  if (channel == nullptr || dc > 3 || ac > 3) throw Damage{"a bad scan header"};
  if ((tables.quantisation >> channel->quantisation & 1) == 0)
    throw Damage{"a quantisation table is missing"};
  if (!frame.progressive) {
    if (dc < 2 && !tables.dc[dc].defined) tables.dc[dc].define_standard(dc, true);
    if (ac < 2 && !tables.ac[ac].defined) tables.ac[ac].define_standard(ac, false);
  }
  tables.dc[dc].prepare(false);
  tables.ac[ac].prepare(!frame.progressive);
  return {channel, &tables.dc[dc], &tables.ac[ac]};
}

}  // namespace

void Frame::read(int code, const uint8_t* body, size_t bytes, uint64_t max_pixels) {
  if (!channels.empty()) throw Damage{"a second frame header"};
  if (code == 0xc3) throw Unsupported{"lossless JPEG"};
  if (code >= 0xc9) throw Unsupported{"JPEG with arithmetic coding"};
  if (code > 0xc2) throw Unsupported{"hierarchical JPEG"};
  progressive = code == 0xc2;
  if (bytes < 6) throw Damage{"a bad frame header"};
  if (body[0] != 8) throw Unsupported{"JPEG of other than 8 bits a sample"};
  height = body[1] << 8 | body[2];
  width = body[3] << 8 | body[4];
  const size_t count = body[5];
  if (bytes != 6 + 3 * count || height == 0 || width == 0 || uint64_t{height} * width > max_pixels)
    throw Damage{"a bad frame header"};
  if (count != 1 && count != 3 && count != 4) throw Unsupported{"JPEG of 2 or over 4 channels"};
  for (size_t i = 0; i < count; i++) {
    const uint8_t* c = body + 6 + 3 * i;
    const int c_h = c[1] >> 4, c_v = c[1] & 15;
    if (c_h < 1 || c_h > 4 || c_v < 1 || c_v > 4 || c[2] > 3) throw Damage{"a bad frame header"};
    h = std::max(h, c_h);
    v = std::max(v, c_v);
    for (const Channel& other : channels)
      if (other.id == c[0]) throw Damage{"a bad frame header"};
    channels.push_back({c[0], c_h, c_v, c[2], 0, 0, false, {}, {}});
  }
  for (Channel& c : channels) {
    c.columns = ceil_div(width * c.h, h * 8);
    c.rows = ceil_div(height * c.v, v * 8);
    c.precision.fill(-1);
    if (progressive) c.nonzero.assign(size_t{c.columns} * c.rows, 0);
  }
}

void Tables::read_huffman(const uint8_t* body, size_t bytes) {
  while (bytes > 0) {
    if (bytes < 17) throw Damage{"a bad Huffman table"};
    const int kind = body[0] >> 4, index = body[0] & 15;
    size_t count = 0;
    for (int i = 1; i <= 16; i++)
      count += body[i];
    if (kind > 1 || index > 3 || count > 256 || count > bytes - 17)
      throw Damage{"a bad Huffman table"};
    (kind == 0 ? dc : ac)[index].define(body + 1, body + 17, count, kind == 0);
    body += 17 + count;
    bytes -= 17 + count;
  }
}

void Tables::read_quantisation(const uint8_t* body, size_t bytes) {
  while (bytes > 0) {
    const int kind = body[0] >> 4, index = body[0] & 15;
    const size_t length = kind == 0 ? 65 : 129;  // of 64 numbers of 8 or 16 bits
    if (kind > 1 || index > 3 || length > bytes) throw Damage{"a bad quantisation table"};
    quantisation |= 1u << index;
    body += length;
    bytes -= length;
  }
}

Scan read_scan(const uint8_t* body, size_t bytes, Frame& frame, Tables& tables) {
  const size_t count = bytes > 0 ? body[0] : 0;
  if (count < 1 || count > frame.channels.size() || bytes != 4 + 2 * count)
    throw Damage{"a bad scan header"};
  Scan scan{.parts = {},
            .blocks = {},
            .first = body[bytes - 3],
            .last = body[bytes - 2],
            .high = body[bytes - 1] >> 4,
            .low = body[bytes - 1] & 15,
            .mcus = 0,
            .mcu_columns = 0,
            .odd = false,
            .repeated = false};
  if (!frame.progressive) {  // other values are wrong, but harmless, and libjpeg warns of them
    scan.odd = scan.first != 0 || scan.last != 63 || scan.high != 0 || scan.low != 0;
    scan.first = scan.high = scan.low = 0;
    scan.last = 63;
  }
  for (size_t i = 0; i < count; i++) {
    const ScanPart part = read_part(body + 1 + 2 * i, frame, tables);
    for (const ScanPart& other : scan.parts)
      if (other.channel == part.channel) throw Damage{"a bad scan header"};
    scan.repeated |= !frame.progressive && part.channel->has_dc;
    scan.parts.push_back(part);
    scan.blocks.insert(scan.blocks.end(), count == 1 ? 1 : part.channel->h * part.channel->v, part);
  }
  if (scan.blocks.size() > 10) throw Damage{"a bad scan header"};
  const Channel& only = *scan.parts[0].channel;
  scan.mcu_columns = count == 1 ? only.columns : ceil_div(frame.width, frame.h * 8);
  scan.mcus =
      uint64_t{scan.mcu_columns} * (count == 1 ? only.rows : ceil_div(frame.height, frame.v * 8));
  if (frame.progressive) note_precision(scan);
  for (const ScanPart& part : scan.parts)
    if ((scan.first == 0 && scan.high == 0 && !part.dc->defined) ||
        (scan.last > 0 && !part.ac->defined))
      throw Damage{"a Huffman table is missing"};
  for (const ScanPart& part : scan.parts)
    if (scan.first == 0) part.channel->has_dc = true;
  return scan;
}

}  // namespace sparsedet::jpeg
