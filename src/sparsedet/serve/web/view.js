// One model's picture: a canvas that is as fine as the screen, and a line about it.

import {drawDetections} from "./draw.js";
import {element} from "./element.js";

export class View {
  // `pick(detection or null)`: somebody points at an object.
  constructor(model, pick) {
    this.canvas = element("canvas", {role: "img", className: "picture"});
    this.caption = element("figcaption");
    this.figure = element("figure", {}, this.canvas, this.caption);
    this.model = model;
    this.image = null;
    this.result = null;
    this.shown = [];
    this.selected = null;
    this.canvas.addEventListener("click", (event) => pick(this.under(event)));
    this.observer = new ResizeObserver((entries) => this.resized(entries[0]));
    this.observer.observe(this.canvas);
  }

  show(image, result) {
    this.image = image;
    this.result = result;
    this.canvas.style.setProperty("--ratio", result.width / result.height);
  }

  // Draw those of the detections that pass the filters.
  draw(shown, selected) {
    this.shown = shown;
    this.selected = selected;
    this.canvas.setAttribute("aria-label", summary(shown));
    this.paint();
  }

  paint() {
    const {width} = this.canvas.getBoundingClientRect();
    if (!this.result || !width || this.canvas.width < 2) return;
    const unit = this.canvas.width / width * Math.min(2, Math.max(1.5, width / 420));
    const {image, result, selected} = this;
    drawDetections(this.canvas, image, result, this.shown, {unit, selected});
  }

  resized(entry) {
    const pixels = window.devicePixelRatio || 1;
    let width = Math.round(entry.contentRect.width * pixels);
    let height = Math.round(entry.contentRect.height * pixels);
    const exact = entry.devicePixelContentBoxSize?.[0];
    if (exact && Math.abs(exact.inlineSize - width) <= 1) {  // else an emulated screen
      [width, height] = [exact.inlineSize, exact.blockSize];
    }
    if (width === this.canvas.width && height === this.canvas.height) return;
    this.canvas.width = width;
    this.canvas.height = height;
    this.paint();
  }

  // The smallest object below the pointer, or null.
  under(event) {
    const frame = this.canvas.getBoundingClientRect();
    const x = (event.clientX - frame.left) / frame.width * this.result.width;
    const y = (event.clientY - frame.top) / frame.height * this.result.height;
    const area = (one) => (one.x1 - one.x0) * (one.y1 - one.y0);
    return this.shown
      .filter((one) => one.x0 <= x && x <= one.x1 && one.y0 <= y && y <= one.y1)
      .reduce((best, one) => (best && area(best) <= area(one) ? best : one), null);
  }

  // The annotated image in its own size, as a file.
  picture(type) {
    const canvas = document.createElement("canvas");
    const {width, height} = this.result;
    [canvas.width, canvas.height] = [width, height];
    const unit = Math.max(1, Math.sqrt(width * height) / 300);
    drawDetections(canvas, this.image, this.result, this.shown, {unit});
    return new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));
  }

  remove() {
    this.observer.disconnect();
    this.figure.remove();
  }
}

function summary(shown) {
  const counts = new Map();
  for (const {name} of shown) counts.set(name, (counts.get(name) || 0) + 1);
  return [...counts].map(([name, count]) => `${count} ${name}`).join(", ") || "nothing";
}
