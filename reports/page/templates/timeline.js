  // One cell over its phases: the chosen one.
  function startTimeline() {
    const which = document.getElementById("which"), live = document.getElementById("live");
    if (!which || !data.live) return;
    which.hidden = false;
    which.addEventListener("input", () => showTimeline(Number(which.elements.cell.value)));
    which.addEventListener("submit", (event) => event.preventDefault());
    const text = (place) => data.live.texts[place];

    showTimeline = (i) => {
      which.elements.cell.value = i;
      chosen = i;
      live.caption.querySelector("span").textContent = data.labels[i];
      const most = data.live.cells[i][0]?.[4] ?? 1;
      live.tBodies[0].replaceChildren(...data.live.cells[i].map(([what, module, operator, phase, nbytes]) => element("tr", {},
        element("th", { scope: "row" }, text(what)), element("td", { class: "n" }, bytes(nbytes)),
        element("td", {}, element("meter", { min: 0, max: most, value: nbytes }, bytes(nbytes))),
        element("td", {}, text(module)), element("td", {}, text(operator)), element("td", {}, text(phase)))));
      listeners.forEach((listen) => listen());
    };
  }

  let showTimeline = null;

