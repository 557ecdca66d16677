// What the API's words are to people.

export const STATES = {
  CHARGING: "charging", EV_CONNECTED: "full, still plugged in", SUSPENDED_EV: "paused by the car",
  SUSPENDED_EVSE: "waits for power", ENDED: "ended",
};
export const SOURCES = { EMS: "energy management", SO: "system operator", CSO: "station operator", OTHER: "other" };
export const STOPS = {
  ENERGY_LIMIT_REACHED: "has its energy", REMOTE: "stopped", LOCAL: "stopped at the plug", EV_DISCONNECTED: "left",
  SOC_LIMIT_REACHED: "full", OVERCURRENT_FAULT: "disconnected: it drew too much", EMERGENCY_STOP: "emergency stop",
  DUPLICATE: "was there twice", OTHER: "ended",
};
const LESS = {
  SHARED: "shares the power", WAITING_TURN: "waits for its turn", RAMP: "power rises slowly", UNDRAWN: "takes less than it may",
};

export const kw = (value) => (value === undefined ? "–" : `${+value.toFixed(value >= 100 ? 0 : 1)} kW`);
export const percent = (part) => `${Math.round(100 * part)} %`;
export const clock = (at) => new Date(at).toLocaleTimeString([], { hour12: false });

// Why a session gets less than its car could take; empty where it gets all.
export function why(session) {
  if (session.limit_reason === "LIMIT_CUT") return `cut by ${SOURCES[session.limit_source] ?? "a limit"}`;
  return LESS[session.limit_reason] ?? "";
}

export function progressOf(session) {
  const got = session.delivered_kwh.toFixed(1);
  return session.energy_kwh === undefined ? `${got} kWh` : `${got} of ${+session.energy_kwh.toFixed(1)} kWh`;
}

// What went wrong, of a reply that is no success.
export async function problemOf(reply) {
  try {
    const problem = await reply.json();
    const again = problem.retry_after_s ? ` Try again in ${problem.retry_after_s} s.` : "";
    return { text: `${problem.title}: ${problem.detail}.${again}`, fields: problem.errors ?? [] };
  } catch {
    return { text: `The gateway answered ${reply.status}.`, fields: [] };
  }
}
