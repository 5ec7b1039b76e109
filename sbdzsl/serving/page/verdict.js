// One result, large: verdict, picture with overlay, scores on their bars, and what explains them.

import { picture } from "./api.js";
import { byId, duration, el, fullTime, number, show, svg, t, thinned, timeOf } from "./dom.js";
import { changed, current, on, select, state } from "./state.js";

/** The line may be faster than eyes: the picture changes at most so often, in ms. Counters and lists are never thinned. */
const PICTURE_MS = 200;
const PICTURE_PX = 1200;

const SHAPES = {
  good: () => [svg("rect", { x: 8, y: 8, width: 84, height: 84, class: "outline" }), svg("path", { d: "M28 52l16 16 30-38", class: "line" })],
  defect: () => [svg("rect", { x: 6, y: 6, width: 88, height: 88, class: "solid" }), svg("path", { d: "M32 32l36 36M68 32l-36 36", class: "cut" })],
  unseen: () => [svg("path", { d: "M50 6L96 92H4z", class: "solid" }), svg("path", { d: "M50 38v26M50 74v6", class: "cut" })],
  error: () => [svg("circle", { cx: 50, cy: 50, r: 42, class: "dashed" }), svg("path", { d: "M30 50h40", class: "line" })],
};

/** The shape of a verdict; it says the same as the colour. */
export const shape = (verdict) => svg("svg", { viewBox: "0 0 100 100", class: `shape ${verdict}`, "aria-hidden": "true" }, SHAPES[verdict]());

let shownPicture = { id: null, overlay: null, url: null };

export function startVerdict() {
  const redraw = thinned(draw, PICTURE_MS);
  on("results selection stale filters", redraw);
  on("reviews", redraw);
  draw();
}

export function toggleOverlay() {
  state.overlay = !state.overlay;
  changed("selection");
}

function draw() {
  const result = current();
  const tile = byId("tile");
  if (!result) {
    tile.className = "tile none";
    show(tile, el("span", { class: "word" }, t("nothing-yet")), el("span", { class: "why" }, t("nothing-yet-why")));
    show(byId("picture"));
    show(byId("facts"));
    return;
  }
  const isReview = state.selected !== null;
  tile.className = `tile ${result.verdict}${isReview ? " looking-back" : ""}`;
  tile.dataset.event = result.event_id;
  show(
    tile,
    shape(result.verdict),
    el("span", { class: "word" }, t(`verdict-${result.verdict}`)),
    el("span", { class: "why" }, why(result), isReview && el("strong", { class: "back" }, t("looking-back", { time: timeOf(result.at) }))),
  );
  drawPicture(result);
  show(byId("facts"), bars(result), explanation(result), facts(result));
}

function why(result) {
  if (result.verdict === "error") return el("span", {}, `${result.error_code}: ${result.error_detail}`);
  const near = result.nearest_surfaces.map((name, at) => nearness(result, name, at)).join(", ");
  if (result.verdict === "unseen") return el("span", {}, t("unseen-why", { near }));
  const lines = [el("span", { class: "surface" }, result.surface)];
  if (result.surface_as_expected === false) {
    lines.push(el("strong", { class: "wrong" }, t("not-expected", { surface: result.surface_expected })));
  }
  if (result.verdict === "defect") lines.push(el("span", {}, t("places", { n: result.num_regions })));
  if (result.part_id) lines.push(el("span", {}, t("tile-part", { part: result.part_id })));
  if (result.camera) lines.push(el("span", {}, result.camera));
  return el("span", {}, lines.flatMap((line, at) => (at ? [" · ", line] : [line])));
}

function nearness(result, name, at) {
  const score = result.nearest_scores[at];
  return score === undefined || !(result.unseen_threshold > 0)
    ? name
    : t("nearness", { name, times: (score / result.unseen_threshold).toFixed(2) });
}

function drawPicture(result) {
  const wantsOverlay = state.overlay && result.verdict === "defect";
  const box = byId("picture");
  if (shownPicture.id === result.event_id && shownPicture.overlay === wantsOverlay) return;
  shownPicture = { id: result.event_id, overlay: wantsOverlay };
  const image = el("img", {
    alt: t("picture-alt", { name: result.name, verdict: t(`verdict-${result.verdict}`) }),
    src: `${result.thumbnail}?size=${PICTURE_PX}`,
    onerror: () => image.replaceWith(el("p", { class: "missing" }, t("picture-gone"))),
  });
  const note = el("figcaption", {}, result.verdict === "defect" ? t(wantsOverlay ? "overlay-loading" : "overlay-off") : t(result.verdict === "unseen" ? "not-looked" : "no-overlay"));
  const toggle = el(
    "button",
    { type: "button", id: "overlay", "aria-pressed": String(state.overlay), disabled: result.verdict !== "defect", onclick: toggleOverlay },
    t("overlay"), el("kbd", {}, "O"),
  );
  const original = el("a", { href: result.image, download: result.name.split("/").pop(), class: "button" }, t("original"));
  const frame = el("div", { class: `frame ${result.verdict}` }, image);
  show(box, el("figure", {}, frame, el("div", { class: "under" }, note, toggle, original)));
  if (wantsOverlay) addOverlay(result, frame, note);
}

/** Lay the overlay on the image; it is judged again for that, so it says where anything changed. */
async function addOverlay(result, frame, note) {
  try {
    const { blob, headers } = await picture(result.overlay);
    if (shownPicture.id !== result.event_id || !shownPicture.overlay) return;
    const url = URL.createObjectURL(blob);
    const over = el("img", { class: "over", alt: "", src: url, onload: () => URL.revokeObjectURL(url) });
    frame.append(over);
    const same = headers.get("x-same-bundle") === "true";
    const key = same ? "overlay-on" : headers.get("x-same-verdict") === "true" ? "overlay-other-bundle" : "overlay-other-verdict";
    note.textContent = t(key, { verdict: t(`verdict-${headers.get("x-verdict")}`) });
    note.classList.toggle("warning", !same);
  } catch (error) {
    note.textContent = t("overlay-failed", { why: error.message });
  }
}

function bars(result) {
  const rows = [];
  if (result.defect_score !== null) {
    const { defect_score: score, defect_threshold: limit } = result;
    const reach = Math.max(6, Math.abs(score - limit) * 1.15);
    rows.push(bar(t("defect-score"), score, limit, limit - reach, limit + reach, t("score-margin", { margin: signed(score - limit) })));
  }
  if (result.unseen_score !== null) {
    const { unseen_score: score, unseen_threshold: limit } = result;
    const times = limit > 0 ? t("times-limit", { times: (score / limit).toFixed(2) }) : "";
    rows.push(bar(t("unseen-score"), score, limit, 0, Math.max(limit * 2, score * 1.15), times));
  }
  return el("div", { class: "bars" }, rows);
}

const signed = (value) => `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(2)}`;

/** A score against its threshold: the limit is a line, beyond it the ground is hatched. */
function bar(name, score, limit, low, high, margin) {
  const place = (value) => (100 * (value - low)) / (high - low || 1);
  const isOver = score > limit;
  const at = Math.min(99, Math.max(1, place(score)));
  const drawing = svg(
    "svg",
    { viewBox: "0 0 100 14", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { x: 0, y: 3, width: place(limit), height: 8, class: "allowed" }),
    svg("rect", { x: place(limit), y: 3, width: 100 - place(limit), height: 8, class: "beyond" }),
    svg("rect", { x: Math.min(at, place(limit)), y: 5, width: Math.abs(at - place(limit)), height: 4, class: isOver ? "over" : "under" }),
    svg("line", { x1: place(limit), x2: place(limit), y1: 0, y2: 14, class: "limit", "vector-effect": "non-scaling-stroke" }),
    svg("line", { x1: at, x2: at, y1: 1, y2: 13, class: isOver ? "mark over" : "mark", "vector-effect": "non-scaling-stroke" }),
  );
  const words = t("score-words", { score: number(score), limit: number(limit), margin });
  return el("div", { class: "bar", role: "img", "aria-label": `${name}: ${words}` }, el("b", {}, name), el("span", {}, words), drawing);
}

function explanation(result) {
  if (!result.attributes.length) return null;
  const key = result.extrapolated ? "attributes-extrapolated" : "attributes";
  return el("div", { class: "attributes" }, el("b", {}, t(key)), el("ul", {}, result.attributes.map((word) => el("li", {}, word))));
}

function facts(result) {
  const rows = [
    ["surface", result.verdict === "unseen" ? t("none-known") : result.surface],
    ["part", result.part_id], ["camera", result.camera], ["sequence", result.sequence], ["trigger", result.trigger_id],
    ["file", result.name], ["time", fullTime(result.at)], ["age", duration(Date.now() / 1000 - result.at)],
    ["took", t("took-ms", { total: number(result.total_ms, 0), queue: number(result.queue_ms, 0) })],
    ["probability", result.defect_probability === null ? null : number(result.defect_probability, 3)],
    ["policy", result.threshold_policy], ["bundle", result.bundle], ["event", result.event_id],
  ];
  const shown = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("details", { class: "facts", open: false }, el("summary", {}, t("details")),
    el("dl", {}, shown.map(([name, value]) => [el("dt", {}, t(`fact-${name}`)), el("dd", {}, String(value))])));
}

/** Follow the line again. */
export const goLive = () => select(null);
