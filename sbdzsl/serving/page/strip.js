// The last results as a strip, filters as chips, pause.

import { filterRow } from "./filters.js";
import { button, byId, count, el, show, t, thinned, timeOf } from "./dom.js";
import { changed, current, filtered, on, select, state, step } from "./state.js";
import { goLive, shape } from "./verdict.js";

const STRIP_MS = 200;
/** Frames in the strip; older ones are under "History". */
const MAX_FRAMES = 60;

export function startStrip() {
  const redraw = thinned(draw, STRIP_MS);
  on("results selection filters reviews", redraw);
  on("results selection", () => drawPlaying());
  on("filters results", thinned(() => filterRow(byId("chips")), 1000));
  on("filters", () => filterRow(byId("chips")));
  filterRow(byId("chips"));
  draw();
  drawPlaying();
}

export function togglePause() {
  if (state.isPaused) goLive();
  else {
    const shown = current();
    if (shown) select(shown);
  }
}

export function toggleOnlyNotOk() {
  const { verdicts } = state.filters;
  const isOn = verdicts.size === 3 && !verdicts.has("good");
  state.filters.verdicts = new Set(isOn ? [] : ["defect", "unseen", "error"]);
  changed("filters");
  changed("results");
}

const frames = new Map();

/** Frames are kept from one drawing to the next, so that no picture is asked for twice. */
function draw() {
  const shown = current()?.event_id;
  const list = filtered().slice(0, MAX_FRAMES);
  const wanted = new Set(list.map((one) => one.event_id));
  for (const id of frames.keys()) if (!wanted.has(id)) frames.delete(id);
  const nodes = list.map((result) => {
    if (!frames.has(result.event_id)) frames.set(result.event_id, frame(result));
    const node = frames.get(result.event_id);
    node.setAttribute("aria-selected", String(result.event_id === shown));
    const review = state.reviews.get(result.event_id);
    node.querySelector(".reviewed").textContent = review ? t(`short-${review.decision}`) : "";
    return node;
  });
  const strip = byId("strip");
  strip.setAttribute("aria-label", t("strip"));
  const isSame = nodes.length === strip.children.length && nodes.every((node, at) => node === strip.children[at]);
  if (!isSame) show(strip, nodes.length ? nodes : el("p", { class: "empty" }, t("strip-empty")));
  const selected = strip.querySelector("[aria-selected=true]");
  if (selected && state.isPaused) {
    const { offsetLeft, offsetWidth } = selected;
    if (offsetLeft < strip.scrollLeft || offsetLeft + offsetWidth > strip.scrollLeft + strip.clientWidth) {
      strip.scrollLeft = offsetLeft - strip.clientWidth / 2;
    }
  } else if (!state.isPaused) strip.scrollLeft = 0;
}

function frame(result) {
  const label = `${timeOf(result.at)} ${t(`verdict-${result.verdict}`)} ${result.surface ?? ""} ${result.part_id ?? ""}`;
  const image = el("img", { alt: "", loading: "lazy", src: `${result.thumbnail}?size=120`, onerror: () => image.classList.add("gone") });
  return el(
    "button",
    { type: "button", role: "option", class: `frame-button ${result.verdict}`, "aria-label": label, title: label, data: { event: result.event_id }, onclick: () => select(result) },
    image, el("span", { class: "tag" }, shape(result.verdict), el("span", {}, t(`short-verdict-${result.verdict}`))), el("span", { class: "reviewed" }),
  );
}

function drawPlaying() {
  const newer = state.results.filter((one) => one.event_id > state.pausedAt).length;
  show(
    byId("playing"),
    state.isPaused && el("span", { class: "paused" }, t("paused", { n: count(newer) })),
    el("button", { type: "button", id: "pause", "aria-pressed": String(state.isPaused), onclick: togglePause },
      t(state.isPaused ? "resume" : "pause"), el("kbd", {}, t("key-space"))),
    button("◀", () => step(-1), { "aria-label": t("newer"), title: t("newer") }),
    button("▶", () => step(1), { "aria-label": t("older"), title: t("older") }),
  );
}
