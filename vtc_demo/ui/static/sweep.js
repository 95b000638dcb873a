// The controls of the tab Sweep: what to run and show, what the axes mean, and files made in the page.
(() => {
  function sweep_plan(element, props, pick) {
    const boxes = (group) => [...element.querySelectorAll(`[data-group=${group}]`)];
    const range = element.querySelector("input[type=range]"), out = element.querySelector("output");
    const read = (group) => boxes(group).filter((b) => b.checked).map((b) => (group === "tokens" ? Number(b.value) : b.value));
    const show = () => {
      out.textContent = range.value;
      range.style.setProperty("--at", `${(100 * (range.value - range.min)) / (range.max - range.min)}%`);
    };
    let waiting = 0;
    const tell = () => {
      props.value = { methods: read("methods"), tokens: read("tokens"), kinds: read("kinds"), scenes: Number(range.value) };
      clearTimeout(waiting);
      waiting = setTimeout(() => pick({}), 120); // several ticks in a row are one choice
    };
    range.addEventListener("input", show);
    element.addEventListener("change", () => { show(); tell(); });
    element.addEventListener("click", (event) => {
      const wanted = event.target.closest("[data-pick]")?.dataset.pick;
      if (!wanted) return;
      for (const box of boxes("methods")) box.checked = wanted === "all";
      tell();
    });
    show();
  }

  function sweep_axes(element, props, pick) {
    element.addEventListener("change", (event) => {
      const part = event.target.closest("[data-axis]");
      props.value = { ...props.value, [part.dataset.axis]: part.type === "checkbox" ? part.checked : part.value };
      pick({});
    });
  }

  function save(name, text) {
    if (!text) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: name.endsWith("json") ? "application/json" : "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  Object.assign(window.vtc, { sweep_plan, sweep_axes, save });
})();
