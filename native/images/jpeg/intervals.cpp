// Implements intervals.h.
#include "images/jpeg/intervals.h"

#include <algorithm>
#include <vector>

namespace sparsedet::jpeg {

size_t Intervals::read(const Frame& frame, const Scan& scan, size_t header, size_t at,
                       uint32_t interval, bool only) {
  frame_ = &frame;
  scan_ = &scan;
  header_ = header;
  at_ = at;
  only_ = only;
  progress_ = {};
  uint64_t missing = 0;  // intervals that are not in the file
  for (int number = 0; progress_.mcus < scan.mcus; number = (number + 1) & 7) {
    const uint64_t end =
        interval > 0 ? std::min<uint64_t>(scan.mcus, progress_.mcus + interval) : scan.mcus;
    if (missing > 0) {
      missing--;
      fill(end, 0);
    } else {
      one(end);
      const int marker = coded_.marker();
      const bool restart = marker >= 0xd0 && marker <= 0xd7;
      if (end < scan.mcus) {
        if (marker != 0xd0 + number)
          damaged(end, restart ? "a part of its data is missing" : "its data end too early");
        if (restart) at_ += 2;
        missing = restart ? (marker - 0xd0 - number) & 7 : UINT64_MAX;
        if (missing > 0) drop_refinement();
      }
    }
    if (end < scan.mcus) {
      findings_.out.push_back('\xff');
      findings_.out.push_back(static_cast<char>(0xd0 + number));
    }
  }
  return at_;
}

// Up to the MCU `end`, from at_ to the next marker.
void Intervals::one(uint64_t end) {
  at_ = coded_.read(at_);
  progress_.bits = 0;
  try {
    (frame_->progressive ? decode_progressive : decode_sequential)(*scan_, coded_.bits(), end,
                                                                   progress_);
    const size_t bytes = (progress_.bits + 7) / 8;
    findings_.odd(bytes != coded_.size());
    if (findings_.copy) coded_.append_stuffed(bytes, findings_.out);
    const uint8_t last = bytes > 0 ? coded_.bytes()[bytes - 1] : 0,
                  filling = (1 << (bytes * 8 - progress_.bits)) - 1;
    filled_ = last != 0 && (last & filling) == filling;
    // Stray bytes after a scan are common, inside of one they tell of lost blocks.
    if (end < scan_->mcus && !std::all_of(
                                 coded_.bytes() + bytes, coded_.bytes() + coded_.size(),
                                 [](uint8_t byte) { return byte == 0 || byte == 255; }))
      damaged(end, "stray bytes between its data");
  } catch (const Damage& damage) {
    damaged(progress_.mcus, damage.what);
    if (only_ && progress_.mcus == 0) {
      findings_.hopeless = true;
      throw;
    }
    drop_refinement();
    fill(end, progress_.bits);
  }
}

// A damaged progressive scan, unless it is the first of its channels: what came before it is a
// whole image, less sharp.
void Intervals::drop_refinement() {
  if (!frame_->progressive || (scan_->first == 0 && scan_->high == 0)) return;
  findings_.out.resize(header_);
  throw Damage{"a scan is damaged"};
}

void Intervals::damaged(uint64_t mcu, const std::string& what) {
  if (frame_->progressive) {
    findings_.note(what);
    return;
  }
  const int rows =
      8 * (scan_->parts.size() == 1 ? frame_->v / scan_->parts[0].channel->v : frame_->v);
  const uint64_t row = std::min<uint64_t>(mcu / scan_->mcu_columns * rows, frame_->height);
  findings_.note(what + ", at row " + std::to_string(row) + " of " +
                 std::to_string(frame_->height));
}

// Plain blocks up to the MCU `end`, after the first `bits` bits of the data.
void Intervals::fill(uint64_t end, size_t bits) {
  filled_ = false;
  std::vector<Code> mcu;
  for (const ScanPart& part : scan_->blocks) {
    mcu.push_back(part.dc->code_of(0));
    if (scan_->last > 0) mcu.push_back(part.ac->code_of(0));
  }
  for (const Code& code : mcu)
    if (code.length == 0) {
      findings_.hopeless = true;
      throw Damage{"its data cannot be completed"};
    }
  if (findings_.copy) {
    BitWriter to(findings_.out);
    for (size_t i = 0; i < bits; i++)
      to.put(coded_.bytes()[i / 8] >> (7 - i % 8) & 1, 1);
    for (uint64_t done = progress_.mcus; done < end; done++)
      for (const Code& code : mcu)
        to.put(code.value, code.length);
    to.finish();
  }
  progress_.mcus = end;
}

}  // namespace sparsedet::jpeg
