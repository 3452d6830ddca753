  // Charts: each drawing is replaced by the living chart when it comes into view, which shows what the table shows.
  function startCharts() {
    if (!("IntersectionObserver" in window) || !("DecompressionStream" in window)) return;
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        watch.unobserve(entry.target);
        draw(entry.target).catch((error) => console.error(error));
      }
    }, { rootMargin: "300px" });
    for (const place of document.querySelectorAll(".chart")) watch.observe(place);
  }

  async function draw(place) {
    const chart = (await charts())[place.id.slice("chart-".length)];
    await vega();
    // Of one cell at a time: where it has no such chart, there is none.
    const hide = () => { place.parentElement.hidden = chart.only != null && chosen != null && !chart.rows.includes(chosen); };
    hide();
    const spec = structuredClone(chart.spec);
    // A plot with cells' names beside it leaves room for them, and for the words at its bars' ends.
    const fit = () => chart.labelled ? Math.max(130, Math.min(1500, place.clientWidth) - room(place) - (place.clientWidth > 700 ? 160 : 100)) : Math.max(chart.min_width, Math.min(1500, place.clientWidth));
    const wide = () => place.clientWidth - (chart.labelled ? room(place) : 60);
    const fluid = chart.labelled || chart.min_width;
    if (fluid) spec.width = fit();
    for (const one of Object.values(spec.datasets).flat()) if ("i" in one) one.cell = data.labels[one.i];
    const visible = visibleRows(chart);
    for (const one of spec.params) {
      if (one.name === "shown") one.value = ranks(visible);
      else if (one.name in chart.legends) one.value = present(chart.legends[one.name], visible);
      else if (one.name === "room") one.value = room(place);
      else if (one.name === "wide") one.value = wide();
    }
    const living = document.createElement("div");
    // The description of the static drawing stays the place's own; the tooltip's look is in our style sheet.
    const { view } = await vegaEmbed(living, spec, {
      ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip: { theme: "custom", disableDefaultStyle: true },
      logLevel: 1, // errors: that a selection leaves a chart empty is none
    });
    place.replaceChildren(living);
    const save = element("button", { type: "button", class: "copy" }, "PNG");
    save.addEventListener("click", () => picture(view, place.id.slice("chart-".length)));
    place.parentElement.querySelector("figcaption").append(" ", save);
    place.dataset.living = "";
    let waiting = null;
    const update = () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        const now = visibleRows(chart);
        hide();
        view.signal("shown", ranks(now));
        for (const [name, of] of Object.entries(chart.legends)) view.signal(name, present(of, now));
        if (fluid) view.width(fit());
        view.signal("room", room(place)).signal("wide", wide());
        view.runAsync();
      }, 60);
    };
    listeners.push(update);
    addEventListener("resize", update);
  }

  // What is seen of a chart as a file, on white, at twice the size.
  async function picture(view, name) {
    const canvas = await view.toCanvas(2), paper = canvas.getContext("2d");
    paper.setTransform(1, 0, 0, 1, 0, 0);
    paper.globalCompositeOperation = "destination-over";
    paper.fillStyle = "#fff";
    paper.fillRect(0, 0, canvas.width, canvas.height);
    element("a", { href: canvas.toDataURL(), download: `vrambench-${name}.png` }).click();
  }

  // Labels of bars take so much of a chart, in pixels.
  const room = (place) => Math.max(90, Math.min(420, place.clientWidth * 0.34));

  // The chart's rows that the table shows, as many as the chart can hold: in the table's order where somebody sorted it, else in its own.
  function visibleRows(chart) {
    if (chart.only != null) return [chart.rows.includes(chosen) ? chosen : chart.only];
    const seen = new Set(shown), own = new Set(chart.rows);
    const rows = !table ? chart.rows : sort.key ? shown.filter((i) => own.has(i)) : chart.rows.filter((i) => seen.has(i));
    return rows.slice(0, chart.limit ?? undefined);
  }

  const ranks = (rows) => Object.fromEntries(rows.map((i, rank) => [i, rank]));

  // Names that a legend has for these rows.
  function present(legend, rows) {
    const found = new Set(rows.flatMap((i) => legend.of[i] ?? []));
    return legend.names.filter((_, place) => found.has(place));
  }

  // The cell that charts of one cell show; null: the one that each begins with.
  let chosen = null;

  let unpacking = null;
  const charts = () => unpacking ??= unpacked("charts").then((text) => JSON.parse(text));

  let loading = null;
  function vega() {
    return loading ??= (async () => {
      const script = document.createElement("script");
      script.textContent = await unpacked("bundle");
      document.head.append(script);
    })();
  }

