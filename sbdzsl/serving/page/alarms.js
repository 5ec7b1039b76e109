// Alarms: the banner that is always there, and the list with what to do, acknowledge and shelve.

import { get, post } from "./api.js";
import { button, byId, duration, el, fullTime, show, svg, t, timeOf } from "./dom.js";
import { askFor, notify } from "./forms.js";
import { refreshAlarms } from "./live.js";
import { may, on, select, signature, state } from "./state.js";
import { openView } from "./views.js";

const PRIORITIES = ["critical", "high", "medium", "low"];
const SHELVE_MINUTES = [15, 60, 240, 480];

const MARKS = {
  critical: () => svg("path", { d: "M50 2L98 50 50 98 2 50z" }),
  high: () => svg("path", { d: "M50 4L97 94H3z" }),
  medium: () => svg("rect", { x: 8, y: 8, width: 84, height: 84 }),
  low: () => svg("circle", { cx: 50, cy: 50, r: 44 }),
};

export function startAlarms() {
  on("alarms session", draw);
  draw();
  setInterval(drawBanner, 10000);
}

function draw() {
  drawBanner();
  drawList();
}

const mark = (priority) => svg("svg", { viewBox: "0 0 100 100", class: `mark ${priority}`, "aria-hidden": "true" }, MARKS[priority]());

function drawBanner() {
  const shown = state.alarms.alarms.filter((one) => one.state !== "shelved");
  const waiting = shown.filter((one) => one.state === "unacknowledged" || one.state === "returned");
  const banner = byId("banner");
  banner.className = waiting.length ? "banner waiting" : "banner";
  const oldest = waiting.reduce((a, b) => (a && a.raised_at <= b.raised_at ? a : b), null);
  const worst = waiting.find((one) => one.state === "unacknowledged") ?? waiting[0];
  show(
    banner,
    el("span", { class: "tally" }, PRIORITIES.map((priority) => {
      const number = shown.filter((one) => one.priority === priority).length;
      return el("span", { class: number ? "some" : "none" }, mark(priority), `${number} ${t(`priority-${priority}`)}`);
    })),
    worst
      ? [el("strong", { class: "first" }, worst.text), el("span", {}, t("oldest", { age: duration(Date.now() / 1000 - oldest.raised_at) }))]
      : el("span", { class: "quiet" }, t(shown.length ? "all-acknowledged" : "no-alarms")),
    button(t("to-alarms"), () => openView("alarms"), { class: "to-alarms" }),
  );
}

function drawList() {
  const { alarms, load } = state.alarms;
  show(
    byId("view-alarms"),
    el("h1", {}, t("alarms")),
    load && el("p", { class: `load ${load.judged}` }, t(`load-${load.judged}`), " ",
      t("load", { hour: load.last_hour, ten: load.last_10_min, fine: load.fine_per_hour, most: load.manageable_per_hour })),
    alarms.length ? alarms.map(row) : el("p", { class: "empty" }, t("no-alarms")),
  );
}

function row(alarm) {
  const state_ = alarm.state;
  const history = [
    t("raised-at", { time: fullTime(alarm.raised_at) }),
    alarm.times > 1 && t("times", { n: alarm.times }),
    alarm.returned_at && t("returned-at", { time: timeOf(alarm.returned_at) }),
    alarm.acknowledged_by && t("acknowledged-by", { who: alarm.acknowledged_by, time: timeOf(alarm.acknowledged_at), comment: alarm.comment }),
    alarm.shelved_by && t("shelved-by", { who: alarm.shelved_by, time: timeOf(alarm.shelved_until), why: alarm.shelved_because }),
  ].filter(Boolean);
  const isOpen = alarm.acknowledged_at === null;
  return el(
    "article", { class: `alarm ${alarm.priority} ${state_}`, data: { alarm: alarm.id } },
    el("header", {}, mark(alarm.priority), el("h2", {}, alarm.text), el("span", { class: "state" }, `${t(`priority-${alarm.priority}`)} · ${t(`state-${state_}`)}`)),
    el("dl", {}, el("dt", {}, t("cause")), el("dd", {}, alarm.cause), el("dt", {}, t("what-to-do")), el("dd", {}, alarm.action)),
    el("p", { class: "history" }, history.join(" · ")),
    el("div", { class: "row" },
      alarm.evidence && button(t("evidence"), () => showEvidence(alarm.evidence)),
      isOpen && button(t("acknowledge"), () => acknowledge(alarm), { class: "main", disabled: !may("review") }),
      state_ !== "shelved" && button(t("shelve"), () => shelve(alarm), { disabled: !may("review") })),
  );
}

async function showEvidence(number) {
  const known = state.results.find((one) => one.event_id === number);
  try {
    select(known ?? (await fetchResult(number)));
    openView("line");
  } catch (error) {
    notify(error.message, "bad");
  }
}

/** One result that the page does not hold any more. */
export async function fetchResult(number) {
  const found = (await get(`v1/verdicts?before=${number + 1}&limit=1`)).verdicts;
  if (found[0]?.event_id !== number) throw new Error(t("event-gone", { n: number }));
  return found[0];
}

async function change(call) {
  try {
    await call();
    await refreshAlarms();
  } catch (error) {
    notify(error.message, "bad");
  }
}

async function acknowledge(alarm) {
  const comment = await askFor(t("acknowledge"), t("acknowledge-ask"), "", { required: false });
  if (comment !== null) await change(() => post(`v1/alarms/${alarm.id}/acknowledge`, { comment, name: signature() }));
}

async function shelve(alarm) {
  const choice = el("select", { "aria-label": t("shelve-for") }, SHELVE_MINUTES.map((n) => el("option", { value: n }, duration(n * 60))));
  const reason = await askFor(t("shelve"), t("shelve-ask"), "", { extra: el("label", {}, t("shelve-for"), choice) });
  if (reason === null) return;
  await change(() => post(`v1/alarms/${alarm.id}/shelve`, { minutes: Number(choice.value), reason, name: signature() }));
}
