// The views of the page, one at a time, named in the address after "#" so that they can be linked to.

import { byId, el, show, t } from "./dom.js";

export const VIEWS = ["line", "history", "alarms", "unseen", "try"];
const whenOpened = new Map();

/** Call when a view is opened. */
export const onOpen = (view, call) => whenOpened.set(view, call);

export function openView(view) {
  if (location.hash !== `#${view}`) location.hash = view;
  else present();
}

function present() {
  const view = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "line";
  for (const one of VIEWS) byId(`view-${one}`).hidden = one !== view;
  show(byId("views"), VIEWS.map((one) =>
    el("a", { href: `#${one}`, "aria-current": one === view ? "page" : null }, t(`view-${one}`))));
  document.title = `${t(`view-${view}`)} – sbdzsl`;
  whenOpened.get(view)?.();
}

export function startViews() {
  addEventListener("hashchange", present);
  present();
}
