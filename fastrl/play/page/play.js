// The page of `fastrl play`: shows one picture after the other, and sends the keys that are pressed.
"use strict";

const NAMES = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down", " ": "space",
  Enter: "enter", Shift: "shift", Control: "ctrl", Tab: "tab", Backspace: "backspace" };
const byId = (id) => document.getElementById(id);
const pressed = new Set();
const buttons = new Map();
let isSending = false, isStale = false;

/** Send the keys once more when they have changed during a request. */
async function send() {
  for (const [name, button] of buttons) button.classList.toggle("on", pressed.has(name));
  isStale = true;
  if (isSending) return;
  isSending = true;
  while (isStale) {
    isStale = false;
    await fetch("/api/keys", { method: "POST", headers: { "X-Fastrl": "keys" }, body: JSON.stringify([...pressed].slice(0, 20)) }).catch(() => {});
  }
  isSending = false;
}

function change(name, isDown) {
  if (pressed.has(name) === isDown) return;
  if (isDown) pressed.add(name); else pressed.delete(name);
  send();
}

function nameOf(event) {
  return NAMES[event.key] || (event.key.length === 1 ? event.key.toLowerCase() : null);
}

addEventListener("keydown", (event) => {
  const name = nameOf(event);
  if (!name || !buttons.has(name) || event.metaKey || event.altKey) return;
  event.preventDefault();
  change(name, true);
});
addEventListener("keyup", (event) => { const name = nameOf(event); if (name) change(name, false); });
addEventListener("blur", () => { pressed.clear(); send(); });

async function begin() {
  const game = await (await fetch("/api/game")).json();
  byId("title").textContent = document.title = game.title;
  for (const name of game.keys) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = { left: "←", right: "→", up: "↑", down: "↓" }[name] || name;
    button.setAttribute("aria-label", name);
    button.addEventListener("pointerdown", () => change(name, true));
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) button.addEventListener(end, () => change(name, false));
    buttons.set(name, button);
    byId("keys").append(button);
  }
  const canvas = byId("picture"), context = canvas.getContext("2d");
  for (let number = 0; ;) {
    const answer = await fetch(`/api/picture?after=${number}`);
    if (!answer.ok) throw new Error(String(answer.status));
    const next = Number(answer.headers.get("X-Number"));
    if (next === number) continue;
    number = next;
    const picture = await createImageBitmap(await answer.blob());
    if (canvas.width !== picture.width || canvas.height !== picture.height) {
      canvas.width = picture.width;
      canvas.height = picture.height;
    }
    context.drawImage(picture, 0, 0);
    const text = JSON.parse(answer.headers.get("X-Text"));
    if (byId("text").textContent !== text) byId("text").textContent = text;
  }
}

begin().catch(() => { byId("text").textContent = "It has ended."; });
