// Boxes, masks and labels on an image, with the colours of `sparsedet detect`.

// Source: images/draw.py of the package; Okabe and Ito's palette, each colour in three shades.
const PALETTE = [
  [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0],
  [204, 121, 167],
];
const SHADES = [[0, 0], [255, 0.5], [0, 0.4]];
const MASK_SHARE = 0.45;
const DIMMED = 0.3;  // opacity of what is not selected

export function colourOf(label) {
  const index = label === 1 ? 0 : 1 + (label - 2) % (SHADES.length * PALETTE.length - 1);
  const [towards, share] = SHADES[Math.floor(index / PALETTE.length)];
  return PALETTE[index % PALETTE.length].map((c) => Math.round(c + (towards - c) * share));
}

export function css([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}

function inkOn([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 110 ? "#000" : "#fff";
}

// Fill a canvas. The detections are of one image, best first; `unit` is the width of a line in
// pixels of the canvas; `image` may be missing, where the browser cannot show its format.
export function drawDetections(canvas, image, result, shown, {unit, selected = null}) {
  const context = canvas.getContext("2d");
  const scale = [canvas.width / result.width, canvas.height / result.height];
  context.globalAlpha = 1;
  if (image) {
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
  } else {
    context.fillStyle = "#777";
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  const order = [...shown].reverse();  // the better ones on top
  if (shown.includes(selected)) order.push(...order.splice(order.indexOf(selected), 1));
  for (const one of order) {
    if (!one.segmentation) continue;
    context.globalAlpha = MASK_SHARE * (selected && one !== selected ? DIMMED : 1);
    context.drawImage(maskOf(one), 0, 0, canvas.width, canvas.height);
  }
  const taken = [];
  const labels = new Map(shown.map((one) => [one, placeLabel(context, one, scale, unit, taken)]));
  for (const one of order) {
    context.globalAlpha = selected && one !== selected ? DIMMED : 1;
    drawBox(context, one, scale, one === selected ? 2 * unit : unit);
  }
  for (const one of order) {
    context.globalAlpha = selected && one !== selected ? DIMMED : 1;
    drawLabel(context, one, labels.get(one), unit);
  }
  context.globalAlpha = 1;
}

function corners({x0, y0, x1, y1}, [sx, sy]) {
  return [Math.floor(x0 * sx), Math.floor(y0 * sy), Math.ceil(x1 * sx), Math.ceil(y1 * sy)];
}

// The line lies inside the box, on whole pixels; a dark rim keeps it visible on any ground.
function drawBox(context, one, scale, line) {
  const [x0, y0, x1, y1] = corners(one, scale);
  const width = Math.max(1, Math.round(line));
  const rim = Math.max(1, Math.round(line / 2));
  const frame = (inset, thickness) => context.strokeRect(
    x0 + inset + thickness / 2, y0 + inset + thickness / 2,
    Math.max(1, x1 - x0 - 2 * inset - thickness), Math.max(1, y1 - y0 - 2 * inset - thickness));
  context.lineJoin = "miter";
  context.strokeStyle = "rgb(0 0 0 / 60%)";
  context.lineWidth = width + 2 * rim;
  frame(-rim, width + 2 * rim);
  context.strokeStyle = css(colourOf(one.label));
  context.lineWidth = width;
  frame(0, width);
}

// Where a label hides least of the others: above its box, inside at the top, inside at the bottom,
// below; each at the left end and then at the right end.
function placeLabel(context, one, scale, unit, taken) {
  const [x0, y0, x1, y1] = corners(one, scale);
  const text = `${one.name} ${one.score.toFixed(2)}`;
  context.font = `600 ${Math.round(6.5 * unit)}px system-ui, sans-serif`;
  const width = Math.ceil(context.measureText(text).width + 5 * unit);
  const height = Math.round(9 * unit);
  let best = null;
  let least = Infinity;
  for (const y of [y0 - height, y0, y1 - height, y1]) {
    for (const x of [x0, x1 - width]) {
      const left = Math.max(0, Math.min(x, context.canvas.width - width));
      const top = Math.max(0, Math.min(y, context.canvas.height - height));
      const place = {left, top, width, height, text};
      const hidden = taken.reduce((sum, other) => sum + common(place, other), 0);
      if (hidden < least) [best, least] = [place, hidden];
    }
  }
  taken.push(best);
  return best;
}

function common(a, b) {
  const width = Math.min(a.left + a.width, b.left + b.width) - Math.max(a.left, b.left);
  const height = Math.min(a.top + a.height, b.top + b.height) - Math.max(a.top, b.top);
  return Math.max(0, width) * Math.max(0, height);
}

function drawLabel(context, one, place, unit) {
  const colour = colourOf(one.label);
  context.fillStyle = css(colour);
  context.fillRect(place.left, place.top, place.width, place.height);
  context.fillStyle = inkOn(colour);
  context.font = `600 ${Math.round(6.5 * unit)}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.fillText(place.text, place.left + 2.5 * unit, place.top + place.height / 2 + unit / 4);
}

const masks = new WeakMap();

// A mask as a canvas of the image's size, in the colour of its class.
function maskOf(one) {
  if (!masks.has(one)) masks.set(one, paintMask(one.segmentation, colourOf(one.label)));
  return masks.get(one);
}

function paintMask({size: [height, width], counts}, colour) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  let at = 0;
  runLengths(counts).forEach((length, number) => {
    for (const end = at + length; at < end; at += 1) {  // column by column
      if (number % 2) {
        const pixel = 4 * ((at % height) * width + Math.floor(at / height));
        pixels.data.set([...colour, 255], pixel);
      }
    }
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Source: images/run_lengths.py of the package, which says how COCO writes the lengths of runs.
export function runLengths(text) {
  const lengths = [];
  for (let at = 0; at < text.length;) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = text.charCodeAt(at) - 48;
      value += (code & 31) * 2 ** shift;
      shift += 5;
      at += 1;
    } while (code & 32 && at < text.length);
    if (code & 16) value -= 2 ** shift;
    lengths.push(lengths.length > 2 ? value + lengths[lengths.length - 2] : value);
  }
  return lengths;
}
