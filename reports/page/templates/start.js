  // Sentences follow the filter.
  function startWords() {
    const figure = document.querySelector("#figure"), front = document.getElementById("front");
    const by = figure?.dataset.by;
    listeners.push(() => {
      if (figure) {
        const of = by === "status" ? shown : shown.filter((i) => known(by, i) != null);
        const good = of.filter((i) => by === "status" ? word("status", i) === "ok" : known(by, i) <= 1).length;
        figure.querySelector("b").textContent = `${good.toLocaleString("en")} of ${of.length.toLocaleString("en")}`;
        const part = shown.length < data.labels.length ? ", of those that the table shows" : "";
        figure.querySelector("span").textContent = figure.querySelector("span").textContent.replace(/, of those.*$/, "") + part;
      }
      if (front) front.textContent = frontWords();
    });
  }

  function frontWords() {
    const points = shown.filter((i) => word("status", i) === "ok" && known(data.basis, i) && known("tokens", i));
    const best = {};
    let front = 0;
    for (const i of [...points].sort((a, b) => known(data.basis, a) - known(data.basis, b) || known("tokens", b) - known("tokens", a))) {
      const algorithm = data.words.algorithm ? word("algorithm", i) : "";
      if (known("tokens", i) > (best[algorithm] ?? -Infinity)) { front += 1; best[algorithm] = known("tokens", i); }
    }
    const text = document.getElementById("front");
    text.dataset.words ??= text.textContent;
    return text.dataset.words.replace(/^\S+ cells? of \S+ /, `${count(front, "cell")} of ${points.length.toLocaleString("en")} `);
  }

  if (table && form) {
    startWords();
    startHeatmap();
    startTimeline();
    startTable();
  }
  startCharts();
})();
