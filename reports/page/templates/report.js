// The page's own script. Without it the page is complete, but still. This part: what the others share.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("table");
  const form = document.getElementById("filters");
  // What the table shows, by row number, in its order; who wants to know of changes; what it is sorted by.
  let shown = [];
  const listeners = [];
  let sort = { key: null, down: false };

  const word = (key, i) => data.words[key].values[data.words[key].of[i]];
  const known = (key, i) => data.keys[key]?.[i] ?? null;
  const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

  // Three digits, as the tables have them.
  function digits(value) {
    if (value === Math.round(value) && value < 1e6) return value.toLocaleString("en");
    return value < 9.995 ? value.toFixed(2) : value < 99.95 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
  }

  function bytes(value) {
    if (value == null) return "–";
    if (value < 0) return "−" + bytes(-value);
    const [unit, scale] = [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["B", 1]].find(([, one]) => value >= one) ?? ["B", 1];
    return `${digits(value / scale)} ${unit}`;
  }

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // What travels packed in an element.
  async function unpacked(id) {
    const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

