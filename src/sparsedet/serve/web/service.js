// The service that this page comes from: its models, and detections of an image.

const ATTEMPTS = 4;  // of a request that finds the queue full

export class ServiceError extends Error {
  constructor(status, message, retryAfter = 1) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;  // seconds
  }
}

let token = sessionStorage.getItem("token") || "";

export function useToken(text) {
  token = text;
  sessionStorage.setItem("token", text);
}

async function ask(path, settings = {}) {
  const headers = token ? {Authorization: `Bearer ${token}`} : {};
  let answer;
  try {
    answer = await fetch(path, {...settings, headers, cache: "no-store"});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, "The service does not answer. Does it still run?");
  }
  if (answer.ok) return answer;
  let text = `${answer.status} ${answer.statusText}`;
  try {
    text = (await answer.json()).error || text;
  } catch { /* a proxy's page: its status must do */ }
  throw new ServiceError(answer.status, text, Number(answer.headers.get("Retry-After")) || 1);
}

export async function loadModels() {
  return (await ask("models")).json();
}

export async function loadExample(name) {
  return (await ask(`page/${name}`)).blob();
}

// What the service makes of an image file: {width, height, detections, times}, where times are
// milliseconds: decode, detect and write of the service, total from here to here.
export async function detect(blob, model, signal) {
  const start = performance.now();
  const query = new URLSearchParams({model, score: "0"});  // the page's own slider does the rest
  const answer = await ask(`detect?${query}`, {method: "POST", body: blob, signal});
  const result = await answer.json();
  result.times = {...serverTimes(answer.headers.get("Server-Timing")),
                  total: performance.now() - start};
  return result;
}

// The same, again after a while where the queue is full.
export async function detectPatiently(blob, model, signal, waiting = () => {}) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await detect(blob, model, signal);
    } catch (error) {
      if (error.status !== 429 || attempt === ATTEMPTS) throw error;
      waiting(error.retryAfter);
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
    }
  }
}

function serverTimes(header) {
  const times = {};
  for (const part of (header || "").split(",")) {
    const found = /^\s*(\w+);dur=([\d.]+)/.exec(part);
    if (found) times[found[1]] = Number(found[2]);
  }
  return times;
}
