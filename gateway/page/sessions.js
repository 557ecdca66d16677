// The sessions of each substation: polled, as no stream tells of all of them.

import { clock, kw, progressOf, STATES, STOPS, why } from "./words.js";

// All that `make run` has plugs for. Beyond, the first ones are listed, and that is said.
const PAGE = 500;
// What has ended stays so long for a reader, and so many are looked up at once.
const ENDED_MS = 12_000, MOST_LOOKED_UP = 5;

export class Sessions {
  #rows = new Map(); // session_id: {item, session, ended}
  #listOf; #stop; #ended;
  partial = false; // there are more than are listed

  // `listOf(substation_id)` is where its rows go; `stop(session)` is asked for; `ended(session)` is told.
  constructor(listOf, stop, ended) {
    this.#listOf = listOf;
    this.#stop = stop;
    this.#ended = ended;
  }

  get shown() {
    return this.#rows.size;
  }

  // Asks once. Throws where the gateway does not answer.
  async poll() {
    const reply = await fetch(`/v1/charges?page_size=${PAGE}`, { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!reply.ok) throw new Error(`the gateway answered ${reply.status}`);
    const { sessions, unreachable_substation_ids: unreachable = [], next_page_token: more } = await reply.json();
    this.partial = Boolean(more);
    for (const session of sessions) this.#show(session);
    const live = new Set(sessions.map((each) => each.session_id));
    const left = [...this.#rows.values()].filter(
      (row) => !row.ended && !live.has(row.session.session_id) && !unreachable.includes(row.session.substation_id),
    );
    // Of more than a page it is not known whether they ended.
    if (!more) await Promise.all(left.slice(0, MOST_LOOKED_UP).map((row) => this.#lookUp(row.session)));
    this.#forget(more ? [] : left.slice(MOST_LOOKED_UP));
  }

  async #lookUp({ session_id }) {
    const reply = await fetch(`/v1/charges/${encodeURIComponent(session_id)}`, { cache: "no-store" });
    if (!reply.ok) return;
    const { session } = await reply.json();
    this.#show(session);
    if (session.state === "ENDED") this.#ended(session);
  }

  #forget(rows) {
    const old = [...this.#rows.values()].filter((row) => row.ended && performance.now() - row.ended > ENDED_MS);
    for (const row of [...rows, ...old]) {
      row.item.remove();
      this.#rows.delete(row.session.session_id);
    }
  }

  #show(session) {
    const row = this.#rows.get(session.session_id) ?? this.#add(session);
    if (!row) return;
    row.session = session;
    const over = session.state === "ENDED";
    if (over && !row.ended) row.ended = performance.now();
    const { item } = row;
    item.classList.toggle("ended", over);
    item.classList.toggle("cut", session.limit_reason === "LIMIT_CUT");
    item.querySelector(".power").textContent = over ? "" : kw(session.measured_power_kw);
    item.querySelector(".stop").hidden = over;
    const bar = item.querySelector("progress");
    if (session.energy_kwh === undefined) bar.hidden = true;
    else bar.value = Math.min(1, session.delivered_kwh / session.energy_kwh);
    item.querySelector("p").textContent = describe(session);
  }

  #add(session) {
    const list = this.#listOf(session.substation_id);
    if (!list) return null;
    const item = document.getElementById("session").content.cloneNode(true).firstElementChild;
    const row = { item, session, ended: 0 };
    item.querySelector("strong").textContent = session.vehicle_id;
    item.querySelector("progress").setAttribute("aria-label", `Energy of ${session.vehicle_id}`);
    const button = item.querySelector("button");
    button.setAttribute("aria-label", `Stop ${session.vehicle_id}`);
    button.onclick = () => this.#stop(row.session);
    list.prepend(item);
    this.#rows.set(session.session_id, row);
    return row;
  }
}

function describe(session) {
  if (session.state === "ENDED") return `${STOPS[session.stop_reason] ?? "ended"} · ${progressOf(session)}`;
  const parts = [STATES[session.state] ?? session.state, progressOf(session), why(session)];
  if (session.state === "CHARGING" && session.expected_end_at) parts.push(`until ${clock(session.expected_end_at)}`);
  return parts.filter(Boolean).join(" · ");
}
