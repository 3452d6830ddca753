  // One field against another: drawn anew for the fields that are chosen and the cells that the table shows.
  function startHeatmap() {
    const pair = document.getElementById("pair"), map = document.getElementById("map");
    if (!pair) return;
    const levels = 7;
    const order = (key) => data.words[key].values;
    pair.hidden = false;
    pair.addEventListener("input", drawMap);
    pair.addEventListener("submit", (event) => event.preventDefault());
    listeners.push(drawMap);

    function drawMap() {
      const down = pair.elements.down.value, across = pair.elements.across.value, measure = pair.elements.measure.value;
      const rate = measure === "tokens", run = pair.elements.run?.value;
      const there = run ? shown.filter((i) => word("run", i) === run) : shown;
      const squares = new Map();
      for (const i of there) {
        const place = `${data.words[down].of[i]} ${data.words[across].of[i]}`;
        if (!squares.has(place)) squares.set(place, []);
        squares.get(place).push(i);
      }
      const best = (rows) => {
        const values = rows.map((i) => known(measure, i)).filter((value) => value != null);
        return values.length ? Math[rate ? "max" : "min"](...values) : null;
      };
      const ok = (rows) => rows.filter((i) => word("status", i) === "ok");
      const seen = [...squares.values()].map((rows) => best(ok(rows))).filter((value) => value != null);
      const low = Math.min(...seen), high = Math.max(...seen);
      const used = (key) => order(key).map((_, place) => place).filter((place) => there.some((i) => data.words[key].of[i] === place));
      const head = element("tr", {}, element("th", { scope: "col" }, `${data.columns[down]} \\ ${data.columns[across]}`));
      for (const column of used(across)) head.append(element("th", { scope: "col" }, order(across)[column] || "–"));
      const body = used(down).map((line) => {
        const made = element("tr", {}, element("th", { scope: "row" }, order(down)[line] || "–"));
        for (const column of used(across)) {
          const rows = squares.get(`${line} ${column}`);
          if (!rows) { made.append(element("td", { class: "x-none" })); continue; }
          const value = best(ok(rows)), state = rows.some((i) => word("status", i) === "oom") ? "oom" : word("status", rows[0]);
          const needed = rate ? null : best(rows.filter((i) => word("status", i) === "oom"));
          const show = (one) => rate ? Math.round(one).toLocaleString("en") : bytes(one);
          const text = value != null ? show(value) : needed != null ? show(needed) : state;
          const level = high > low ? Math.min(levels - 1, Math.floor((value - low) / (high - low) * levels)) : 0;
          const names = `${order(down)[line]}, ${order(across)[column]}: ${count(rows.length, "cell")}, ${ok(rows).length} ok`;
          const button = element("button", { type: "button", title: names, "aria-label": `${names}, ${text}` }, text);
          button.addEventListener("click", () => showOnly({ ...(run ? { run } : {}), [down]: order(down)[line], [across]: order(across)[column] }));
          made.append(element("td", { class: value != null ? "q" + level : "x-" + state.replace(" ", "-") }, button));
        }
        return made;
      });
      map.tHead.replaceChildren(head);
      map.tBodies[0].replaceChildren(...body);
    }
  }

