// Small dialogs and notices that several parts use.

import { button, byId, el, show, t } from "./dom.js";

const NOTICE_MS = 8000;

/** A line that goes away by itself; `kind` is "bad" or "". */
export function notify(text, kind = "", action = null) {
  const line = el("div", { class: `notice ${kind}` }, el("span", {}, text), action,
    button("×", () => line.remove(), { "aria-label": t("close") }));
  byId("notices").append(line);
  if (!action) setTimeout(() => line.remove(), NOTICE_MS);
  return line;
}

/** Ask for one line of text; null where the person gives up. `extra` is more of the form, such as a choice. */
export function askFor(title, question, suggestion = "", { extra = null, required = true } = {}) {
  return new Promise((resolve) => {
    const input = el("input", { type: "text", value: suggestion, maxlength: 500, required, id: "ask-text" });
    const dialog = el(
      "dialog", { class: "ask" },
      el("form", { method: "dialog" },
        el("h2", {}, title), el("label", { for: "ask-text" }, question), input, extra,
        el("div", { class: "row" },
          el("button", { type: "submit", value: "yes", class: "main" }, t("do-it")),
          button(t("cancel"), () => dialog.close("no")))),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? input.value.trim() : null);
    });
    document.body.append(dialog);
    dialog.showModal();
    input.select();
  });
}

/** Copy text; where the browser does not let us, it is marked so that Ctrl-C does. */
export async function copy(node) {
  try {
    await navigator.clipboard.writeText(node.textContent);
    notify(t("copied"));
  } catch {
    getSelection().selectAllChildren(node);
  }
}

/** The sign-in box, for a service that asks for a key. */
export function showSignIn(signIn) {
  const dialog = byId("sign-in");
  if (dialog.open) return;
  const input = el("input", { type: "password", id: "key", autocomplete: "current-password", required: true });
  const wrong = el("p", { class: "wrong", role: "alert" });
  const form = el(
    "form", {
      onsubmit: async (event) => {
        event.preventDefault();
        try {
          await signIn(input.value.trim());
          dialog.close();
        } catch (error) {
          wrong.textContent = error.message;
        }
      },
    },
    el("h2", {}, t("sign-in")), el("label", { for: "key" }, t("sign-in-key")), input, wrong,
    el("button", { type: "submit", class: "main" }, t("sign-in")),
  );
  show(dialog, form);
  dialog.addEventListener("cancel", (event) => event.preventDefault(), { once: false });
  dialog.showModal();
}
