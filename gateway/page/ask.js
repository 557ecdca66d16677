// The dialog that stands before every operator's action, and what the API answered to it.

import { problemOf } from "./words.js";

const $ = (id) => document.getElementById(id);
const dialog = $("ask");

// Asks, and only then sends what `request(form)` gives: [path, options]. True when it was done; a problem keeps it open.
export function ask({ title, text, yes, request, limit_kw }) {
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  $("ask-problem").textContent = "";
  $("ask-limit").hidden = limit_kw === undefined;
  $("limit_kw").disabled = limit_kw === undefined; // else what is hidden would be required
  $("limit_kw").value = limit_kw ?? "";
  dialog.showModal();
  return new Promise((done) => {
    const form = dialog.querySelector("form");
    form.onsubmit = async (event) => {
      event.preventDefault();
      $("ask-yes").disabled = true;
      const problem = await send(...request(form));
      $("ask-yes").disabled = false;
      $("ask-problem").textContent = problem ?? "";
      if (problem) return;
      done(true);
      dialog.close();
    };
    dialog.onclose = () => done(false);
  });
}

$("ask-no").onclick = () => dialog.close();

async function send(path, { method, body }) {
  try {
    const said = body && { body: JSON.stringify(body), headers: { "content-type": "application/json" } };
    const reply = await fetch(path, { method, ...said });
    return reply.ok ? null : (await problemOf(reply)).text;
  } catch {
    return "The gateway cannot be reached. Nothing is known of what became of it.";
  }
}
