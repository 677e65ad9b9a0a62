// Two models on one image: objects that both find, and times in turn.

import {detectPatiently} from "./service.js";

const ROUNDS = 5;
const SAME = 0.5;  // intersection over union from which two boxes are of one object

// How many of the detections have one of the same class at the same place among the others; each
// of the others is taken once, by the best.
export function agreement(shown, others) {
  const free = new Set(others);
  let count = 0;
  for (const one of shown) {
    let best = null;
    let most = SAME;
    for (const other of free) {
      const overlap = other.name === one.name ? iou(one, other) : 0;
      if (overlap >= most) [best, most] = [other, overlap];
    }
    if (best) {
      free.delete(best);
      count += 1;
    }
  }
  return count;
}

export function iou(a, b) {
  const width = Math.min(a.x1, b.x1) - Math.max(a.x0, b.x0);
  const height = Math.min(a.y1, b.y1) - Math.max(a.y0, b.y0);
  const both = Math.max(0, width) * Math.max(0, height);
  const area = (box) => (box.x1 - box.x0) * (box.y1 - box.y0);
  return both ? both / (area(a) + area(b) - both) : 0;
}

// Median milliseconds of detection of each model. They run in turn, so that a machine that slows
// down slows all alike; each round begins with another one, and the first does not count.
export async function measure(blob, names, signal, say) {
  const times = names.map(() => []);
  const order = names.map((_, number) => number);
  for (let round = 0; round <= ROUNDS; round += 1) {
    say(Math.max(1, round), ROUNDS);
    for (const number of order) {
      const result = await detectPatiently(blob, names[number], signal);
      if (round) times[number].push(result.times.detect);
    }
    order.push(order.shift());
  }
  return times.map((list) => ({median: median(list), rounds: ROUNDS}));
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
