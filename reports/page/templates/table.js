  // The table: sorts, filters, and keeps that state in the address, so that a view can be shared. Rows beyond the first few hundred are
  // text until they are shown.
  const page = { bodies: [], sources: [], limit: data.page, details: null };

  function startTable() {
    const heads = [...table.tHead.rows[0].cells];
    const selects = [...form.querySelectorAll("select")];
    const chips = [...form.querySelectorAll("input[name=status]")];
    const output = document.getElementById("count");
    const order = new Intl.Collator("en", { numeric: true });
    const all = data.labels.map((_, i) => i);
    const texts = all.map((i) => [
      data.labels[i], data.ids[i], data.notes[i] ?? "", ...Object.keys(data.words).map((key) => word(key, i)),
    ].join(" ").toLowerCase());
    const places = Object.fromEntries(Object.entries(data.words).map(([key, words]) => [
      key, [...words.values.keys()].sort((a, b) => order.compare(words.values[a], words.values[b])).reduce((ranks, value, rank) => (ranks[value] = rank, ranks), []),
    ]));
    page.bodies = [...table.tBodies];
    page.sources = document.getElementById("rest")?.textContent.split(/(?=<tbody )/).slice(1) ?? [];

    for (const head of heads) {
      const button = element("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const same = sort.key === head.dataset.key;
        sort = same && sort.down ? { key: null, down: false } : { key: head.dataset.key, down: same };
        apply(true);
      });
    }
    page.bodies.forEach(name);
    const filtering = document.getElementById("filtering");
    filtering.hidden = false;
    filtering.open = !matchMedia("(max-width:640px)").matches;
    table.addEventListener("mouseover", explain);
    table.addEventListener("change", (event) => complete(event.target.closest("tbody")));
    table.addEventListener("click", copy);
    form.addEventListener("input", () => apply(true));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => { sort = { key: null, down: false }; apply(true); }));
    document.querySelector("#beyond button").addEventListener("click", () => { page.limit += data.page; place(); });
    addEventListener("beforeprint", () => place(shown.length)); // paper has no button for more
    addEventListener("afterprint", () => place());
    addEventListener("hashchange", readAddress);
    readAddress();

    function name(body, i) {
      body.querySelector("input").setAttribute("aria-label", "Details of " + data.labels[i]);
      body.rows[0].cells[0].dataset.name = data.labels[i];
    }

    function bodyOf(i) {
      if (!page.bodies[i]) {
        const made = element("table");
        made.innerHTML = page.sources[i - data.page];
        page.bodies[i] = made.tBodies[0];
        name(page.bodies[i], i);
      }
      return page.bodies[i];
    }

    // Values that are not known come last, whichever way the column is sorted.
    function keyOf(key) {
      const numbers = data.keys[key], words = data.words[key];
      return numbers ? (i) => numbers[i] : (i) => words.values[words.of[i]] === "–" ? null : places[key][words.of[i]];
    }

    function sorted(rows) {
      if (!sort.key) return rows;
      const key = keyOf(sort.key);
      return [...rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (x == null || y == null) return (x == null) - (y == null) || a - b;
        return (sort.down ? y - x : x - y) || a - b;
      });
    }

    // A dash says what it stands for, and a reason that is cut off goes on.
    function explain(event) {
      const cell = event.target.closest("td");
      const head = cell && cell.parentElement.matches("tr:first-child") && heads[cell.cellIndex];
      if (!head || cell.title) return;
      if (cell.textContent.trim() === "–") cell.title = head.dataset.missing;
      else if (head.dataset.kind === "reason") cell.title = cell.textContent;
    }

    // A cell's details are made when they are first opened.
    async function complete(body) {
      const i = Number(body.id.slice(1)), text = body.querySelector("noscript");
      if (text) text.parentElement.innerHTML = text.textContent;
      else if (!body.querySelector(".details")) body.querySelector(".more td").innerHTML = (await packedDetails())[i - data.page];
      const details = body.querySelector(".details");
      if (showTimeline && i in data.live.cells && !details.querySelector(".over")) {
        const over = element("button", { type: "button", class: "copy over" }, "over its phases");
        over.addEventListener("click", () => { showTimeline(i); document.getElementById("timeline").scrollIntoView(); });
        details.append(over);
      }
      const code = details.querySelector("code");
      if (code && !body.querySelector("p > .copy")) code.before(element("button", { type: "button", class: "copy" }, "copy"));
    }

    function packedDetails() {
      return page.details ??= unpacked("packed").then((text) => JSON.parse(text));
    }

    async function copy(event) {
      const button = event.target.closest("p > .copy");
      if (!button) return;
      const code = button.nextElementSibling;
      getSelection().selectAllChildren(code);
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        document.execCommand("copy");
      }
      button.textContent = "copied";
    }

    function apply(remember) {
      const words = form.elements.q.value.toLowerCase().split(/\s+/).filter(Boolean);
      const chosen = selects.filter((select) => select.value && select.name !== "card")
        .map((select) => [data.words[select.name].of, data.words[select.name].values.indexOf(select.value)]);
      const card = form.elements.card?.value;
      const statuses = new Set(chips.filter((chip) => chip.checked).map((chip) => chip.value));
      const rest = all.filter((i) => words.every((one) => texts[i].includes(one)) && chosen.every(([of, value]) => of[i] === value) &&
        (!card || (known("gb" + card, i) ?? 9) <= 1));
      shown = sorted(rest.filter((i) => !statuses.size || statuses.has(word("status", i))));
      page.limit = data.page;
      table.classList.toggle("all", form.elements.all?.checked ?? false);
      place();
      for (const head of heads) {
        if (head.dataset.key === sort.key) head.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      }
      const counts = {};
      for (const i of rest) counts[word("status", i)] = (counts[word("status", i)] ?? 0) + 1;
      for (const chip of chips) chip.parentElement.querySelector("output").textContent = counts[chip.value] ?? 0;
      const ok = shown.filter((i) => word("status", i) === "ok").length;
      output.textContent = `${shown.length} of ${all.length} cells shown, ${ok} of them ok`;
      if (remember) writeAddress();
      listeners.forEach((listen) => listen());
    }

    function place(limit = page.limit) {
      const fragment = document.createDocumentFragment();
      const now = shown.slice(0, limit);
      for (const i of now) fragment.append(bodyOf(i));
      for (const body of [...table.tBodies]) body.remove();
      table.append(fragment);
      const more = document.getElementById("beyond");
      more.hidden = now.length === shown.length;
      more.querySelector("span").textContent = `${now.length} of ${shown.length} rows`;
    }

    function writeAddress() {
      const state = new URLSearchParams();
      for (const [name, value] of new FormData(form)) if (value) state.append(name, value);
      if (sort.key) state.set("sort", (sort.down ? "-" : "") + sort.key);
      history.replaceState(null, "", "#" + state);
    }

    function readAddress() {
      const hash = location.hash.slice(1);
      if (hash.includes("=") || !shown.length) {
        const state = new URLSearchParams(hash.includes("=") ? hash : "");
        form.elements.q.value = state.get("q") || "";
        for (const select of selects) select.value = state.get(select.name) || "";
        for (const chip of chips) chip.checked = state.getAll("status").includes(chip.value);
        if (form.elements.all) form.elements.all.checked = state.has("all");
        const by = state.get("sort") || "";
        const key = by.replace(/^-/, "");
        sort = key in data.columns || key === "status" ? { key, down: by.startsWith("-") } : { key: null, down: false };
        apply(false);
      }
      const target = /^c(\d+)$/.exec(hash);
      if (target && target[1] < all.length) openCell(Number(target[1]));
    }

    // Shows a cell, whatever the filters leave out.
    function openCell(i) {
      if (!shown.includes(i)) { form.reset(); sort = { key: null, down: false }; apply(false); }
      if (!bodyOf(i).isConnected) { page.limit = shown.indexOf(i) + 1; place(); }
      const box = bodyOf(i).querySelector("input");
      if (!box.checked) box.click();
      bodyOf(i).scrollIntoView({ block: "center" });
      for (const one of table.querySelectorAll(".target")) one.classList.remove("target");
      bodyOf(i).classList.add("target");
    }
  }

  // Filters the table to these values of columns, and goes there.
  function showOnly(values) {
    form.reset();
    for (const [name, value] of Object.entries(values)) if (form.elements[name]) form.elements[name].value = value;
    form.dispatchEvent(new Event("input", { bubbles: true }));
    document.getElementById("cells").scrollIntoView();
  }

