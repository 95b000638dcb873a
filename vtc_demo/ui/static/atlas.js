// The atlas: search, filters, map, table. Everything it shows is in the page already; the server is not asked.
// Text from the data is only ever set as textContent.
(() => {
  const { make } = window.vtc;
  const FILTERS = ["family", "site", "here", "training", "domain", "year", "month"];
  const TRAINING = { yes: "training-free", no: "trained", open: "–" };
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const COLUMNS = [["name", "Paper"], ["month", "When"], ["family", "Family"], [null, "Where in the pass"], ["training", "Training"], ["here", "On this page"]];
  const MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];

  // -- state: filters, words, order and the open paper; kept in the address ------------------------------------------
  const empty = () => ({ q: "", sort: "here", paper: "", ...Object.fromEntries(FILTERS.map((name) => [name, ""])) });
  function fromHash() {
    const state = empty(), [page, query] = location.hash.replace(/^#/, "").split("?");
    if (page !== "atlas") return state;
    for (const [name, value] of new URLSearchParams(query ?? "")) if (name in state) state[name] = value;
    return state;
  }
  function toHash(state) {
    const told = Object.entries(state).filter(([name, value]) => value && value !== empty()[name]);
    const query = new URLSearchParams(told).toString();
    history.replaceState(history.state, "", `${location.pathname}${location.search}#atlas${query && `?${query}`}`);
  }
  const words = (paper) => [paper.name, paper.title, paper.idea, paper.family, paper.arxiv, paper.code ?? ""].join(" ").toLowerCase();
  const value = (paper, name) => (name === "year" ? paper.month.slice(0, 4) : paper[name]);
  function passes(paper, state, ...except) {
    if (!state.q.toLowerCase().split(/\s+/).every((word) => words(paper).includes(word))) return false;
    return FILTERS.every((name) => !state[name] || except.includes(name) ||
      (name === "site" ? paper.sites.includes(state.site) : value(paper, name) === state[name]));
  }

  // One tab stop for many buttons laid out by data-x and data-y; arrow keys go to the next one in their direction.
  function roam(box) {
    const stops = () => [...box.querySelectorAll("button[data-x]")];
    const rest = (on) => { for (const b of stops()) b.tabIndex = b === on ? 0 : -1; };
    const at = (b) => [Number(b.dataset.x), Number(b.dataset.y)];
    box.addEventListener("focusin", (event) => { if (event.target.matches("button[data-x]")) rest(event.target); });
    box.addEventListener("keydown", (event) => {
      if (!(event.key in STEPS) || !event.target.matches("button[data-x]")) return;
      const [dx, dy] = STEPS[event.key], [x, y] = at(event.target);
      const way = (b) => { const [u, v] = at(b); return dx ? (v === y ? (u - x) * dx : 0) : (u === x ? (v - y) * dy : 0); };
      const next = stops().filter((b) => way(b) > 0).sort((a, b) => way(a) - way(b))[0];
      if (!next) return;
      event.preventDefault();
      next.focus();
    });
    rest(stops()[0]);
  }

  // -- the map: families by places -----------------------------------------------------------------------------------
  function cross(box, { papers, families, places }, choose) {
    const there = (family, site) => papers.some((p) => p.family === family && p.sites.includes(site));
    const button = (x, y, filter, content) => {
      const b = make("button", { type: "button", "data-x": x, "data-y": y, title: content.title ?? null }, content.text ?? "");
      b.addEventListener("click", () => choose(filter));
      b.filter = filter;
      return b;
    };
    const head = make("tr", {}, make("td"), ...places.map((place, x) =>
      make("th", { scope: "col" }, button(x + 1, 0, { site: place.name }, { text: place.title, title: `All papers at: ${place.title}` }))));
    const rows = families.map((family, y) => {
      const label = button(0, y + 1, { family: family.name }, { text: family.name, title: family.about });
      const cells = places.map((place, x) => (there(family.name, place.name)
        ? make("td", {}, button(x + 1, y + 1, { family: family.name, site: place.name }, {})) : make("td")));
      return make("tr", { style: `--m:${family.hue}` }, make("th", { scope: "row" }, label), ...cells);
    });
    box.replaceChildren(make("table", { "aria-label": "Number of papers by family and place" }, make("thead", {}, head), make("tbody", {}, ...rows)));
    roam(box);
    return (state) => {
      const left = papers.filter((p) => passes(p, state, "family", "site"));
      for (const b of box.querySelectorAll("button")) {
        const { family, site } = b.filter;
        b.setAttribute("aria-pressed", (state.family || "") === (family ?? "") && (state.site || "") === (site ?? ""));
        if (!family || !site) continue;
        const n = left.filter((p) => p.family === family && p.sites.includes(site)).length;
        b.textContent = n || "·";
        b.style.setProperty("--n", n);
        b.setAttribute("aria-label", `${family}, ${places.find((p) => p.name === site).title}: ${n}`);
      }
    };
  }

  // -- the map: by month ---------------------------------------------------------------------------------------------
  function months(box, { papers, families }, choose) {
    const hue = Object.fromEntries(families.map((f) => [f.name, f.hue]));
    const years = [...new Set(papers.map((p) => p.month.slice(0, 4)))].sort();
    const dots = new Map(papers.map((p) => [p, make("i", { style: `--m:${hue[p.family]}` })]));
    const column = (year, m, y) => {
      const month = `${year}-${String(m + 1).padStart(2, "0")}`, posted = papers.filter((p) => p.month === month);
      if (!posted.length) return make("span");
      const b = make("button", { type: "button", "data-x": y * 12 + m, "data-y": 0, "data-month": month,
        title: `${MONTHS[m]} ${year}: ${posted.map((p) => p.name).join(", ")}` }, ...posted.map((p) => dots.get(p)));
      b.setAttribute("aria-label", b.title);
      b.addEventListener("click", () => choose({ month }));
      return b;
    };
    box.replaceChildren(...years.map((year, y) => {
      const label = make("button", { type: "button", "data-x": y * 12, "data-y": 1, "data-year": year }, year);
      label.addEventListener("click", () => choose({ year }));
      return make("div", { class: "year" }, make("div", { class: "columns" }, ...MONTHS.map((_, m) => column(year, m, y))), label);
    }));
    roam(box);
    requestAnimationFrame(() => { box.scrollLeft = box.scrollWidth; }); // on a phone the latest years show first
    return (state) => {
      for (const [paper, dot] of dots) dot.classList.toggle("off", !passes(paper, state, "year", "month"));
      for (const b of box.querySelectorAll("[data-month]")) b.setAttribute("aria-pressed", b.dataset.month === state.month);
      for (const b of box.querySelectorAll("[data-year]")) b.setAttribute("aria-pressed", b.dataset.year === state.year);
    };
  }

  // -- the table -----------------------------------------------------------------------------------------------------
  const cell = (kind, ...children) => make("div", { role: "cell", class: kind }, ...children);
  const away = (href, text) => make("a", { href, target: "_blank", rel: "noopener noreferrer", translate: "no" }, text);
  const tryIt = (method) => make("a", { class: "try", href: `?method=${encodeURIComponent(method.name)}`, title: `Open Compare with ${method.title}` }, "Try it");

  function pass(paper, places, long) {
    const steps = places.filter((place) => place.name !== "none").map((place) => {
      const on = paper.sites.includes(place.name);
      return make("li", { class: on ? "on" : null, title: place.title }, ...(long ? [place.title] : []), ...(on ? [make("span", { class: "vtc-unseen" }, long ? ": here" : `${place.title} `)] : []));
    });
    return make("ol", { class: long ? "pass long" : "pass", "aria-label": "Where in the pass" }, ...steps);
  }

  function detail(paper, places) {
    const part = (title, ...children) => make("div", { class: "part" }, make("h4", {}, title), ...children);
    const links = make("p", { class: "links" }, away(`https://arxiv.org/abs/${paper.arxiv}`, `arXiv ${paper.arxiv}`),
      ...(paper.code ? [away(`https://github.com/${paper.code}`, paper.code)] : [make("span", {}, "no code link known")]));
    const story = make("div", {}, part("Idea", make("p", {}, paper.idea)),
      ...(paper.claim ? [part("The paper reports", make("p", { class: "claim", lang: "en" }, paper.claim))] : []), part("Read", links));
    const where = part("Where in the pass", pass(paper, places, true),
      ...(paper.sites.includes("none") ? [make("p", { class: "soft" }, "No token is removed inside a vision-language model.")] : []));
    const here = paper.methods.length ? part("On this page", ...paper.methods.map(method)) : part("Not on this page", make("p", {}, paper.why));
    const lesson = paper.lesson ? [part("Lesson", make("p", {}, `Lesson ${paper.lesson.number} builds it step by step: `, make("code", {}, `jupyter lab ${paper.lesson.path}`)))] : [];
    return make("div", { class: "both" }, story, make("div", {}, where, here, ...lesson));
  }

  const fold = (title, ...children) => make("details", {}, make("summary", {}, title), ...children);
  function method(m) {
    return make("div", { class: "method" },
      make("p", {}, make("b", { translate: "no" }, m.title), make("span", { class: "tag" }, m.faithfulness), tryIt(m)),
      ...(m.finding ? [fold("What was found here", make("p", { lang: "en" }, m.finding))] : []),
      ...(m.deviations.length ? [fold(`Where it differs (${m.deviations.length})`, make("ul", {}, ...m.deviations.map((text) => make("li", { lang: "en" }, text))))] : []));
  }

  function row(paper, { places, families }, toggle) {
    const id = `atlas-${paper.key}`, open = make("button", { type: "button", class: "open", "aria-expanded": "false", "aria-controls": id, translate: "no" }, paper.name);
    const state = paper.methods.length ? [tryIt(paper.methods[0])] : [make("span", { class: "soft" }, paper.here)];
    const line = make("div", { role: "row", class: "line" },
      cell("name", open, make("span", { class: "title", title: paper.title, lang: "en" }, paper.title)), cell("month", paper.month), cell("family", make("i"), paper.family),
      cell("where", pass(paper, places, false)), cell("training", TRAINING[paper.training]), cell("here", ...state));
    const more = make("div", { role: "row", class: "more", id, hidden: "" }, make("div", { role: "cell", "aria-colspan": COLUMNS.length }));
    const group = make("div", { role: "rowgroup", class: "paper", style: `--m:${families.find((f) => f.name === paper.family).hue}` }, line, more);
    line.addEventListener("click", (event) => { if (!event.target.closest("a")) toggle(paper.key); });
    return { paper, group, show(on) {
      if (on && !more.firstChild.firstChild) more.firstChild.append(detail(paper, places));
      more.hidden = !on;
      open.setAttribute("aria-expanded", on);
      group.classList.toggle("on", on);
    } };
  }

  const rank = { here: (p) => ["runs here", "could run here", "needs training", "needs several frames"].indexOf(p.here) + 1 || 9, month: () => 0,
    name: (p) => p.name.toLowerCase(), family: (p) => p.family, training: (p) => ["yes", "no", "open"].indexOf(p.training) };
  const order = (by) => (a, b) => {
    const [x, y] = [a, b].map(({ paper }) => rank[by](paper));
    return x < y ? -1 : x > y ? 1 : b.paper.month.localeCompare(a.paper.month);
  };

  function table(box, props, choose) {
    const heads = COLUMNS.map(([by, text]) => {
      const sort = by && make("button", { type: "button" }, text);
      sort?.addEventListener("click", () => choose({ sort: by }, true));
      return make("div", { role: "columnheader", "data-sort": by }, sort ?? text);
    });
    const rows = props.papers.map((paper) => row(paper, props, (key) => choose({ paper: key })));
    const none = make("p", { class: "none", hidden: "" }, "No paper matches. Take a filter away or search for another word.");
    const list = make("div", { role: "table", "aria-label": "Papers" }, make("div", { role: "rowgroup", class: "heads" }, make("div", { role: "row", class: "line" }, ...heads)));
    box.replaceChildren(list, none);
    let sorted = null;
    return (state) => {
      const by = state.sort in rank ? state.sort : "here";
      if (sorted !== by) list.append(...rows.sort(order((sorted = by))).map((r) => r.group));
      for (const head of heads) head.setAttribute("aria-sort", head.dataset.sort === by ? (by === "month" ? "descending" : "ascending") : "none");
      let n = 0;
      for (const r of rows) {
        const on = passes(r.paper, state);
        r.group.hidden = !on;
        r.show(on && r.paper.key === state.paper);
        n += on;
      }
      none.hidden = n > 0;
      list.hidden = n === 0;
    };
  }

  // -- all together --------------------------------------------------------------------------------------------------
  function atlas(element, props) {
    const find = (selector) => element.querySelector(selector);
    let state = fromHash();
    const draw = (save = true) => {
      const shown = props.papers.filter((p) => passes(p, state)), run = shown.filter((p) => p.methods.length).length;
      find(".told").textContent = `${shown.length} of ${props.papers.length} papers; running here: ${run}`;
      find(".meaning").textContent = props.families.find((f) => f.name === state.family)?.about ?? "";
      find(".reset").hidden = !state.q && FILTERS.every((name) => !state[name]);
      if (find("input").value !== state.q) find("input").value = state.q;
      for (const select of element.querySelectorAll("select")) select.value = state[select.dataset.filter];
      parts.forEach((part) => part(state));
      if (save) toHash(state);
    };
    // Chosen again, a filter is taken away; a cell of the map stands for a family and a place, its heads for one of them.
    const choose = (change, keep = false) => {
      if ("family" in change || "site" in change) change = { family: "", site: "", ...change };
      if ("year" in change || "month" in change) change = { year: "", month: "", ...change };
      const same = !keep && Object.entries(change).every(([name, value]) => state[name] === value);
      state = { ...state, ...(same ? Object.fromEntries(Object.keys(change).map((name) => [name, ""])) : change) };
      draw();
    };
    const parts = [cross(find(".cross"), props, choose), months(find(".months"), props, choose), table(find(".rows"), props, choose)];
    find("input").addEventListener("input", (event) => { state = { ...state, q: event.target.value }; draw(); });
    for (const select of element.querySelectorAll("select"))
      select.addEventListener("change", () => { state = { ...state, [select.dataset.filter]: select.value, ...(select.dataset.filter === "year" && { month: "" }) }; draw(); });
    find(".reset").addEventListener("click", () => { state = { ...empty(), sort: state.sort, paper: state.paper }; draw(); find("input").focus(); });
    window.addEventListener("hashchange", () => { if (location.hash.startsWith("#atlas")) { state = fromHash(); draw(false); } });
    if (window.matchMedia("(max-width: 1000px)").matches) find("details.map").open = false;
    draw(false);
    const opened = state.paper && find(`#atlas-${CSS.escape(state.paper)}`);
    if (opened) requestAnimationFrame(() => opened.parentElement.scrollIntoView({ block: "center" }));
  }
  window.vtc.atlas = atlas;

  // A link to #atlas opens this tab. Gradio draws the tabs late and listens to them later still.
  const arrive = (left = 600) => {
    if (!location.hash.startsWith("#atlas") || document.querySelector(".vtc-atlas")?.offsetParent) return;
    const more = [...document.querySelectorAll("#vtc-tabs .overflow-dropdown button")]; // tabs that a phone has no room for
    const all = [...document.querySelectorAll("#vtc-tabs [aria-hidden=true] > button")]; // every tab, in order
    const place = all.findIndex((b) => ["Atlas", "论文图谱"].includes(b.textContent.trim()));
    (document.querySelector("#vtc-tab-atlas-button") ?? more[place - all.length + more.length])?.click();
    if (left) setTimeout(() => arrive(left - 1), 100);
  };
  window.addEventListener("hashchange", () => arrive());
  window.vtc.begin(() => arrive());
})();
