// The operator page: starts its parts, in the order in which they need each other.

import { get, onSignedOut, post, remove } from "./api.js";
import { startAlarms } from "./alarms.js";
import { button, byId, el, fullTime, loadTexts, show, t, timeOf } from "./dom.js";
import { notify, showSignIn } from "./forms.js";
import { startGallery } from "./gallery.js";
import { fetchLatest, follow } from "./live.js";
import { startNumbers } from "./numbers.js";
import { ask, DECISIONS, startReview } from "./review.js";
import { changed, current, may, on, state, step } from "./state.js";
import { startStrip, toggleOnlyNotOk, togglePause } from "./strip.js";
import { startVerdict, toggleOverlay } from "./verdict.js";
import { openView, startViews } from "./views.js";

const KEYS = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  " ": togglePause,
  o: toggleOverlay,
  n: toggleOnlyNotOk,
  a: () => openView("alarms"),
  l: () => openView("line"),
  "?": () => byId("help").showModal(),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("input, select, textarea")) return;
  if (event.key === " " && event.target.matches("button, a, summary")) return;
  const decision = DECISIONS[Number(event.key) - 1];
  const act = decision && may("review") && current() ? () => ask(current(), decision) : KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function drawStale() {
  const box = byId("stale");
  const isStale = state.staleSince !== null;
  document.body.classList.toggle("stale", isStale);
  box.hidden = !isStale;
  box.textContent = isStale ? t("stale", { time: timeOf(state.staleSince) }) : "";
}

function drawWho() {
  const { needs_key, name, scopes } = state.session;
  if (needs_key) {
    show(byId("who"), el("span", {}, `${name} (${scopes.join(", ")})`), button(t("sign-out"), async () => {
      await remove("v1/session");
      location.reload();
    }));
    return;
  }
  const input = el("input", { type: "text", id: "name", maxlength: 80, value: localStorage.getItem("name") ?? "", placeholder: t("your-name"), "aria-label": t("your-name") });
  input.addEventListener("change", () => localStorage.setItem("name", input.value.trim()));
  show(byId("who"), input);
}

function drawFoot() {
  const { health, staleSince } = state;
  show(
    byId("foot"),
    el("span", { class: staleSince === null ? "link-on" : "link-off" }, t(staleSince === null ? "connected" : "not-connected")),
    health && el("span", {}, t("health", { bundle: health.bundle ?? health.detail, version: health.version, time: fullTime(health.at) })),
    button(t("keys"), () => byId("help").showModal(), { class: "link" }),
    el("a", { href: "openapi.json" }, "OpenAPI"),
    el("a", { href: "metrics" }, t("metrics")),
  );
}

function drawHelp() {
  const keys = [["← →", "older-newer"], [t("key-space"), "pause-resume"], ["O", "overlay"], ["N", "only-not-ok"], ["1 2 3", "review-keys"], ["A", "alarms"], ["L", "view-line"]];
  show(byId("help"), el("h2", {}, t("keys")), el("dl", {}, keys.map(([key, text]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, t(text))])),
    el("form", { method: "dialog" }, el("button", { class: "main" }, t("close"))));
}

function onGap({ events }) {
  const line = notify(t("gap", { n: events }), "bad", button(t("load-latest"), () => {
    line.remove();
    fetchLatest();
  }));
}

async function signIn(key) {
  state.session = await post("v1/session", { key });
  location.reload();
}

async function start() {
  await loadTexts();
  onSignedOut(() => showSignIn(signIn));
  state.session = await get("v1/session");
  drawHelp();
  drawWho();
  startVerdict();
  startStrip();
  startReview();
  startAlarms();
  startNumbers();
  startGallery();
  startViews();
  on("stale", drawStale);
  on("stale health", drawFoot);
  document.addEventListener("keydown", onKey);
  changed("session");
  await follow(onGap);
}

start().catch((error) => {
  if (error.status !== 401) notify(error.message, "bad");
});
