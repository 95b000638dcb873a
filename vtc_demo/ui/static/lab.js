// The controls of the tab Latency lab: what to run, what to show, which record.
(() => {
  function lab_plan(element, props, pick) {
    const boxes = (group) => [...element.querySelectorAll(`[data-group=${group}]`)];
    const range = element.querySelector("input[type=range]"), out = element.querySelector("output");
    const shape = element.querySelector("select.shape");
    const numbers = (group) => boxes(group).filter((b) => b.checked).map((b) => Number(b.value));
    const show = () => {
      const { visual, facts } = props.visual[shape.value];
      out.textContent = range.value;
      range.style.setProperty("--at", `${(100 * (range.value - range.min)) / (range.max - range.min)}%`);
      element.querySelector(".facts").textContent = facts;
      for (const box of boxes("shares")) box.nextElementSibling.textContent = Math.floor(visual / Number(box.value));
    };
    const tell = () => {
      props.value = {
        shape: shape.value,
        methods: boxes("methods").filter((b) => b.checked).map((b) => b.value),
        shares: numbers("shares"), batches: numbers("batches"), prompts: numbers("prompts"), seconds: Number(range.value),
      };
      pick({});
    };
    range.addEventListener("input", show);
    element.addEventListener("change", () => { show(); tell(); });
    show();
  }

  function lab_view(element, props, pick) {
    element.addEventListener("change", (event) => {
      const part = event.target.closest("[data-axis]");
      props.value = { ...props.value, [part.dataset.axis]: Number(part.value) };
      pick({});
    });
  }

  function lab_records(element, props, pick) {
    element.addEventListener("click", (event) => {
      const name = event.target.closest("[data-record]")?.dataset.record;
      if (!name) return;
      props.value = name;
      pick({});
    });
  }

  Object.assign(window.vtc, { lab_plan, lab_view, lab_records });
})();
