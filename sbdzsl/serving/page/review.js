// Three buttons: good, defect, don't know. A review stands beside the verdict and never changes it.

import { get, post } from "./api.js";
import { byId, el, fullTime, show, t } from "./dom.js";
import { notify } from "./forms.js";
import { changed, current, may, on, select, signature, state } from "./state.js";

export const DECISIONS = ["good", "defect", "unsure"];
const REASONS = {
  good: ["dust", "glare", "edge", "harmless mark", "wrong surface", "other"],
  defect: ["real defect", "wrong surface", "other"],
  unsure: ["other", "dust", "glare", "edge", "harmless mark", "real defect", "wrong surface"],
};

let drawnFor = null;

export function startReview() {
  on("results selection session filters", () => {
    if (current()?.event_id !== drawnFor) draw();
  });
  on("session", draw);
  on("reviews", drawPast);
  draw();
}

function draw() {
  const result = current();
  drawnFor = result?.event_id ?? null;
  if (!result) return show(byId("review"));
  const comment = el("input", { type: "text", id: "review-comment", maxlength: 500, placeholder: t("review-comment"), "aria-label": t("review-comment") });
  show(
    byId("review"),
    el("h2", {}, t("review"), el("small", {}, t("review-of", { part: result.part_id ?? result.event_id }))),
    el("div", { class: "three" }, DECISIONS.map((decision, at) =>
      el("button", { type: "button", class: `decide ${decision}`, disabled: !may("review"), data: { decision }, onclick: () => ask(result, decision) },
        t(`decide-${decision}`), el("kbd", {}, String(at + 1))))),
    el("div", { id: "reasons", class: "reasons" }),
    comment,
    !may("review") && el("p", { class: "hint" }, t("review-needs-scope")),
    el("ul", { id: "past", class: "past" }),
  );
  drawPast();
}

/** Which result a person was at when he pressed the key stays, even if the line goes on meanwhile. */
export function ask(result, decision) {
  if (!state.isPaused) select(result);
  const reasons = REASONS[decision];
  show(byId("reasons"),
    el("span", {}, t("why-decide", { decision: t(`decide-${decision}`), part: result.part_id ?? result.event_id })),
    reasons.map((reason) => el("button", { type: "button", class: "reason", data: { reason }, onclick: () => send(result, decision, reason) }, t(`reason-${reason}`))));
  byId("reasons").querySelector("button").focus();
}

async function send(result, decision, reason) {
  const comment = byId("review-comment")?.value ?? "";
  try {
    const { who } = await post(`v1/verdicts/${result.event_id}/review`, { decision, reason, comment, name: signature() });
    state.reviews.set(result.event_id, { of: result.event_id, decision, reason, comment, who });
    notify(t("review-kept", { decision: t(`decide-${decision}`), part: result.part_id ?? result.event_id }));
    show(byId("reasons"));
    changed("reviews");
  } catch (error) {
    notify(error.message, "bad");
  }
}

async function drawPast() {
  const result = current();
  const list = byId("past");
  if (!result || !list) return;
  let found = [];
  if (state.isPaused || state.reviews.has(result.event_id)) {
    found = (await get(`v1/verdicts/${result.event_id}`).catch(() => ({ reviews: [] }))).reviews;
  }
  if (current()?.event_id !== result.event_id) return;
  show(byId("past"), found.map((one) =>
    el("li", {}, t("reviewed-by", { who: one.who, decision: t(`decide-${one.decision}`), reason: t(`reason-${one.reason}`), time: fullTime(one.at) }), one.comment && ` – ${one.comment}`)));
}
