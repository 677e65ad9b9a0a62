// The page: what is shown, and what people do. The service is asked once for an image and model;
// score and classes only choose among its answers.

import {Camera, hasCamera} from "./camera.js";
import {fillCharts} from "./chart.js";
import {agreement, measure} from "./compare.js";
import {byId, element, save} from "./element.js";
import {detectPatiently, loadExample, loadModels, ServiceError, useToken} from "./service.js";
import {fillClasses, fillTable} from "./table.js";
import {View} from "./view.js";

const camera = new Camera();
let models = [];
let views = [];  // one, or two beside each other
let active = 0;  // whose detections the table shows
let selected = null;
let picture = null;  // {image, blob, name} that is shown
let work = new AbortController();  // of the image that is asked about
const off = new Map();  // classes that are switched off: name -> label

function tell(text, isError = false) {
  const line = byId("message");
  line.textContent = text;
  line.classList.toggle("error", isError);
}

function chosen() {
  const names = [byId("model").value, byId("other").value];
  return [...new Set(names.filter(Boolean))].map((name) => models.find((m) => m.name === name));
}

// --- what is shown

function passing(view) {
  const score = Number(byId("score").value);
  return view.result.detections.filter((one) => one.score >= score && !off.has(one.name));
}

let planned = 0;

function redraw() {
  cancelAnimationFrame(planned);
  planned = requestAnimationFrame(redrawNow);
}

function redrawNow() {
  const seen = views.filter((view) => view.result);
  if (!seen.length) return;
  const score = Number(byId("score").value);
  byId("score-value").textContent = score.toFixed(2);
  const shown = seen.map(passing);
  const view = seen[Math.min(active, seen.length - 1)];
  const rows = shown[seen.indexOf(view)];
  if (!rows.includes(selected)) selected = null;
  seen.forEach((each, number) => each.draw(shown[number], each === view ? selected : null));
  seen.forEach((each, number) => describe(each, shown[number], shown[1 - number]));
  const found = seen.flatMap((each) => each === view ? each.result.detections : [])
    .filter((one) => one.score >= score);
  fillClasses(found, off, toggleClass);
  fillTable(rows, selected, pick);
}

function describe(view, shown, others) {
  const {times} = view.result;
  const part = (name) => (times[name] === undefined ? "" : `${times[name].toFixed(0)} ms ${name}`);
  const parts = [part("detect"), part("decode"), part("total")].filter(Boolean);
  const objects = `${shown.length} ${shown.length === 1 ? "object" : "objects"}`;
  const other = views[1 - views.indexOf(view)];
  const both = others ? `, ${agreement(shown, others)} also found by ${other.model.name}` : "";
  const time = element("span", {className: "quiet"}, parts.join(" · "));
  time.title = "detect: the engine and the resizing before it; decode: from the file to pixels; " +
    "total: from this page and back";
  view.caption.replaceChildren(element("strong", {}, view.model.name),
    ` ${objects}${both}`, element("br"), time);
  if (view.median) {
    view.caption.append(element("span", {className: "median"},
      `${view.median.toFixed(1)} ms detect, median of ${view.rounds}`));
  }
}

function pick(one) {
  selected = one;
  redraw();
}

function toggleClass(name, label) {
  if (!off.delete(name)) off.set(name, label);
  redraw();
}

function arrange() {
  const now = chosen();
  views.forEach((view) => view.remove());
  views = now.map((model, number) => new View(model, (one) => {
    active = number;
    pick(one);
    fillWhose();
  }));
  active = 0;
  byId("views").replaceChildren(...views.map((view) => view.figure));
  byId("views").classList.toggle("pair", views.length > 1);
  fillWhose();
  byId("work").hidden = !fillCharts(byId("charts"), now);
}

function fillWhose() {
  const box = byId("whose");
  box.hidden = views.length < 2;
  if (box.hidden) return;
  const timing = element("button", {type: "button", id: "measure"}, "Measure both");
  timing.addEventListener("click", measureBoth);
  box.replaceChildren(...views.map((view, number) => {
    const button = element("button", {type: "button", className: "tab"}, view.model.name);
    button.ariaPressed = String(number === active);
    button.addEventListener("click", () => {
      active = number;
      selected = null;
      fillWhose();
      redraw();
    });
    return button;
  }), timing);
}

// --- what the service is asked

async function decode(blob) {
  try {
    return await createImageBitmap(blob);
  } catch {
    return null;  // TIFF, HEIF: the service reads more than browsers show
  }
}

function explain(error) {
  if (error.name === "AbortError") return;
  if (error instanceof ServiceError && error.status === 401) {
    byId("token").showModal();
    return;
  }
  tell(error.message, true);
}

function begin() {
  work.abort();
  work = new AbortController();
  document.body.classList.remove("busy");  // of what was aborted
  byId("drop").hidden = true;
  byId("views").hidden = false;
  return work.signal;
}

async function look(blob, name) {
  stopCamera();
  const signal = begin();
  tell("Looking …");
  document.body.classList.add("busy");
  const image = await decode(blob);
  try {
    const waiting = (seconds) => tell(`The service is busy; again in ${seconds} s …`);
    for (const view of views) {  // one after the other: each has the CPU to itself
      const result = await detectPatiently(blob, view.model.name, signal, waiting);
      if (signal.aborted) return;
      view.show(image, result);
      view.median = null;
    }
    picture = {image, blob, name};
    selected = null;
    byId("panel").hidden = false;
    redraw();
    tell(image ? "" : "This browser does not show this format; the boxes are right all the same.");
  } catch (error) {
    if (!picture) {
      byId("drop").hidden = false;
      byId("views").hidden = true;
    }
    explain(error);
  } finally {
    if (!signal.aborted) document.body.classList.remove("busy");
  }
}

async function measureBoth() {
  if (!picture || camera.on) return;
  const signal = begin();
  byId("measure").disabled = true;
  try {
    const say = (round, rounds) => tell(`Measuring in turn: round ${round} of ${rounds} …`);
    const medians = await measure(picture.blob, views.map((view) => view.model.name), signal, say);
    medians.forEach(({median, rounds}, number) => Object.assign(views[number], {median, rounds}));
    const [first, second] = medians.map(({median}) => median);
    const [quick, slow] = first <= second ? [0, 1] : [1, 0];
    const ratio = Math.max(first, second) / Math.min(first, second);
    tell(`${views[quick].model.name} is ${ratio.toFixed(2)} times as fast as ` +
      `${views[slow].model.name} on this image.`);
    redraw();
  } catch (error) {
    explain(error);
  } finally {
    byId("measure").disabled = false;
  }
}

// --- the webcam

function stopCamera() {
  if (!camera.on) return;
  work.abort();
  camera.stop();
  byId("webcam").ariaPressed = "false";
  views.forEach((view) => view.figure.classList.remove("aside"));
}

async function startCamera() {
  const signal = begin();
  try {
    await camera.start();
  } catch (error) {
    byId("drop").hidden = Boolean(picture);
    byId("views").hidden = !picture;
    tell(error.name === "NotAllowedError" ? "The browser does not let this page use the webcam."
      : `No webcam: ${error.message}`, true);
    return;
  }
  byId("webcam").ariaPressed = "true";
  byId("panel").hidden = false;
  const [view, ...rest] = views;
  rest.forEach((each) => each.figure.classList.add("aside"));
  let images = 0;
  const start = performance.now();
  while (!signal.aborted) {
    try {
      const {image, blob} = await camera.take();
      if (signal.aborted) return;
      const result = await detectPatiently(blob, view.model.name, signal);
      if (signal.aborted) return;
      view.show(image, result);
      picture = {image, blob, name: "webcam.jpg"};
      images += 1;
      tell(`Live: ${(1000 * images / (performance.now() - start)).toFixed(1)} images a second`);
      redraw();
    } catch (error) {
      stopCamera();
      explain(error);
    }
    await new Promise(requestAnimationFrame);
  }
}

function toggleCamera() {
  if (!hasCamera) return;
  if (camera.on) {
    stopCamera();
    tell("");
  } else {
    startCamera();
  }
}

// --- files to keep

const stem = () => (picture.name || "image").replace(/\.[^.]*$/, "");

async function savePicture() {
  const view = views[active];
  if (!view?.result) return;
  const type = picture.blob.type === "image/jpeg" ? "image/jpeg" : "image/png";
  const suffix = type === "image/jpeg" ? "jpg" : "png";
  save(await view.picture(type), `${stem()}_detected.${suffix}`);
}

function saveJson() {
  const view = views[active];
  if (!view?.result) return;
  const {width, height} = view.result;
  const content = {photo: picture.name, width, height, detections: passing(view)};
  const text = `${JSON.stringify(content)}\n`;
  save(new Blob([text], {type: "application/json"}), `${stem()}.json`);
}

// --- what people do

function take(files) {
  const file = [...files].find((one) => one.type.startsWith("image/") || one.name);
  if (file) look(file, file.name || "pasted.png");
}

function fillModels() {
  const options = () => models.map((model) => element("option", {value: model.name}, model.name));
  byId("model").replaceChildren(...options());
  byId("other").replaceChildren(element("option", {value: ""}, "nothing"), ...options());
  byId("beside").hidden = models.length < 2;
  byId("score").min = Math.max(0.01, Math.min(...models.map((model) => model.least_score)));
}

async function open() {
  try {
    ({models} = await loadModels());
    fillModels();
    arrange();
  } catch (error) {
    explain(error);
  }
}

function again() {
  const before = picture;
  arrange();
  selected = null;
  if (before && !camera.on) look(before.blob, before.name);
  else if (camera.on) { stopCamera(); startCamera(); }
}

function listen() {
  for (const [button, input] of [["open", "file"], ["drop", "file"], ["photograph", "photo"]]) {
    byId(button).addEventListener("click", () => byId(input).click());
  }
  for (const id of ["file", "photo"]) {
    byId(id).addEventListener("change", (event) => {
      take(event.target.files);
      event.target.value = "";
    });
  }
  for (const button of document.querySelectorAll("[data-example]")) {
    button.addEventListener("click", async () => {
      const name = button.dataset.example;
      try {
        look(await loadExample(name), name);
      } catch (error) {
        explain(error);
      }
    });
  }
  byId("webcam").addEventListener("click", toggleCamera);
  if (!hasCamera) {
    byId("webcam").disabled = true;
    byId("webcam").title = "Browsers give the webcam to pages of this machine, or by https";
  }
  byId("score").addEventListener("input", redraw);
  byId("model").addEventListener("change", again);
  byId("other").addEventListener("change", again);
  byId("all").addEventListener("click", () => { off.clear(); redraw(); });
  byId("none").addEventListener("click", () => {
    for (const {name, label} of views[active].result?.detections || []) off.set(name, label);
    redraw();
  });
  byId("save-picture").addEventListener("click", savePicture);
  byId("save-json").addEventListener("click", saveJson);
  byId("token").addEventListener("close", () => { useToken(byId("token-value").value); open(); });
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    take(event.dataTransfer.files);
  });
  document.addEventListener("keydown", onKey);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("token").open) return;
  if (event.target.matches("input:not([type=range]), select, textarea")) return;
  const actions = {
    o: () => byId("file").click(), w: toggleCamera, p: savePicture, j: saveJson,
    Escape: () => { if (camera.on) toggleCamera(); else pick(null); },
  };
  actions[event.key]?.();
}

listen();
open();
