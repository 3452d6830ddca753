// The page's own script: sorts and filters the table, keeps that state in the address (so that a view can be shared), tells the charts which
// cells are shown, and replaces each chart's drawing by the living one when it comes into view. Without it the page is complete, but still.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("table");
  const form = document.getElementById("filters");
  const listeners = [];
  let shown = [];

  if (table && form) startTable();
  startCharts();

  function startTable() {
    const bodies = [...table.tBodies];
    const texts = bodies.map((body, i) => (body.textContent + " " + data.labels[i]).replace(/<[^>]*>/g, " ").toLowerCase());
    const heads = [...table.tHead.rows[0].cells];
    const count = document.getElementById("count");
    const selects = [...form.querySelectorAll("select")];
    const chips = [...form.querySelectorAll("input[name=status]")];
    const order = new Intl.Collator("en", { numeric: true });
    const place = Object.fromEntries(heads.map((head, column) => [head.dataset.key, column]));
    // What a row shows in a column; sort keys that are no text come with the page.
    const text = bodies.map((body) => [...body.rows[0].cells].map((cell) => cell.textContent.trim()));
    const key = (i, name) => name in data.keys ? data.keys[name][i] : text[i][place[name]];
    let sort = { key: null, down: false };

    for (const head of heads) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const same = sort.key === head.dataset.key;
        sort = same && sort.down ? { key: null, down: false } : { key: head.dataset.key, down: same };
        apply(true);
      });
    }
    bodies.forEach((body, i) => body.querySelector("input").setAttribute("aria-label", "Details of " + data.labels[i]));
    form.hidden = false;
    table.addEventListener("mouseover", explain);
    table.addEventListener("change", complete);
    form.addEventListener("input", () => apply(true));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => { sort = { key: null, down: false }; apply(true); }));
    addEventListener("hashchange", readAddress);
    const shared = document.getElementById("shared");
    if (shared) shared.hidden = true;
    readAddress();

    // Values that are not known come last, whichever way the column is sorted.
    function compare(a, b) {
      const x = key(a, sort.key), y = key(b, sort.key);
      if (x == null || y == null) return (x == null) - (y == null) || a - b;
      const sign = typeof x === "number" ? x - y : order.compare(x, y);
      return (sort.down ? -sign : sign) || a - b;
    }

    // A dash says what it stands for.
    function explain(event) {
      const cell = event.target.closest("td");
      const head = cell && cell.parentElement.matches("tr:first-child") && heads[cell.cellIndex];
      if (head && !cell.title && cell.textContent.trim() === "–") cell.title = head.dataset.missing;
    }

    // A cell's details are made when they are first opened, with the whole command.
    function complete(event) {
      const body = event.target.closest("tbody"), text = body.querySelector("noscript");
      if (!text) return;
      text.parentElement.innerHTML = text.textContent;
      body.querySelector("code > span")?.replaceWith(data.shared);
    }

    function apply(remember) {
      const words = form.elements.q.value.toLowerCase().split(/\s+/).filter(Boolean);
      const chosen = selects.filter((select) => select.value);
      const statuses = chips.filter((chip) => chip.checked).map((chip) => chip.value);
      const rest = bodies.map((_, i) => i).filter((i) =>
        words.every((word) => texts[i].includes(word)) && chosen.every((select) => text[i][place[select.name]] === select.value));
      const kept = new Set(rest.filter((i) => !statuses.length || statuses.includes(text[i][0])));
      const all = bodies.map((_, i) => i);
      if (sort.key) all.sort(compare);
      shown = all.filter((i) => kept.has(i));

      const fragment = document.createDocumentFragment();
      for (const i of all) { bodies[i].hidden = !kept.has(i); fragment.append(bodies[i]); }
      table.append(fragment);
      for (const head of heads) {
        if (head.dataset.key === sort.key) head.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      }
      for (const chip of chips) {
        chip.parentElement.querySelector("output").textContent = rest.filter((i) => text[i][0] === chip.value).length;
      }
      const ok = shown.filter((i) => text[i][0] === "ok").length;
      count.textContent = `${shown.length} of ${bodies.length} cells shown, ${ok} of them ok`;
      if (remember) writeAddress();
      listeners.forEach((listen) => listen());
    }

    function writeAddress() {
      const state = new URLSearchParams();
      for (const [name, value] of new FormData(form)) if (value) state.append(name, value);
      if (sort.key) state.set("sort", (sort.down ? "-" : "") + sort.key);
      history.replaceState(null, "", "#" + state);
    }

    function readAddress() {
      const hash = location.hash.slice(1);
      const target = /^c\d+$/.test(hash) && document.getElementById(hash);
      if (target) {
        if (target.hidden) { form.reset(); return; }
        const box = target.querySelector("input");
        if (!box.checked) box.click();
      }
      if (hash.includes("=") || !shown.length) {
        const state = new URLSearchParams(hash.includes("=") ? hash : "");
        form.elements.q.value = state.get("q") || "";
        for (const select of selects) select.value = state.get(select.name) || "";
        for (const chip of chips) chip.checked = state.getAll("status").includes(chip.value);
        const by = state.get("sort") || "";
        const name = by.replace(/^-/, "");
        sort = name in place ? { key: name, down: by.startsWith("-") } : { key: null, down: false };
        apply(false);
      }
    }
  }

  function startCharts() {
    if (!("IntersectionObserver" in window) || !("DecompressionStream" in window)) return;
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        watch.unobserve(entry.target);
        draw(entry.target).catch((error) => console.error(error));
      }
    }, { rootMargin: "300px" });
    for (const id of Object.keys(data.charts)) watch.observe(document.getElementById("chart-" + id));
  }

  async function draw(place) {
    const chart = data.charts[place.id.slice("chart-".length)];
    await vega();
    const spec = structuredClone(chart.spec);
    if (chart.min_width) spec.width = Math.max(chart.min_width, Math.min(1100, place.clientWidth));
    for (const one of Object.values(spec.datasets).flat()) if ("i" in one) one.cell = data.labels[one.i];
    spec.params.find((one) => one.name === "shown").value = ranks(chart);
    const living = document.createElement("div");
    // The description of the static drawing stays the place's own; the tooltip's look is in our style sheet.
    const { view } = await vegaEmbed(living, spec, {
      ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip: { theme: "custom", disableDefaultStyle: true },
      logLevel: 1, // errors: that a selection leaves a chart empty is none
    });
    place.replaceChildren(living);
    place.dataset.living = "";
    let waiting = null;
    listeners.push(() => {
      clearTimeout(waiting);
      waiting = setTimeout(() => view.signal("shown", ranks(chart)).runAsync(), 60);
    });
  }

  // The chart's rows that the table shows, by rank; as many as the chart can hold.
  function ranks(chart) {
    const own = new Set(chart.rows);
    const visible = (table ? shown : chart.rows).filter((i) => own.has(i)).slice(0, chart.limit ?? undefined);
    return Object.fromEntries(visible.map((i, rank) => [i, rank]));
  }

  let loading = null;
  function vega() {
    return loading ??= (async () => {
      const packed = Uint8Array.from(atob(document.getElementById("bundle").textContent), (letter) => letter.charCodeAt(0));
      const code = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
      const script = document.createElement("script");
      script.textContent = code;
      document.head.append(script);
    })();
  }
})();
