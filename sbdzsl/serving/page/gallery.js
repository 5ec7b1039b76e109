// Three views that are opened on demand: history with export, the unseen in groups, and trying an image.

import { get, inspect } from "./api.js";
import { fetchResult } from "./alarms.js";
import { button, byId, count, el, fullTime, number, show, t, thinned } from "./dom.js";
import { filterRow } from "./filters.js";
import { copy, notify } from "./forms.js";
import { filterQuery, may, on, select, state } from "./state.js";
import { shape } from "./verdict.js";
import { onOpen, openView } from "./views.js";

const PAGE = 100;
const THUMBNAILS_OF_GROUP = 12;

export function startGallery() {
  onOpen("history", () => loadHistory());
  onOpen("unseen", () => drawUnseen(null));
  on("filters", () => {
    if (!byId("view-history").hidden) loadHistory();
  });
  on("results", thinned(() => filterRow(chips), 1000));
  drawTry();
}

// History ---------------------------------------------------------------------------------------------------------

const chips = el("div", { class: "chips" });
let history = [];
let since = "";

async function loadHistory(before = null) {
  const query = filterQuery();
  query.set("limit", PAGE);
  if (since) query.set("since", new Date(since).toISOString());
  if (before) query.set("before", before);
  try {
    const found = (await get(`v1/verdicts?${query}`)).verdicts;
    history = before ? [...history, ...found] : found;
    drawHistory(found.length === PAGE);
  } catch (error) {
    notify(error.message, "bad");
  }
}

function drawHistory(hasMore) {
  const query = filterQuery();
  if (since) query.set("since", new Date(since).toISOString());
  const file = (form) => {
    const asked = new URLSearchParams(query);
    asked.set("format", form);
    return el("a", { class: "button", href: `v1/verdicts/export?${asked}`, download: "" }, t(`export-${form}`));
  };
  filterRow(chips);
  const from = el("input", { type: "datetime-local", id: "since", value: since, onchange: () => { since = from.value; loadHistory(); } });
  const columns = ["time", "verdict", "surface", "camera", "part", "score", "limit", "file"];
  show(
    byId("view-history"),
    el("h1", {}, t("view-history")),
    el("div", { class: "bar-row" }, chips, el("label", { for: "since" }, t("since-label")), from, el("span", { class: "space" }), file("csv"), file("parquet")),
    el("p", { class: "hint" }, t(hasMore ? "history-some" : "history-all", { n: count(history.length) })),
    el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, columns.map((one) => el("th", { scope: "col" }, t(`column-${one}`))))),
      el("tbody", {}, history.map(historyRow)))),
    hasMore && button(t("more"), () => loadHistory(history.at(-1).event_id)),
  );
}

function historyRow(one) {
  const isSeen = one.defect_score !== null;
  return el("tr", { class: one.verdict },
    el("td", {}, button(fullTime(one.at), () => { select(one); openView("line"); }, { class: "link" })),
    el("td", {}, shape(one.verdict), t(`verdict-${one.verdict}`)),
    el("td", {}, one.verdict === "unseen" ? "–" : one.surface ?? "–"), el("td", {}, one.camera ?? "–"), el("td", {}, one.part_id ?? "–"),
    el("td", { class: "n" }, number(isSeen ? one.defect_score : one.unseen_score)),
    el("td", { class: "n" }, number(isSeen ? one.defect_threshold : one.unseen_threshold)),
    el("td", { class: "file" }, one.name));
}

// Unseen ----------------------------------------------------------------------------------------------------------

function drawUnseen(found, isBusy = false) {
  show(
    byId("view-unseen"),
    el("h1", {}, t("view-unseen")),
    el("p", {}, t("unseen-about")),
    button(t(isBusy ? "grouping" : "group-now"), groupNow, { class: "main", id: "group-now", disabled: isBusy || !may("review") }),
    !may("review") && el("p", { class: "hint" }, t("review-needs-scope")),
    found && el("p", { class: "hint" }, t("unseen-counts", { unseen: count(found.num_unseen), read: count(found.num_read), groups: found.groups.length, single: found.single.length, known: found.num_known })),
    found?.groups.map(group),
    found && found.single.length > 0 && el("article", { class: "group" }, el("h2", {}, t("singles")), thumbnails(found.single)),
  );
}

async function groupNow() {
  drawUnseen(null, true);
  try {
    drawUnseen(await get("v1/unseen"));
  } catch (error) {
    drawUnseen(null);
    notify(error.message, "bad");
  }
}

function group(one) {
  return el(
    "article", { class: "group" },
    el("h2", {}, t("group-title", { name: one.name, n: one.events.length })),
    el("p", {}, t("group-nearest", { nearest: one.nearest.join(", ") }), one.attributes.length > 0 && ` · ${one.attributes.join(", ")}`),
    thumbnails(one.events),
    el("p", {}, t("group-about")),
    el("div", { class: "row" }, el("a", { class: "button", href: one.archive, download: "unseen.tar" }, t("group-images"))),
    ...teach(t("enrol"), one.enrol),
    ...teach(t("extend", { surface: one.nearest[0] }), one.extend),
  );
}

function teach(title, words) {
  const command = el("code", {}, words);
  return [
    el("h3", {}, title),
    el("div", { class: "row" }, button(t("copy-command"), () => copy(command))),
    el("pre", { tabindex: 0 }, command),
  ];
}

const thumbnails = (events) =>
  el("div", { class: "thumbs" }, events.slice(0, THUMBNAILS_OF_GROUP).map((id) =>
    el("button", { type: "button", "aria-label": t("open-event", { n: id }), onclick: () => openEvent(id) },
      el("img", { src: `v1/verdicts/${id}/thumbnail?size=160`, alt: "", loading: "lazy" }))),
    events.length > THUMBNAILS_OF_GROUP && el("span", { class: "hint" }, t("and-more", { n: events.length - THUMBNAILS_OF_GROUP })));

async function openEvent(id) {
  try {
    select(state.results.find((one) => one.event_id === id) ?? (await fetchResult(id)));
    openView("line");
  } catch (error) {
    notify(error.message, "bad");
  }
}

// Try an image ----------------------------------------------------------------------------------------------------

const tried = [];

function drawTry() {
  const input = el("input", { type: "file", id: "file", accept: "image/*,.tif,.tiff,.bmp", multiple: true, onchange: () => tryAll([...input.files]) });
  const zone = el("label", { class: "drop", for: "file", id: "drop" }, el("b", {}, t("drop")), el("span", {}, t("drop-about")), input);
  for (const name of ["dragenter", "dragover"]) zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.remove("over"); });
  zone.addEventListener("drop", (event) => tryAll([...event.dataTransfer.files]));
  show(byId("view-try"), el("h1", {}, t("view-try")), zone, el("div", { id: "tried", class: "tried", "aria-live": "polite" }));
}

async function tryAll(files) {
  for (const file of files) {
    const row = el("div", { class: "tried-row" }, el("span", {}, t("trying", { name: file.name })));
    tried.unshift(row);
    show(byId("tried"), tried);
    try {
      const answer = await inspect(file, { name: file.name });
      show(row, shape(answer.verdict), el("strong", {}, t(`verdict-${answer.verdict}`)),
        el("span", {}, answer.error_detail ?? answer.surface ?? ""), el("span", { class: "file" }, file.name),
        answer.event_id && button(t("open"), () => openEvent(answer.event_id)));
      row.classList.add(answer.verdict);
    } catch (error) {
      show(row, el("span", { class: "wrong" }, `${file.name}: ${error.message}`));
    }
  }
}
