// Filters as chips: verdicts, surfaces, cameras. The strip and the history share them.

import { button, el, show, t } from "./dom.js";
import { changed, state, VERDICTS } from "./state.js";

function toggled(set, value) {
  if (set.has(value)) set.delete(value);
  else set.add(value);
  changed("filters");
}

const chip = (text, isOn, onclick, kind) =>
  button(text, onclick, { class: `chip ${kind}`, "aria-pressed": String(isOn), data: { chip: text } });

function known(name) {
  const values = new Set(state.results.map((one) => one[name] ?? ""));
  for (const value of state.filters[`${name}s`]) values.add(value);
  return [...values].filter((value) => value !== "").sort();
}

/** Draw the chips into a node. */
export function filterRow(node) {
  const { verdicts, surfaces, cameras } = state.filters;
  const onlyNotOk = verdicts.size === 3 && !verdicts.has("good");
  const focused = document.activeElement?.dataset?.chip;
  show(
    node,
    button([t("only-not-ok"), el("kbd", {}, "N")], () => {
      state.filters.verdicts = new Set(onlyNotOk ? [] : ["defect", "unseen", "error"]);
      changed("filters");
    }, { class: "chip only", "aria-pressed": String(onlyNotOk), data: { chip: "only" } }),
    VERDICTS.map((one) => chip(t(`verdict-${one}`), verdicts.has(one), () => toggled(verdicts, one), one)),
    known("surface").map((one) => chip(one, surfaces.has(one), () => toggled(surfaces, one), "surface")),
    known("camera").map((one) => chip(one, cameras.has(one), () => toggled(cameras, one), "camera")),
    verdicts.size + surfaces.size + cameras.size > 0 &&
      button(t("clear-filters"), () => {
        state.filters = { verdicts: new Set(), surfaces: new Set(), cameras: new Set() };
        changed("filters");
      }, { class: "chip clear", data: { chip: "clear" } }),
  );
  if (focused && node.parentElement) {
    for (const one of node.querySelectorAll("[data-chip]")) if (one.dataset.chip === focused) one.focus();
  }
}
