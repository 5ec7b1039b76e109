// Counters of the shift, and how rates and latencies went: inline SVG, no library.

import { get, post } from "./api.js";
import { byId, count, el, fullTime, number, show, svg, t, timeOf } from "./dom.js";
import { changed, may, on, signature, state, VERDICTS } from "./state.js";
import { askFor, notify } from "./forms.js";

const TREND_MS = 5000;
const WIDTH = 360;
const HEIGHT = 120;

export function startNumbers() {
  on("counters session", drawCounters);
  on("trend", drawPlots);
  drawCounters();
  const look = async () => {
    if (!document.hidden && state.staleSince === null) {
      state.trend = (await get("v1/trend").catch(() => ({ minutes: state.trend }))).minutes;
      changed("trend");
    }
  };
  look();
  setInterval(look, TREND_MS);
}

function drawCounters() {
  const found = state.counters;
  if (!found) return;
  const share = found.inspected ? (100 * found.defect) / found.inspected : null;
  const cells = [
    ["inspected", found.inspected], ...VERDICTS.map((one) => [one, found[one]]),
    ["missed", found.missed], ["late", found.late], ["refused", found.refused],
  ];
  show(
    byId("counters"),
    el("h2", {}, t("shift"), el("small", {}, t("since", { time: fullTime(found.since) }))),
    el("div", { class: "cells" }, cells.map(([name, value]) =>
      el("div", { class: `cell ${name}${value ? " some" : ""}`, data: { counter: name }, title: t(`about-${name}`) },
        el("b", {}, count(value)), el("span", {}, t(`count-${name}`))))),
    el("p", { class: "rates" },
      t("reject-rate", { rate: share === null ? "–" : `${share.toFixed(1)} %` }), " · ",
      t("p99", { p99: number(found.p99_ms, 0), budget: number(found.budget_ms, 0) }),
      found.reset_by && ` · ${t("reset-by", { who: found.reset_by, why: found.reset_because })}`),
    el("button", { type: "button", disabled: !may("review"), onclick: reset }, t("reset")),
  );
}

async function reset() {
  const reason = await askFor(t("reset"), t("reset-ask"), t("reset-reason"));
  if (reason === null) return;
  try {
    state.counters = await post("v1/counters/reset", { reason, name: signature() });
    changed("counters");
  } catch (error) {
    notify(error.message, "bad");
  }
}

function drawPlots() {
  show(byId("plots"), figure(t("plot-rate"), ratePlot()), figure(t("plot-latency"), latencyPlot()));
}

const figure = (title, drawing) => el("figure", { class: "plot" }, el("figcaption", {}, title), drawing);

function axes(top, unit, slots) {
  const first = slots[0]?.at;
  return [
    svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT, class: "axis" }),
    svg("text", { x: 2, y: 11, class: "label" }, `${count(top)} ${unit}`),
    first && svg("text", { x: 2, y: HEIGHT + 14, class: "label" }, timeOf(first).slice(0, 5)),
    first && svg("text", { x: WIDTH - 2, y: HEIGHT + 14, class: "label end" }, t("now")),
  ];
}

const frameOf = (label, kids) =>
  svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + 18}`, role: "img", "aria-label": label, class: "drawing" }, kids);

function ratePlot() {
  const slots = state.trend;
  const top = Math.max(10, ...slots.map((one) => VERDICTS.reduce((sum, name) => sum + one[name], 0)));
  const wide = WIDTH / Math.max(1, slots.length);
  const parts = slots.flatMap((slot, at) => {
    let below = 0;
    return VERDICTS.filter((name) => slot[name]).map((name) => {
      const high = (slot[name] / top) * HEIGHT;
      below += high;
      return svg("rect", { x: at * wide + 0.5, y: HEIGHT - below, width: Math.max(1, wide - 1), height: high, class: `stack ${name}` });
    });
  });
  return frameOf(t("plot-rate"), [parts, axes(top, t("per-minute"), slots)]);
}

function latencyPlot() {
  const slots = state.trend;
  const values = slots.map((one) => one.p99_ms).filter((value) => value !== null);
  const top = Math.max(20, ...values) * 1.1;
  const wide = WIDTH / Math.max(1, slots.length);
  const path = (name) => {
    let pen = "M";
    return slots.map((slot, at) => {
      if (slot[name] === null) {
        pen = "M";
        return "";
      }
      const point = `${pen}${(at + 0.5) * wide} ${HEIGHT - (slot[name] / top) * HEIGHT}`;
      pen = "L";
      // A minute alone between empty ones is a short line, else it would not be seen.
      return `${point}h0.01`;
    }).join("");
  };
  const budget = state.counters?.budget_ms;
  return frameOf(t("plot-latency"), [
    budget < top && svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT - (budget / top) * HEIGHT, y2: HEIGHT - (budget / top) * HEIGHT, class: "budget" }),
    svg("path", { d: path("p99_ms"), class: "p99" }),
    svg("path", { d: path("p50_ms"), class: "p50" }),
    axes(Math.round(top), "ms", slots),
    svg("text", { x: WIDTH - 2, y: 11, class: "label end" }, t("p50-p99")),
  ]);
}
