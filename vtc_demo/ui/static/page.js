// The page's behaviour: controls that Gradio has not got, light and dark. The masks are in mask.js.
// Text from results is only ever set as textContent.
(() => {
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value != null) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  // -- light and dark: the visitor's choice, else the system's ---------------------------------------------------
  const store = { get: () => { try { return localStorage.getItem("vtc-theme"); } catch { return null; } },
                  set: (v) => { try { localStorage.setItem("vtc-theme", v); } catch { /* private window */ } } };
  const dark = () => document.body.classList.contains("dark");
  const paint = (to) => document.body.classList.toggle("dark", to);
  const mine = () => { const chosen = store.get(); if (chosen) paint(chosen === "dark"); };

  // -- controls --------------------------------------------------------------------------------------------------
  function pictures(element, props, pick, watch) {
    const draw = () => {
      for (const b of element.querySelectorAll("[data-seed]")) b.setAttribute("aria-pressed", b.dataset.seed === String(props.value.seed));
    };
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      props.value = { seed: button.dataset.seed === "new" ? "new" : Number(button.dataset.seed) };
      draw();
      pick({});
    });
    watch("value", draw);
  }

  function chips(element, props, pick, watch) {
    const FEW = 4; // more than this and one: the rest waits behind a button, so that the budget stays in sight
    const draw = () => {
      const { questions } = props.value, all = questions.length <= FEW + 1 || props.value.all;
      const buttons = (all ? questions : questions.slice(0, FEW)).map((text) => make("button", { type: "button" }, text));
      const more = all ? [] : [make("button", { type: "button", class: "more", translate: "yes" }, `${questions.length - FEW} more questions`)];
      element.querySelector(".chips").replaceChildren(...buttons, ...more);
    };
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.className === "more") {
        props.value = { ...props.value, all: true };
        draw();
        element.querySelectorAll("button")[FEW].focus();
        return;
      }
      props.value = { ...props.value, chosen: button.textContent };
      pick({});
    });
    draw();
    watch("value", draw);
  }

  const fill = (range) => range.style.setProperty("--at", `${(100 * (range.value - range.min)) / Math.max(1e-9, range.max - range.min)}%`);
  function slider(range, read, tell, done) {
    const show = () => { fill(range); tell(); };
    range.addEventListener("input", show);
    range.addEventListener("change", () => { show(); done(read()); });
    show();
  }

  const READ = { "final tokens": "kept", "equivalent tokens": "on average", flops: "by FLOPs" };
  function budget(element, props, pick, watch) {
    const range = element.querySelector("input"), total = props.value.total;
    let resting = null, mine = null; // mine: what was last set here; any other value comes from a link
    const show = () => {
      const n = Number(range.value), { match } = props.value;
      element.querySelector("output").textContent = `${n} of ${total} ${READ[match]}`;
      element.querySelector(".share").textContent = `${Math.round((100 * n) / total)} %`;
      fill(range);
      for (const b of element.querySelectorAll(".marks button")) b.setAttribute("aria-pressed", Number(b.dataset.tokens) === n);
      for (const b of element.querySelectorAll(".ways button")) {
        b.setAttribute("aria-pressed", b.dataset.match === match);
        if (b.dataset.match === match) element.querySelector(".way").textContent = b.dataset.about;
      }
      document.body.classList.toggle("vtc-matching", match !== "final tokens"); // then no column has a number of its own
    };
    const done = (change) => {
      clearTimeout(resting);
      props.value = { ...props.value, ...change };
      mine = JSON.stringify(props.value);
      show();
      pick({});
    };
    const now = () => Number(range.value);
    range.addEventListener("input", () => {
      show();
      clearTimeout(resting);
      if (props.live) resting = setTimeout(() => done({ tokens: now() }), 80);
    });
    range.addEventListener("change", () => { if (now() !== props.value.tokens) done({ tokens: now() }); });
    element.addEventListener("click", (event) => {
      const { tokens, match } = event.target.dataset;
      if (tokens) { range.value = tokens; done({ tokens: Number(tokens) }); }
      if (match) done({ match });
    });
    show();
    watch("value", () => {
      if (JSON.stringify(props.value) === mine) return;
      range.value = props.value.tokens;
      show();
    });
  }

  function head(element, props, pick, watch) {
    const select = element.querySelector("select"), settings = element.querySelector(".settings");
    const column = element.closest(".vtc-col"), gear = element.querySelector(".gear");
    let mine = null; // what was last set here: any other value comes from a link
    const set = (change, tell = true) => {
      props.value = { ...props.value, ...change };
      mine = JSON.stringify(props.value);
      column.classList.toggle("vtc-apart", props.value.own);
      if (tell) { column.classList.add("vtc-stale"); pick({}); }
    };
    const total = () => Number(document.querySelector(".vtc-budget input")?.max ?? 576);

    const describe = () => {
      const method = props.catalogue[props.value.method];
      column.style.setProperty("--m", props.hues[props.value.method]);
      for (const [part, text] of [[".kind", method.kind], [".about", method.summary]]) {
        element.querySelector(part).textContent = text;
        element.querySelector(part).title = text;
      }
      settings.replaceChildren(...(method.retention ? [own()] : []), ...method.parameters.map(parameter),
        facts(method.facts));
    };
    const facts = (f) => {
      const said = (name, text) => (text ? [make("p", {}, make("b", {}, `${name}: `), make("span", { lang: "en" }, text))] : []);
      const links = f.links.flatMap(([text, href]) => [" · ", make("a", { href, target: "_blank", rel: "noopener noreferrer", translate: "no" }, text)]);
      const list = make("ul", {}, ...f.deviations.map((text) => make("li", { lang: "en" }, text)));
      const apart = make("details", {}, make("summary", {}, `Where it differs (${f.deviations.length})`), list);
      return make("div", { class: "facts" }, make("p", {}, make("b", {}, f.faithfulness), f.source && ` · ${f.source}`, ...links),
        ...said("The paper reports", f.reported), ...said("Found here", f.finding), ...(f.deviations.length ? [apart] : []));
    };
    const own = () => {
      const box = make("input", { type: "checkbox" });
      const range = make("input", { type: "range", min: Math.ceil(total() / 100), max: total(), step: 1, value: props.value.tokens,
        "aria-label": "Visual tokens kept in this column" });
      const out = make("output"), row = make("div", { class: "range" }, range, out);
      box.checked = props.value.own;
      row.hidden = !box.checked;
      box.addEventListener("change", () => { row.hidden = !box.checked; set({ own: box.checked }); });
      slider(range, () => Number(range.value), () => { out.textContent = `${range.value} of ${total()}`; }, (tokens) => set({ tokens }));
      return make("div", { class: "param own" }, make("label", {}, box, " own number of tokens"), row);
    };
    const parameter = (p) => {
      const now = props.value.params[p.name] ?? p.default;
      const put = (value) => set({ params: { ...props.value.params, [p.name]: value } });
      const label = make("label", {}, make("span", { translate: "no" }, p.name.replaceAll("_", " ")), make("small", {}, p.help ?? ""));
      if (typeof p.default === "boolean") {
        const box = make("input", { type: "checkbox" });
        box.checked = now;
        box.addEventListener("change", () => put(box.checked));
        label.prepend(box);
        return make("div", { class: "param" }, label);
      }
      if (p.choices) {
        const list = make("select", { translate: "no" }, ...p.choices.map((c) => make("option", { value: c }, String(c))));
        list.value = now;
        list.addEventListener("change", () => put(p.choices.find((c) => String(c) === list.value)));
        label.append(list);
        return make("div", { class: "param" }, label);
      }
      const whole = Number.isInteger(p.default) && (p.step == null || Number.isInteger(p.step));
      const bounded = p.low != null && p.high != null && (p.high - p.low) / (p.step ?? 0.01) <= 1000; // else a slider is too coarse
      const field = make("input", { type: typeof p.default === "string" ? "text" : bounded ? "range" : "number", min: p.low, max: p.high,
        step: p.step ?? (whole ? 1 : "any"), value: now });
      const out = make("output");
      slider(field, () => (typeof p.default === "string" ? field.value : Number(field.value)),
        () => { out.textContent = bounded ? field.value : ""; }, put);
      label.append(make("div", { class: "range" }, field, out));
      return make("div", { class: "param" }, label);
    };

    select.addEventListener("change", () => { set({ method: select.value, params: {} }); describe(); });
    gear.addEventListener("click", () => {
      settings.hidden = !settings.hidden;
      gear.setAttribute("aria-expanded", !settings.hidden);
    });
    const show = (on, tell) => {
      column.classList.toggle("vtc-off", !on);
      set({ on }, tell);
      const columns = document.querySelectorAll(".vtc-col:not(.vtc-off)").length;
      column.parentElement.style.setProperty("--columns", columns);
      column.parentElement.classList.toggle("vtc-least", columns <= 2);
      document.querySelector(".vtc-add")?.toggleAttribute("hidden", columns >= 4);
    };
    element.querySelector(".close").addEventListener("click", () => show(false, true));
    column.addEventListener("vtc:show", () => show(true, true));
    const restore = () => {
      if (JSON.stringify(props.value) === mine) return;
      select.value = props.value.method;
      describe();
      show(props.value.on, false);
    };
    restore();
    watch("value", restore);
  }

  // -- the page ----------------------------------------------------------------------------------------------------
  document.addEventListener("click", (event) => {
    const hit = (selector) => event.target.closest?.(selector);
    if (hit(".vtc-theme")) { paint(!dark()); store.set(dark() ? "dark" : "light"); }
    if (hit(".vtc-add")) document.querySelector(".vtc-col.vtc-off")?.dispatchEvent(new Event("vtc:show"));
  });

  // A picture dropped on the preview, or pasted, goes the way of the upload button.
  function give(files) {
    const input = document.querySelector("#vtc-upload input[type=file], input#vtc-upload") ??
      document.querySelector("#vtc-upload")?.parentElement.querySelector("input[type=file]");
    if (!input || !files.length) return false;
    input.files = files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
  }
  document.addEventListener("dragover", (event) => { if (event.target.closest?.("#vtc-preview")) event.preventDefault(); });
  document.addEventListener("drop", (event) => { if (event.target.closest?.("#vtc-preview")) { event.preventDefault(); give(event.dataTransfer.files); } });
  document.addEventListener("paste", (event) => { if (event.clipboardData?.files.length) give(event.clipboardData.files); });

  // The tab row stands right of the title, however wide the visitor's font makes it.
  const place = () => {
    const title = document.querySelector(".vtc-top h1 span");
    if (title) document.documentElement.style.setProperty("--tabs", `${Math.round(title.getBoundingClientRect().right + 24)}px`);
  };
  // Gradio draws the header late: the row is placed when it is there.
  const wait = () => { place(); if (!document.documentElement.style.getPropertyValue("--tabs")) setTimeout(wait, 100); };
  const begin = (start) => (document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", start) : start());
  // Code that is wider than its box scrolls; so it must be reached by keyboard too.
  const reach = () => { for (const code of document.querySelectorAll(".prose pre:not([tabindex])")) code.tabIndex = 0; };
  begin(() => {
    mine();
    wait();
    new MutationObserver(reach).observe(document.body, { subtree: true, childList: true });
    window.addEventListener("resize", place);
  });
  window.vtc = { pictures, chips, budget, head, make, fill, begin };
})();
