// The table of detections, and the classes that can be switched off.

import {colourOf, css} from "./draw.js";
import {byId, element} from "./element.js";

function swatch(label) {
  const made = element("span", {className: "swatch"});
  made.style.backgroundColor = css(colourOf(label));
  return made;
}

// Fill the table; `pick(detection or null)` says which row has the focus.
export function fillTable(shown, selected, pick) {
  const body = byId("detections").tBodies[0];
  const focused = body.contains(document.activeElement);
  body.replaceChildren(...shown.map((one, number) => {
    const row = element("tr", {tabIndex: (selected ? one === selected : number === 0) ? 0 : -1},
      element("td", {}, swatch(one.label), one.name),
      element("td", {className: "number"}, one.score.toFixed(2)),
      element("td", {className: "number"}, `${Math.round(one.x0)}, ${Math.round(one.y0)}`),
      element("td", {className: "number"},
        `${Math.round(one.x1 - one.x0)} × ${Math.round(one.y1 - one.y0)}`));
    row.ariaSelected = String(one === selected);
    row.addEventListener("click", () => pick(one === selected ? null : one));
    row.addEventListener("keydown", (event) => {
      const step = {ArrowDown: 1, ArrowUp: -1, Home: -number, End: shown.length - 1 - number}[event.key];
      if (event.key === "Enter" || event.key === " ") pick(one === selected ? null : one);
      else if (step !== undefined) pick(shown[Math.max(0, Math.min(shown.length - 1, number + step))]);
      else return;
      event.preventDefault();
    });
    return row;
  }));
  byId("nothing").hidden = shown.length > 0;
  const row = body.querySelector('[aria-selected="true"]');
  if (row) row.scrollIntoView({block: "nearest"});
  if (focused) (row || body.querySelector('[tabindex="0"]'))?.focus({preventScroll: true});
}

// A button for each class that is there at this score, and for those that are off.
export function fillClasses(found, off, toggle) {
  const counts = new Map();
  const labels = new Map();
  for (const {name, label} of found) {
    counts.set(name, (counts.get(name) || 0) + 1);
    labels.set(name, label);
  }
  for (const [name, label] of off) labels.set(name, label);
  const names = [...labels.keys()].sort((a, b) => labels.get(a) - labels.get(b));
  const box = byId("classes");
  const focused = document.activeElement?.dataset?.name;
  box.replaceChildren(...names.map((name) => {
    const button = element("button", {type: "button", className: "chip"},
      swatch(labels.get(name)), name,
      element("span", {className: "count"}, String(counts.get(name) || 0)));
    button.dataset.name = name;
    button.ariaPressed = String(!off.has(name));
    button.addEventListener("click", () => toggle(name, labels.get(name)));
    return button;
  }));
  if (focused !== undefined) [...box.children].find((b) => b.dataset.name === focused)?.focus();
}
