// The form that charges a car.

import { percent, problemOf } from "./words.js";

const $ = (id) => document.getElementById(id);
const form = $("charge");

// One key for each thing that was asked: a repeat of it, as after a lost reply, is the same session.
let asked = "", key = "";

export function begin(placed) {
  suggest();
  form.onsubmit = async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    await charge(placed);
    button.disabled = false;
  };
}

function suggest() {
  $("vehicle_id").value = `EV-${1000 + (random() % 9000)}`;
}

const random = () => crypto.getRandomValues(new Uint32Array(1))[0];

function said() {
  const body = { vehicle_id: $("vehicle_id").value, max_power_kw: $("max_power_kw").valueAsNumber };
  if ($("energy_kwh").value) body.energy_kwh = $("energy_kwh").valueAsNumber;
  if ($("departure_in").value) body.departure_in = `${60 * $("departure_in").valueAsNumber}s`;
  if ($("allowed").value) body.allowed_substation_ids = [$("allowed").value];
  return JSON.stringify(body);
}

async function charge(placed) {
  const body = said();
  if (body !== asked) [asked, key] = [body, `page-${random()}-${random()}`];
  show("", []);
  try {
    const headers = { "content-type": "application/json", "idempotency-key": key };
    const reply = await fetch("/v1/charges", { method: "POST", headers, body });
    if (!reply.ok) {
      const { text, fields } = await problemOf(reply);
      const named = fields.map(({ field, detail }) => `${labelOf(field)}: ${detail}`).join("; ");
      show(named || text, fields, true);
      return;
    }
    const { session, placement } = await reply.json();
    const where = `${percent(placement.utilisation_after)} after, ${placement.eligible} eligible`;
    show(`${session.vehicle_id} charges at ${session.substation_id}: ${where}.`, []);
    asked = "";
    suggest();
    placed();
  } catch {
    show("The gateway cannot be reached. Press Charge again: it is the same request.", [], true);
  }
}

// As the form calls it, not the API.
const labelOf = (field) => form.elements[field]?.labels[0].textContent ?? field;

function show(text, fields, bad = false) {
  const output = $("charged");
  output.textContent = text;
  output.classList.toggle("problem", bad);
  for (const input of form.querySelectorAll("input")) {
    const wrong = fields.some((each) => each.field === input.name);
    input.setAttribute("aria-invalid", wrong);
    if (wrong) input.setAttribute("aria-describedby", "charged");
    else input.removeAttribute("aria-describedby");
  }
}
