// The one stream of events. Several tabs share it: the one that holds the lock reads, the others listen to it.

import { get } from "./api.js";
import { changed, state, takeResults } from "./state.js";

const KINDS = ["verdict", "alarm", "review", "counter", "health", "gap"];
/** A page that has heard nothing for two heartbeats is stale. */
const BEATS = 2;
/** Before a stream that was refused is tried again, in ms. */
const RETRY_MS = 3000;

const channel = new BroadcastChannel("sbdzsl-events");
let heardAt = Date.now();
let heartbeat = 10;
let onGap = () => {};
let lastId = 0;

/** Begin to follow. `gap` is called with what was left out of a replay. */
export async function follow(gap) {
  onGap = gap;
  channel.onmessage = ({ data }) => (data.kind === "lost" ? lost() : take(data.kind, data.data));
  setInterval(look, 1000);
  await fetchLatest();
  // Locks exist on https and on this machine alone; elsewhere each tab reads for itself.
  if (navigator.locks) navigator.locks.request("sbdzsl-stream", () => new Promise(() => open(true)));
  else open(false);
}

/** The last results, as the journal has them. */
export async function fetchLatest() {
  const found = await get("v1/verdicts?limit=300");
  lastId = Math.max(lastId, found.last_id);
  takeResults(found.verdicts);
  state.alarms = await get("v1/alarms");
  changed("alarms");
}

function open(isShared) {
  const source = new EventSource(`v1/events?after=${lastId}`);
  for (const kind of KINDS) {
    source.addEventListener(kind, (message) => {
      const data = JSON.parse(message.data);
      if (isShared) channel.postMessage({ kind, data });
      take(kind, data);
    });
  }
  source.onerror = () => {
    if (isShared) channel.postMessage({ kind: "lost" });
    lost();
    if (source.readyState !== EventSource.CLOSED) return; // it comes back by itself
    source.close();
    setTimeout(async () => {
      await get("v1/session").catch(() => null); // asks for a key where that is what is wrong
      open(isShared);
    }, RETRY_MS);
  };
}

function lost() {
  if (state.staleSince === null) {
    state.staleSince = heardAt / 1000;
    changed("stale");
  }
}

function look() {
  if (Date.now() - heardAt > BEATS * heartbeat * 1000) lost();
}

function take(kind, data) {
  heardAt = Date.now();
  if (state.staleSince !== null) {
    state.staleSince = null;
    changed("stale");
  }
  lastId = Math.max(lastId, data.event_id ?? 0);
  if (kind === "verdict") takeResults([data]);
  else if (kind === "counter") {
    state.counters = data;
    changed("counters");
  } else if (kind === "health") {
    heartbeat = data.heartbeat_s;
    state.health = data;
    changed("health");
  } else if (kind === "alarm") refreshAlarms();
  else if (kind === "review") {
    state.reviews.set(data.of, data);
    changed("reviews");
  } else if (kind === "gap") onGap(data);
}

let isFetching = false;
let isWanted = false;

/** The list of alarms as it is now; many changes at once are one request. */
export async function refreshAlarms() {
  isWanted = true;
  if (isFetching) return;
  isFetching = true;
  try {
    while (isWanted) {
      isWanted = false;
      state.alarms = await get("v1/alarms");
      changed("alarms");
    }
  } finally {
    isFetching = false;
  }
}
