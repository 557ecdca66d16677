// Gauges and the chart. Sizes are those of the viewBoxes in index.html.

import { kw } from "./words.js";

const KEPT_S = 300;
// A page that was just opened shows less, and so more of it.
const LEAST_S = 60;

const part = (value, whole) => (whole > 0 ? Math.min(1, Math.max(0, (value ?? 0) / whole)) : 0);

// Draws one substation's report; `id` names it to those who cannot see.
export function gauge(svg, report, id) {
  const rated = report.rated_power_kw;
  const limit = report.limit_power_kw;
  const arc = (name, value) =>
    svg.querySelector(`.${name}`).setAttribute("stroke-dasharray", `${100 * part(value, rated)} 200`);
  arc("granted", report.granted_kw);
  arc("drawn", report.measured_kw);
  arc("asked", report.demand_kw);
  svg.querySelector(".limit").setAttribute("transform", `rotate(${180 * part(limit, rated)})`);
  svg.querySelector(".big").textContent = report.measured_kw === undefined ? "–" : report.measured_kw.toFixed(1);
  svg.querySelector(".small").textContent = `of ${kw(limit)}`;
  const known = report.measured_kw !== undefined;
  tell(svg, {
    role: known ? "meter" : "img", // no meter without a value
    "aria-label": known ? `Power drawn at ${id}` : `Power drawn at ${id}: not known`,
    "aria-valuenow": report.measured_kw,
    "aria-valuemax": rated,
    "aria-valuetext":
      `${kw(report.measured_kw)} of a limit of ${kw(limit)}; ` +
      `${kw(report.granted_kw)} granted, ${kw(report.demand_kw)} asked for, rated ${kw(rated)}`,
  });
}

// What is not known is not told.
function tell(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined) element.removeAttribute(name);
    else element.setAttribute(name, value);
  }
}

export class Chart {
  #svg; #top; #since; #samples = [];

  // `top` and `since` are where the axes are labelled.
  constructor(svg, top, since) {
    this.#svg = svg;
    this.#top = top;
    this.#since = since;
  }

  // One second: {measured, granted, limit} in kW, or null where nothing is known.
  add(sample) {
    this.#samples.push(sample);
    this.#samples = this.#samples.slice(-KEPT_S);
    const known = this.#samples.filter(Boolean);
    const top = 1.2 * Math.max(10, ...known.map((each) => Math.max(each.limit, each.granted, each.measured)));
    this.#top.textContent = `${Math.round(top)} kW`;
    this.#since.textContent = `${this.#span} s ago`;
    const path = (name, from) => this.#svg.querySelector(`.${name}`).setAttribute("d", from);
    path("limit", this.#line("limit", top));
    path("drawn", this.#line("measured", top));
    path("granted", this.#area("granted", top));
    const last = this.#samples.at(-1);
    const now = last ? `now ${kw(last.measured)} drawn, ${kw(last.granted)} granted` : "now unknown";
    this.#svg.setAttribute("aria-label", `Power over the last ${this.#span} seconds: ${now}`);
  }

  get #span() {
    return Math.max(LEAST_S, this.#samples.length);
  }

  *#points(name, top) {
    const [first, step] = [this.#span - this.#samples.length + 1, 300 / this.#span];
    for (const [at, sample] of this.#samples.entries()) {
      yield sample && [(step * (first + at)).toFixed(2), (100 * (1 - sample[name] / top)).toFixed(2)];
    }
  }

  // A gap where nothing was known.
  #line(name, top) {
    let text = "", begun = false;
    for (const point of this.#points(name, top)) {
      if (point) text += `${begun ? "L" : "M"}${point[0]} ${point[1]}`;
      begun = Boolean(point);
    }
    return text;
  }

  #area(name, top) {
    let text = "", last = null;
    for (const point of this.#points(name, top)) {
      if (point) text += last ? `L${point[0]} ${point[1]}` : `M${point[0]} 100L${point[0]} ${point[1]}`;
      else if (last) text += `L${last[0]} 100Z`;
      last = point;
    }
    return last ? `${text}L${last[0]} 100Z` : text;
  }
}
