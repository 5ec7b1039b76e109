// What the page knows: the last results, what is filtered, which one is shown, who is here. Parts listen for changes.

export const MAX_RESULTS = 300;
export const VERDICTS = ["good", "defect", "unseen", "error"];

export const state = {
  results: [], // summaries, the newest first
  counters: null,
  health: null,
  alarms: { alarms: [], load: null },
  trend: [],
  session: { name: "", scopes: [], needs_key: false },
  selected: null, // event_id of a result that a person looks at; null: the newest
  isPaused: false,
  pausedAt: 0, // newest event when it was paused
  filters: { verdicts: new Set(), surfaces: new Set(), cameras: new Set() },
  overlay: true,
  staleSince: null,
  reviews: new Map(), // event_id -> newest review
};

const listeners = new Map();

/** Hear of changes: "results", "selection", "counters", "alarms", "session", "stale", "filters", "trend", "health". */
export function on(topics, call) {
  for (const topic of topics.split(" ")) {
    if (!listeners.has(topic)) listeners.set(topic, []);
    listeners.get(topic).push(call);
  }
}

export function changed(topic) {
  for (const call of listeners.get(topic) ?? []) call();
}

/** Take results in any order; each is held once. */
export function takeResults(found) {
  const known = new Set(state.results.map((one) => one.event_id));
  const fresh = found.filter((one) => !known.has(one.event_id));
  if (!fresh.length) return;
  state.results = [...fresh, ...state.results].sort((a, b) => b.event_id - a.event_id).slice(0, MAX_RESULTS);
  changed("results");
}

export function matches(result) {
  const { verdicts, surfaces, cameras } = state.filters;
  return (
    (!verdicts.size || verdicts.has(result.verdict)) &&
    (!surfaces.size || surfaces.has(result.surface ?? "")) &&
    (!cameras.size || cameras.has(result.camera ?? ""))
  );
}

export const filtered = () => state.results.filter(matches);

/** The filters as a query string of the service. */
export function filterQuery() {
  const query = new URLSearchParams();
  for (const [name, values] of [
    ["verdict", state.filters.verdicts],
    ["surface", state.filters.surfaces],
    ["camera", state.filters.cameras],
  ]) {
    for (const value of values) query.append(name, value);
  }
  return query;
}

/** The result that is on show: the chosen one, else the newest of the filter, else none. */
export function current() {
  if (state.selected !== null) return state.results.find((one) => one.event_id === state.selected) ?? state.extra ?? null;
  return filtered()[0] ?? null;
}

/** Stay at one result while the line goes on; null follows the line again. */
export function select(result) {
  state.extra = result;
  state.selected = result?.event_id ?? null;
  if (result && !state.isPaused) state.pausedAt = state.results[0]?.event_id ?? 0;
  state.isPaused = result !== null;
  changed("selection");
}

/** Go to the next older (1) or newer (-1) result of the filter. */
export function step(direction) {
  const list = filtered();
  const at = list.findIndex((one) => one.event_id === current()?.event_id);
  const next = list[at + direction];
  if (next) select(next);
}

export const may = (scope) => state.session.scopes.includes(scope);

/** The name that a change is signed with; the key's own where there are keys. */
export const signature = () => (state.session.needs_key ? null : localStorage.getItem("name") || null);
