// The masks of the cards: the slider that plays the pass, and the fate of a patch by pointer, touch or arrow keys.
// Data come from the attribute `data-mask` that `viz.mask` writes; text is only ever set as textContent.
(() => {
  const { fill } = window.vtc;
  const DROPPED = 0, MERGED = 1, KEPT = 2, LINES = 80;
  const read = (svg) => (svg.vtc?.text === svg.dataset.mask ? svg.vtc : (svg.vtc = { text: svg.dataset.mask, ...JSON.parse(svg.dataset.mask) }));
  const station = (body) => Number(body.querySelector(".vtc-site")?.value ?? 0);
  const bodies = () => [...document.querySelectorAll(".vtc-body")].filter((body) => body.querySelector(".vtc-site"));

  // -- the pass ----------------------------------------------------------------------------------------------------
  function goTo(body, index) {
    const svg = body.querySelector(".vtc-mask"), range = body.querySelector(".vtc-site");
    if (!svg || !range) return;
    const data = read(svg), frame = data.frames[index], site = data.sites[frame.mask];
    range.value = index;
    fill(range);
    range.setAttribute("aria-valuetext", `${frame.label}, ${frame.tokens} visual tokens`);
    const told = body.querySelector(".vtc-player output");
    told.textContent = told.dataset.caption = frame.caption = `${frame.label} · ${frame.tokens}`;
    body.querySelector(".vtc-counts").textContent = site ? site.counts : "every patch kept";
    const share = body.querySelector(".vtc-share");
    if (share) share.textContent = `${Math.round(100 * (site?.evidence ?? 1))}%`;
    for (const layer of svg.querySelectorAll(".vtc-layer")) layer.classList.toggle("on", Number(layer.dataset.site) === frame.mask);
    for (const bar of body.querySelectorAll(".vtc-bars span")) bar.classList.toggle("on", Number(bar.dataset.layer) === frame.layer);
    leave(body);
  }

  let playing = null;
  function stop() {
    if (!playing) return;
    clearInterval(playing.timer);
    playing.button.textContent = "▶";
    playing.button.setAttribute("aria-label", "Play the pass");
    playing = null;
  }
  function play(button) {
    const again = playing?.button === button;
    stop();
    if (again) return;
    const body = button.closest(".vtc-body"), last = Number(body.querySelector(".vtc-site").max);
    let at = station(body) >= last ? -1 : station(body);
    const step = () => { at += 1; goTo(body, at); if (at >= last) stop(); };
    playing = { button, timer: setInterval(step, 450) };
    button.textContent = "❚❚";
    button.setAttribute("aria-label", "Pause");
    step();
  }

  // -- the fate of a patch -----------------------------------------------------------------------------------------
  const place = (patch, columns) => `(${Math.floor(patch / columns)}, ${patch % columns})`;

  // {text, home, members}: home is the patch whose token took this one in, members are the patches merged into it.
  function fate(data, index, patch) {
    const { sites, grid } = data, at = data.frames[index].mask, site = sites[at];
    if (data.cells && !data.cells.includes(patch)) return { text: "no patch stands here", members: [] };
    const status = (i) => (i == null || i < 0 ? KEPT : Number(sites[i].status[patch]));
    const first = (state, from = 0) => sites.findIndex((s, i) => i >= from && Number(s.status[patch]) === state);
    const now = status(at), gone = first(DROPPED), joined = first(MERGED), later = gone >= 0 && now !== DROPPED ? sites[gone].label : "";
    if (now === DROPPED) {
      const text = joined >= 0 && joined < gone ? `merged at ${sites[joined].label}, dropped at ${sites[gone].label}` : `dropped at ${sites[gone].label}`;
      return { text, members: [] };
    }
    const members = (home) => (at == null ? [] : Object.keys(site.merged).map(Number).filter((p) => p !== patch && site.merged[p][0] === home));
    if (now === MERGED) {
      const [home, weight] = site.merged[patch], where = home < 0 ? "the CLS token" : `patch ${place(home, grid[1])}`;
      const text = site.soft ? `at most ${weight.toFixed(3)} of one token, which stands at ${where}` : `${weight.toFixed(2)} into ${where}`;
      return { text: later ? `${text}, dropped at ${later}` : text, home, members: site.soft || home < 0 ? [] : members(home) };
    }
    const mine = members(patch), taken = mine.length ? `, with ${mine.length} merged into it` : "";
    if (later) return { text: `kept here${taken}, dropped at ${later}`, home: patch, members: mine };
    const text = joined > (at ?? -1) ? `kept here${taken}, merged at ${sites[joined].label}` : `kept to the cache${taken}`;
    return { text, home: patch, members: mine };
  }

  function leave(body) {
    body.querySelector(".vtc-cursor")?.setAttribute("visibility", "hidden");
    body.querySelector(".vtc-group")?.setAttribute("d", "");
    body.querySelector(".vtc-links")?.replaceChildren();
    body.querySelector(".vtc-tip")?.classList.remove("on");
  }
  const leaveAll = () => bodies().forEach(leave);

  // The patch and its fate on one card; spoken: told to screen readers too.
  function show(svg, patch, spoken) {
    const body = svg.closest(".vtc-body"), data = read(svg), [rows, columns] = data.grid, what = fate(data, station(body), patch);
    const r = Math.floor(patch / columns), cursor = svg.querySelector(".vtc-cursor"), tip = body.querySelector(".vtc-tip");
    cursor.setAttribute("x", patch % columns);
    cursor.setAttribute("y", r);
    cursor.setAttribute("visibility", "visible");
    const group = what.home >= 0 ? [what.home, ...what.members] : [];
    svg.querySelector(".vtc-group").setAttribute("d", group.length > 1 || what.home !== patch ? group.map((p) => `M${p % columns} ${Math.floor(p / columns)}h1v1h-1z`).join("") : "");
    svg.querySelector(".vtc-links").replaceChildren(...lines(patch, what, columns));
    tip.textContent = `${place(patch, columns)} ${what.text}`;
    tip.classList.toggle("low", r < rows / 2);
    tip.classList.add("on");
    if (spoken) body.querySelector(".vtc-live").textContent = `Patch ${place(patch, columns)}: ${what.text}`;
  }

  function lines(patch, { home, members }, columns) {
    if (!(home >= 0)) return [];
    const middle = (p) => [(p % columns) + 0.5, Math.floor(p / columns) + 0.5];
    const draw = (from) => {
      const [x1, y1] = middle(from), [x2, y2] = middle(home), line = document.createElementNS("http://www.w3.org/2000/svg", "line");
      for (const [k, v] of Object.entries({ x1, y1, x2, y2 })) line.setAttribute(k, v);
      if (from === patch) line.classList.add("mine");
      return line;
    };
    return [...members.slice(0, LINES).map(draw), ...(home === patch ? [] : [draw(patch)])];
  }

  // The same patch on every card that has the same grid, so that fates can be compared.
  function point(svg, patch, spoken) {
    const grid = String(read(svg).grid);
    for (const body of bodies()) {
      const other = body.querySelector(".vtc-mask");
      if (String(read(other).grid) === grid) show(other, patch, spoken && other === svg);
    }
    svg.vtcAt = patch;
  }

  function under(svg, event) {
    const [rows, columns] = read(svg).grid, box = svg.getBoundingClientRect();
    const c = Math.floor(((event.clientX - box.left) / box.width) * columns), r = Math.floor(((event.clientY - box.top) / box.height) * rows);
    return c < 0 || r < 0 || c >= columns || r >= rows ? null : r * columns + c;
  }

  const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -1e3], End: [0, 1e3], PageUp: [-1e3, 0], PageDown: [1e3, 0] };
  function keyed(svg, event) {
    const [rows, columns] = read(svg).grid, at = svg.vtcAt ?? Math.floor(rows / 2) * columns + Math.floor(columns / 2);
    if (event.key === "Escape") return leaveAll();
    const step = STEPS[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const clamp = (x, n) => Math.min(n - 1, Math.max(0, x));
    point(svg, clamp(Math.floor(at / columns) + step[0], rows) * columns + clamp((at % columns) + step[1], columns), true);
  }

  // -- evidence ----------------------------------------------------------------------------------------------------
  const press = () => {
    const on = !document.body.classList.contains("vtc-no-evidence");
    for (const button of document.querySelectorAll(".vtc-evidence-toggle")) button.setAttribute("aria-pressed", on);
  };

  // -- events ------------------------------------------------------------------------------------------------------
  const mask = (event) => event.target.closest?.(".vtc-mask");
  document.addEventListener("input", (event) => {
    if (event.target.matches?.(".vtc-site")) { stop(); goTo(event.target.closest(".vtc-body"), Number(event.target.value)); }
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".vtc-play");
    if (button) play(button);
    if (event.target.closest?.(".vtc-evidence-toggle")) { document.body.classList.toggle("vtc-no-evidence"); press(); }
  });
  for (const kind of ["pointermove", "pointerdown"])
    document.addEventListener(kind, (event) => {
      const svg = mask(event), patch = svg && under(svg, event);
      if (svg && patch != null) point(svg, patch, false);
      else if (kind === "pointerdown") leaveAll(); // a touch elsewhere puts the tip of the last one away
    });
  document.addEventListener("pointerout", (event) => { if (mask(event) && event.pointerType !== "touch") leaveAll(); });
  document.addEventListener("keydown", (event) => { const svg = mask(event); if (svg) keyed(svg, event); });
  document.addEventListener("focusin", (event) => {
    const svg = mask(event);
    if (svg?.matches(":focus-visible")) point(svg, svg.vtcAt ?? Math.floor((read(svg).grid[0] * read(svg).grid[1] + read(svg).grid[1]) / 2), true);
  });
  document.addEventListener("focusout", (event) => { if (mask(event)) leaveAll(); });

  // Gradio writes new results into the old elements. New data: the slider goes to its end; the same data drawn again:
  // it stays where the visitor left it.
  const fresh = (records) => {
    const near = (node) => (node.nodeType === Node.ELEMENT_NODE ? node : node.parentElement)?.closest(".vtc-result");
    for (const result of new Set(records.map((record) => near(record.target)))) {
      const svg = result?.querySelector(".vtc-mask"), body = svg?.closest(".vtc-body");
      result?.closest(".vtc-col").classList.remove("vtc-stale");
      if (!svg) continue;
      const renewed = svg.vtc?.text !== svg.dataset.mask, index = renewed ? Number(body.querySelector(".vtc-site").max) : station(body);
      if (renewed || body.querySelector(".vtc-player output").dataset.caption !== read(svg).frames[index]?.caption) {
        if (renewed && playing && result.contains(playing.button)) stop();
        goTo(body, index);
      }
    }
    if (document.body.classList.contains("vtc-no-evidence")) press();
  };
  window.vtc.begin(() => {
    new MutationObserver(fresh).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ["data-mask"] });
    bodies().forEach((body) => goTo(body, Number(body.querySelector(".vtc-site").max)));
  });
})();
