// Elements, words and numbers. All text goes in by textContent: names of files and cameras are hostile input.

let words = {};

export async function loadTexts() {
  const response = await fetch("page/texts.json");
  words = (await response.json()).page;
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
}

/** The text of a key, with {names} filled in. */
export function t(key, values = {}) {
  const text = words[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

/** The text of a key, or null where there is none. */
export const textOrNull = (key) => words[key] ?? null;

const SVG = "http://www.w3.org/2000/svg";

function fill(node, props, kids) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...kids.flat(Infinity).filter((kid) => kid !== null && kid !== undefined && kid !== false));
  return node;
}

export const el = (tag, props = {}, ...kids) => fill(document.createElement(tag), props, kids);
export const svg = (tag, props = {}, ...kids) => fill(document.createElementNS(SVG, tag), props, kids);
export const byId = (id) => document.getElementById(id);
export const button = (text, onclick, props = {}) => el("button", { type: "button", onclick, ...props }, text); // text or nodes

/** Put new children into a node. */
export function show(node, ...kids) {
  node.replaceChildren(...kids.flat(Infinity).filter((kid) => kid !== null && kid !== undefined && kid !== false));
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const full = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
  hour12: false, timeZoneName: "shortOffset",
});

/** Local time of seconds since 1970: hours to seconds, or the whole with its offset. */
export const timeOf = (seconds) => clock.format(new Date(seconds * 1000));
export const fullTime = (seconds) => full.format(new Date(seconds * 1000));

export const number = (value, digits = 2) =>
  value === null || value === undefined ? "–" : Number(value).toFixed(digits);

export const count = (value) => Number(value).toLocaleString();

export function duration(seconds) {
  if (seconds < 90) return t("seconds", { n: Math.round(seconds) });
  if (seconds < 5400) return t("minutes", { n: Math.round(seconds / 60) });
  return t("hours", { n: (seconds / 3600).toFixed(1) });
}

/** Call at most once in `ms`, with the newest arguments. */
export function thinned(call, ms) {
  let timer = null;
  let last = 0;
  return () => {
    if (timer !== null) return;
    const wait = Math.max(0, last + ms - performance.now());
    timer = setTimeout(() => {
      timer = null;
      last = performance.now();
      call();
    }, wait);
  };
}
