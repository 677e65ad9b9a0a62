// The layer chart: the work of each layer of a model, and what zeros leave of it.

import {element} from "./element.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100;

function drawn(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const giga = (count) => (count / 1e9 < 0.1 ? (count / 1e9).toFixed(3) : (count / 1e9).toFixed(2));
const percent = (share) => `${(100 * share).toFixed(1)} %`;

// Charts of models, all on one scale. A model that is a graph file has no layers to count.
export function fillCharts(box, models) {
  const counted = models.filter((model) => model.layers);
  const most = Math.max(...counted.flatMap((model) => model.layers.map((layer) => layer.macs)), 1);
  box.replaceChildren(...counted.map((model) => chart(model, most)));
  return counted.length > 0;
}

function chart(model, most) {
  const layers = model.layers.filter((layer) => layer.macs);  // not batch norms
  const columns = layers.map((layer, number) => {
    const bar = (count, kind) => drawn("rect", {
      x: 10 * number + 1, width: 8, class: kind,
      y: HEIGHT * (1 - count / most), height: HEIGHT * count / most,
    });
    const title = drawn("title", {});
    title.textContent = `${layer.name}: ${percent(layer.zeros / layer.parameters)} zeros, ` +
      `${giga(layer.sparse_macs)} of ${giga(layer.macs)} GMACs remain`;
    const whole = drawn("rect", {x: 10 * number, y: 0, width: 10, height: HEIGHT, class: "hit"});
    return drawn("g", {}, whole, bar(layer.macs, "all"), bar(layer.sparse_macs, "rest"), title);
  });
  const picture = drawn("svg", {
    viewBox: `0 0 ${10 * layers.length} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `Work of the ${layers.length} layers of ${model.name}`,
  }, ...columns);
  return element("figure", {},
    element("figcaption", {}, element("strong", {}, model.name), ` ${words(model)}`),
    element("div", {className: "plot"},
      element("span", {className: "most quiet"}, `${giga(most)} GMACs`), picture),
    stages(layers), table(layers));
}

function words(model) {
  const share = model.zeros / model.parameters;
  return `${percent(share)} of its weights are zero; ${model.sparse_gflops.toFixed(1)} of ` +
    `${model.gflops.toFixed(1)} GFLOPs remain (${model.regions} regions)`;
}

// The first parts of the layers' names, below their columns.
function stages(layers) {
  const groups = [];
  for (const {name} of layers) {
    const first = name.split(".")[0];
    if (groups.length && groups[groups.length - 1].first === first) {
      groups[groups.length - 1].count += 1;
    } else {
      groups.push({first, count: 1});
    }
  }
  const box = element("div", {className: "stages quiet", ariaHidden: "true"});
  for (const {first, count} of groups) {
    const label = element("span", {title: first}, count > 2 ? first : "");
    label.style.flexGrow = count;
    box.append(label);
  }
  return box;
}

function table(layers) {
  const head = ["Layer", "Parameters", "Zeros", "GMACs", "remain"];
  return element("details", {}, element("summary", {}, "As a table"),
    element("div", {className: "scroll"}, element("table", {},
      element("thead", {}, element("tr", {},
        ...head.map((text, column) => element("th", {className: column ? "number" : ""}, text)))),
      element("tbody", {}, ...layers.map((layer) => element("tr", {},
        element("td", {}, layer.name),
        ...[layer.parameters.toLocaleString("en"), percent(layer.zeros / layer.parameters),
          giga(layer.macs), giga(layer.sparse_macs)]
          .map((text) => element("td", {className: "number"}, text))))))));
}
