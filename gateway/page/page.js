// The live page: what the stream tells, what the poll adds, and what an operator asks.

import { ask } from "./ask.js";
import * as charge from "./charge.js";
import { Chart, gauge } from "./draw.js";
import { Sessions } from "./sessions.js";
import { Stream } from "./stream.js";
import { clock, kw, percent, progressOf, SOURCES, STOPS } from "./words.js";

const $ = (id) => document.getElementById(id);

// The load view comes once a second. After so long without, what is shown is old.
const OLD_MS = 3000;
const POLL_MS = 1000;
const MOST_NEWS = 80;

const cards = new Map(); // substation id, or its address before it has reported: {element, substation}
const chart = new Chart($("chart"), $("chart-top"), $("chart-since"));
let heardAt = null, listedAt = null, lost = "", told = "";

// --- what happens ------------------------------------------------------------------------------------

// Newest first. Not a live region: who listens to it would hear nothing else.
function news(at, text, detail = "", kind = "") {
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.dateTime = new Date(at).toISOString();
  time.textContent = clock(at);
  const line = document.createElement("span");
  line.className = kind;
  line.textContent = text;
  item.append(time, line);
  if (detail) {
    const more = document.createElement("span");
    more.className = "muted";
    more.textContent = detail;
    item.append(more);
  }
  $("news").prepend(item);
  if ($("news").childElementCount > MOST_NEWS) $("news").lastElementChild.remove();
}

const say = (text) => ($("said").textContent = text);

const heard = {
  substations: ({ substations }) => showSubstations(substations),
  placed({ at, vehicle_id, placement }) {
    const { substation_id, utilisation_after, eligible, tried } = placement;
    const asked = tried > 1 ? `, ${tried} asked` : "";
    news(at, `${vehicle_id} → ${substation_id}`, `${substation_id}: ${percent(utilisation_after)} after, ${eligible} eligible${asked}`);
  },
  refused: ({ at, vehicle_id, request_id, problem }) =>
    news(at, `${vehicle_id ?? request_id} refused`, `${problem.title} (${problem.reason})`, "bad"),
  in_doubt: ({ at, vehicle_id, request_id, problem }) =>
    news(at, `${vehicle_id ?? request_id}: not known whether it charges`, problem.reason, "bad"),
  gap: ({ missed }) => news(Date.now(), `${missed ?? "Some"} events were missed here`, "", "bad"),
};

// --- substations -------------------------------------------------------------------------------------

const silent = (substation) => substation.state !== "FRESH";

function showSubstations(substations) {
  heardAt = performance.now();
  lost = "";
  $("nothing").hidden = substations.length > 0;
  const keys = new Set(substations.map(keyOf));
  for (const [key, card] of cards) {
    if (keys.has(key)) continue;
    card.element.remove();
    cards.delete(key);
  }
  for (const substation of substations) show(substation);
  if (keys.size + 1 !== $("allowed").length) offer([...keys].sort());
  showTotal(substations);
  freshen();
}

const keyOf = (substation) => substation.substation_id ?? substation.address;

function offer(ids) {
  const chosen = $("allowed").value;
  $("allowed").length = 1;
  for (const id of ids) $("allowed").add(new Option(id));
  $("allowed").value = ids.includes(chosen) ? chosen : "";
}

function show(substation) {
  const id = keyOf(substation);
  const card = cards.get(id) ?? add(id);
  if (card.substation) tellChanges(id, card.substation, substation);
  card.substation = substation;
  const { element } = card;
  const report = substation.report ?? {};
  gauge(element.querySelector(".gauge"), report, id);
  const figures = [report.measured_kw, report.granted_kw, report.demand_kw, report.limit_power_kw];
  element.querySelectorAll("dd").forEach((figure, at) => (figure.textContent = kw(figures[at])));
  element.querySelector(".note").textContent = note(report);
  element.querySelector(".clear").hidden = !report.limit_source;
  const drain = element.querySelector(".drain");
  drain.textContent = drains(report) ? "Undrain…" : "Drain…";
  drain.setAttribute("aria-label", drains(report) ? `Undrain ${id}` : `Drain ${id}`);
  const heardOf = silent(substation) ? " when last heard" : "";
  element.querySelector(".more").textContent = report.active_sessions === undefined ? "" : `${cars(report.active_sessions)}, ${plugs(report.free_charge_points)} free${heardOf}`;
}

const cars = (count) => `${count} ${count === 1 ? "car" : "cars"}`;
const plugs = (count) => `${count} ${count === 1 ? "plug" : "plugs"}`;
const drains = (report) => report.not_accepting_reason === "DRAINING";

function note(report) {
  const parts = [];
  if (report.limit_source) parts.push(`by ${SOURCES[report.limit_source]}, rated ${kw(report.rated_power_kw)}`);
  if (report.accepting === false) parts.push(drains(report) ? "draining: takes no new cars" : `takes no new cars (${report.not_accepting_reason})`);
  return parts.join("; ");
}

function add(id) {
  const element = $("substation").content.cloneNode(true).firstElementChild;
  const title = element.querySelector("h3");
  title.id = `substation-${id}`;
  title.textContent = id;
  element.setAttribute("aria-labelledby", title.id);
  element.querySelector(".sessions").setAttribute("aria-label", `Sessions at ${id}`);
  // A hundred sessions have a hundred buttons to tab through.
  const [skip, more] = [element.querySelector(".skip"), element.querySelector(".more")];
  [more.id, skip.href, skip.textContent] = [`after-${id}`, `#after-${id}`, `Skip the sessions at ${id}`];
  const card = { element, substation: null };
  const on = (name, action) => {
    const button = element.querySelector(`.${name}`);
    button.onclick = () => action(id, card.substation.report ?? {});
    return button;
  };
  // In a list of all buttons, as screen readers give it, they must be told apart.
  on("cut", askLimit).setAttribute("aria-label", `Limit ${id}`);
  on("clear", askClear).setAttribute("aria-label", `Clear limit of ${id}`);
  on("drain", askDrain);
  cards.set(id, card);
  const after = [...cards.keys()].sort().indexOf(id);
  $("substations").insertBefore(element, $("substations").children[after] ?? null);
  return card;
}

// Also what other gateways and operators did shows here.
function tellChanges(id, before, after) {
  const now = Date.now();
  const [old, report] = [before.report ?? {}, after.report ?? {}];
  if (old.limit_power_kw !== undefined && old.limit_power_kw !== report.limit_power_kw) {
    const cut = report.limit_power_kw < old.limit_power_kw;
    const source = SOURCES[report.limit_source ?? old.limit_source] ?? "";
    news(now, `${id}: limit ${kw(old.limit_power_kw)} → ${kw(report.limit_power_kw)}`, source, cut ? "cut" : "");
    poll(); // whose power it takes
  }
  if (drains(old) !== drains(report)) news(now, drains(report) ? `${id} drains: no new cars` : `${id} takes cars again`);
  if (old.epoch && report.epoch > old.epoch) news(now, `${id} was started again`, "with the sessions it had");
  if (silent(before) !== silent(after)) {
    const text = silent(after) ? `${id} is silent` : `${id} reports again`;
    news(now, text, "", silent(after) ? "bad" : "");
    say(`Substation ${text}`);
  }
}

// A substation that is silent draws what nobody knows: it is left out, and that is said.
function showTotal(substations) {
  const known = substations.filter((each) => !silent(each)).map((each) => each.report);
  const sum = (name) => known.reduce((total, report) => total + (report[name] ?? 0), 0);
  const total = { measured: sum("measured_kw"), granted: sum("granted_kw"), limit: sum("limit_power_kw") };
  for (const name of ["measured", "granted", "limit"]) $(`total-${name}`).textContent = known.length ? kw(total[name]) : "–";
  $("total-demand").textContent = known.length ? kw(sum("demand_kw")) : "–";
  $("total-cars").textContent = known.length ? sum("active_sessions") : "–";
  const missing = substations.filter(silent).map(keyOf);
  const scale = known[0]?.time_scale ?? 1;
  const parts = [missing.length ? `without ${missing.join(", ")}: silent` : ""];
  if (sessions.partial) parts.push(`${sessions.shown} sessions are listed, not all`);
  if (scale !== 1) parts.push(`simulated time runs ${scale} times as fast`);
  $("total-note").textContent = parts.filter(Boolean).join("; ");
  showTotal.last = known.length ? total : null;
}

// --- how old it is -----------------------------------------------------------------------------------

const secondsSince = (at) => (performance.now() - at) / 1000;
const old = () => heardAt !== null && performance.now() - heardAt > OLD_MS;

function freshen() {
  const stale = old();
  const state = lost ? "lost" : stale ? "old" : heardAt === null ? "starting" : "live";
  $("stream").dataset.state = state === "old" ? "lost" : state;
  $("stream").textContent = { lost: "connection lost", old: "old", starting: "connecting", live: "live" }[state];
  document.body.classList.toggle("old", stale);
  const since = heardAt === null ? "" : ` What you see is ${Math.floor(secondsSince(heardAt))} s old.`;
  const banner = lost ? `The stream is lost, trying again: ${lost}.${since}` : stale ? `No news from the gateway.${since}` : sessionsOld();
  // Read out once, and not again for each second.
  const kind = banner.replace(/\d+/g, "");
  if (kind !== told) say(banner || "The stream is back.");
  told = kind;
  $("banner").hidden = !banner;
  $("banner").textContent = banner;
  for (const { element, substation } of cards.values()) age(element, substation);
}

function sessionsOld() {
  if (listedAt === null || document.hidden || performance.now() - listedAt < OLD_MS + POLL_MS) return "";
  return `The list of sessions is ${Math.floor(secondsSince(listedAt))} s old.`;
}

function age(element, substation) {
  const pill = element.querySelector(".pill");
  const quiet = silent(substation);
  const reported = parseFloat(substation.report_age) + secondsSince(heardAt);
  element.classList.toggle("silent", quiet);
  pill.dataset.state = quiet || old() ? "lost" : "live";
  if (substation.state === "NEVER_REPORTED") pill.textContent = "never reported";
  else pill.textContent = quiet ? `silent for ${Math.round(reported)} s` : `heard ${reported.toFixed(1)} s ago`;
}

setInterval(() => {
  freshen();
  if (heardAt !== null) chart.add(old() ? null : showTotal.last);
}, 1000);

// --- what an operator asks ---------------------------------------------------------------------------

const substationPath = (id) => `/v1/substations/${encodeURIComponent(id)}`;

async function askLimit(id, report) {
  const text = `Cars at ${id} draw no more than this, within seconds. It is rated ${kw(report.rated_power_kw)}; the lowest limit counts.`;
  const request = (form) => [
    `${substationPath(id)}/limits/${form.source.value}`,
    { method: "PUT", body: { limit_kw: form.limit_kw.valueAsNumber } },
  ];
  const half = Math.round((report.rated_power_kw ?? 0) / 2);
  if (await ask({ title: `Limit ${id}`, text, yes: "Set limit", request, limit_kw: half })) say(`Limit of ${id} set`);
}

async function askClear(id, report) {
  const source = report.limit_source;
  const text = `Removes the limit of ${SOURCES[source]}, ${kw(report.limit_power_kw)}. Power rises slowly.`;
  const request = () => [`${substationPath(id)}/limits/${source}`, { method: "DELETE" }];
  if (await ask({ title: `Clear the limit of ${id}?`, text, yes: "Clear limit", request })) say(`Limit of ${id} cleared`);
}

async function askDrain(id, report) {
  const back = drains(report);
  const text = back ? "It takes new cars again." : "It takes no new cars, also after a restart, until you undrain it. Those that charge go on.";
  const verb = back ? "Undrain" : "Drain";
  const request = () => [`${substationPath(id)}/${verb.toLowerCase()}`, { method: "POST" }];
  if (await ask({ title: `${verb} ${id}?`, text, yes: verb, request })) say(`${id}: ${verb.toLowerCase()}ed`);
}

async function askStop(session) {
  const text = `Ends its session at ${session.substation_id}: ${progressOf(session)} so far.`;
  const request = () => [`/v1/charges/${encodeURIComponent(session.session_id)}/stop`, { method: "POST" }];
  if (await ask({ title: `Stop ${session.vehicle_id}?`, text, yes: "Stop charging", request })) {
    say(`${session.vehicle_id} stopped`);
    poll();
  }
}

// --- sessions ----------------------------------------------------------------------------------------

const sessions = new Sessions(
  (id) => cards.get(id)?.element.querySelector(".sessions"),
  askStop,
  (session) => news(session.ended_at ?? Date.now(), `${session.vehicle_id} ${STOPS[session.stop_reason] ?? "ended"}`, `${session.substation_id}: ${progressOf(session)}`),
);
let polling = false;

async function poll() {
  if (polling || document.hidden || !cards.size) return;
  polling = true;
  try {
    await sessions.poll();
    listedAt = performance.now();
  } catch {
    // How old the list is shows; the stream says why.
  } finally {
    polling = false;
  }
}

setInterval(poll, POLL_MS);
document.addEventListener("visibilitychange", poll);

charge.begin(poll);
new Stream(
  "/v1/events",
  (name, data) => heard[name]?.(data),
  (why) => {
    lost = why;
    freshen();
  },
).run();
