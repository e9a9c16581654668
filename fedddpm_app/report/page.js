(() => {
  "use strict";
  const titles = { round: "round", steps: "gradient steps", mb: "MB exchanged" };
  const plain = { labelColor: "currentColor", titleColor: "currentColor" };
  const config = {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { ...plain, domainColor: "var(--muted)", tickColor: "var(--muted)", gridColor: "var(--line)", titleFontWeight: 400 },
    legend: plain,
    rule: { color: "currentColor" },
  };
  const specs = new Map();
  for (const data of document.querySelectorAll("script[data-chart]")) {
    specs.set(data.dataset.chart, JSON.parse(data.textContent));
  }
  // Replace the field of every x axis over the rounds.
  const along = (value, field) => {
    if (Array.isArray(value)) return value.map((item) => along(item, field));
    if (value === null || typeof value !== "object") return value;
    const changed = {};
    for (const [key, item] of Object.entries(value)) {
      const moves = key === "x" && item && item.field === "round";
      const axis = moves && item.axis ? { axis: { ...item.axis, ...(field === "round" ? {} : { tickMinStep: null, values: null }) } } : {};
      const title = moves && "title" in item ? { title: titles[field] } : {};
      changed[key] = moves ? { ...item, field, ...axis, ...title } : key === "data" ? item : along(item, field);
    }
    return changed;
  };
  const draw = (id, field) =>
    vegaEmbed(`#${id}`, field === "round" ? specs.get(id) : along(specs.get(id), field), {
      actions: false, renderer: "svg", config, tooltip: { theme: "custom", disableDefaultStyle: false },
    }).catch((problem) => console.error(`${id}: ${problem}`));
  const chosen = (section) => section?.querySelector(".axis input:checked")?.value ?? "round";
  const remember = (name, value) => {
    try {
      if (value === undefined) return sessionStorage.getItem(name);
      sessionStorage.setItem(name, value);
    } catch {
      return null; // a page from a file may have no storage
    }
  };
  for (const input of document.querySelectorAll(".axis input")) {
    if (remember(input.name) === input.value) input.checked = true;
    input.addEventListener("change", () => {
      remember(input.name, input.value);
      for (const chart of input.closest("section").querySelectorAll(".chart")) draw(chart.id, input.value);
    });
  }
  Promise.all([...specs.keys()].map((id) => draw(id, chosen(document.getElementById(id).closest("section"))))).then(() => {
    document.documentElement.dataset.drawn = String(specs.size);
  });
})();
