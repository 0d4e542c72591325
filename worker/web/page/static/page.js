// Shows times in the reader's zone, and loads the page again while nobody works in it.
"use strict";

const EVERY_MS = 10_000;
const UNITS = [["day", 86_400], ["hour", 3_600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

function ago(at) {
  const seconds = (at - Date.now()) / 1000;
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? UNITS.at(-1);
  return relative.format(Math.round(seconds / size), unit);
}

function localize(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    const isToday = at.toDateString() === new Date().toDateString();
    const local = isToday ? at.toLocaleTimeString() : at.toLocaleString();
    time.textContent = `${local} (${ago(at)})`;
  }
}

function isBusy() {
  const main = document.getElementById("main");
  const hasFocus = main.contains(document.activeElement) && document.activeElement !== main;
  return document.hidden || hasFocus || main.querySelector("details[open]") || !getSelection().isCollapsed;
}

async function refresh() {
  const reply = await fetch(location.href, { headers: { accept: "text/html" } });
  if (reply.redirected) {
    location.reload();
  } else if (reply.ok) {
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    show(page.getElementById("main"));
  }
}

function show(main) {
  if (isBusy()) return;
  localize(main);
  document.getElementById("main").replaceWith(main);
  offerRefresh();
}

function offerRefresh() {
  const box = document.getElementById("refresh");
  if (box === null) return;
  box.parentElement.hidden = false;
  box.checked = localStorage.getItem("refresh") !== "off";
  box.addEventListener("change", () => localStorage.setItem("refresh", box.checked ? "on" : "off"));
}

localize(document);
offerRefresh();
// Without scripts, somebody presses the button for each step.
document.querySelector("form[data-goes-on]")?.requestSubmit();
setInterval(() => {
  if (document.getElementById("refresh")?.checked && !isBusy()) refresh().catch(() => {});
}, EVERY_MS);
