// The scene composer. The draft lives here, and while something moves it is drawn here from ready-made sprites.
// At rest the stage shows the picture that Python made of the draft, the one the model would be given.
(() => {
  const SAY = {
    full: (most) => `A picture holds at most ${most} objects. Delete one to add another.`,
    added: (name) => `Added: ${name}. Drag it, or move it with the arrow keys.`,
    deleted: (name) => `Deleted: ${name}.`,
    characters: "A card takes the letters A to Z and the digits 0 to 9.",
    lost: "The server does not answer. Try again in a moment.",
    card: (text) => `card ${text}`,
  };
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const STEP = 7, FINE = 1, GROW = 4; // px: half a patch, with Shift, with plus and minus
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const copy = (data) => JSON.parse(JSON.stringify(data));

  // -- the draft: a scene whose pieces (the objects, then the card) have ids --------------------------------------
  class Draft {
    constructor(limits) {
      Object.assign(this, { limits, serial: 0, scene: null, history: [], card: null });
    }

    load(scene) {
      const { size, items, tag, background } = copy(scene);
      const named = items.map((item) => ({ id: this.name(), ...item }));
      this.scene = { size, items: named, tag: tag && { id: "card", ...tag }, background };
    }

    begin(scene) { this.load(scene); this.history = []; this.keep(); }

    name() { return `object-${this.serial++}`; }

    get pieces() { return [...this.scene.items, ...(this.scene.tag ? [this.scene.tag] : [])]; }

    piece(id) { return this.pieces.find((p) => p.id === id); }

    plain() { return JSON.parse(JSON.stringify(this.scene, (key, value) => (key === "id" ? undefined : value))); }

    keep() {
      const now = JSON.stringify(this.scene);
      if (now !== this.history.at(-1)) this.history.push(now);
    }

    undo() {
      if (this.history.length > 1) this.history.pop();
      this.scene = JSON.parse(this.history.at(-1));
    }

    // Width and height in px. That of a card is known of the text that Python drew last, else guessed.
    extent(piece) {
      if (piece.id !== "card") return [2 * Math.round(piece.size_px / 2), 2 * Math.round(piece.size_px / 2)];
      const drawn = this.card?.text === piece.text ? this.card : { width: 0.64 * (piece.text.length + 1), height: 1.35, px: 1 };
      return [drawn.width, drawn.height].map((length) => (length * piece.height) / drawn.px);
    }

    move(piece, x, y) {
      const [width, height] = this.extent(piece), side = this.limits.side;
      piece.x = Math.round(clamp(x, width / 2, side - width / 2));
      piece.y = Math.round(clamp(y, height / 2, side - height / 2));
    }

    sizeOf(piece) { return piece.id === "card" ? piece.height : piece.size_px; }

    resize(piece, size) {
      const card = piece.id === "card";
      piece[card ? "height" : "size_px"] = 2 * Math.round(clamp(size, ...this.limits[card ? "text" : "item"]) / 2);
      this.move(piece, piece.x, piece.y);
    }

    // The place farthest from all pieces; the middle of an empty canvas.
    spot() {
      const { side } = this.limits, steps = [0.5, 0.3, 0.7, 0.15, 0.85].map((part) => part * side);
      const free = ([x, y]) => Math.min(side, ...this.pieces.map((p) => Math.hypot(p.x - x, p.y - y) - this.extent(p)[0] / 2));
      const places = steps.flatMap((y) => steps.map((x) => [x, y]));
      return places.reduce((best, place) => (free(place) > free(best) + 1 ? place : best));
    }

    // Right of, below, left of or above a piece, where that is free.
    beside(piece) {
      const gap = this.extent(piece)[0] + 4, { side } = this.limits, half = gap / 2;
      const apart = (x, y) => (p) => [p.x - x, p.y - y].some((d, axis) => Math.abs(d) >= half + this.extent(p)[axis] / 2 - 2);
      const free = ([x, y]) => Math.min(x, y, side - x, side - y) >= half - 2 && this.pieces.every(apart(x, y));
      return [[1, 0], [0, 1], [-1, 0], [0, -1]].map(([dx, dy]) => [piece.x + dx * gap, piece.y + dy * gap]).find(free) ?? this.spot();
    }

    add(item, at = this.spot()) {
      if (this.scene.items.length >= this.limits.most) return null;
      const piece = { ...item, id: this.name() };
      this.scene.items.push(piece);
      this.move(piece, ...at);
      return piece;
    }

    remove(piece) {
      if (piece.id === "card") this.scene.tag = null;
      this.scene.items = this.scene.items.filter((p) => p !== piece);
    }

    write(text) {
      const { scene } = this;
      if (!text) scene.tag = null;
      else if (scene.tag) scene.tag.text = text;
      else {
        const [x, y] = this.spot();
        scene.tag = { id: "card", text, x, y, height: this.limits.newText };
      }
      if (scene.tag) this.move(scene.tag, scene.tag.x, scene.tag.y);
    }

    // What Python made of the draft: pieces moved inside, the size of the card.
    adopt(reply) {
      const pieces = [...reply.scene.items, ...(reply.scene.tag ? [reply.scene.tag] : [])];
      const kept = this.history.at(-1) === JSON.stringify(this.scene);
      this.pieces.forEach((piece, i) => Object.assign(piece, pieces[i]));
      const [left, top, right, bottom] = reply.card ?? [];
      this.card = reply.card && { text: reply.scene.tag.text, px: reply.scene.tag.height, left, top, width: right - left, height: bottom - top };
      if (kept) this.history[this.history.length - 1] = JSON.stringify(this.scene);
    }
  }

  // -- the dialog -------------------------------------------------------------------------------------------------
  function composer(element, props, pick, watch, server) {
    const { limits, things, colours } = props, { side } = limits;
    const one = (selector) => element.querySelector(selector), all = (selector) => element.querySelectorAll(selector);
    const dialog = one("dialog"), stage = one(".cmp-stage"), picture = one(".cmp-picture"), size = one(".cmp-size");
    const text = one(".cmp-write input"), hue = one(".cmp-hue input"), draft = new Draft(limits);
    let chosen = null, colour = colours[0], origin = "", version = 0, tools = null;

    const say = (words) => { one(".cmp-status").textContent = words; };
    const name = (p) => (p.id === "card" ? SAY.card(p.text) : `${p.colour} ${p.thing}`);
    const percent = (px) => `${(100 * px) / side}%`;
    const nodeOf = (p) => stage.querySelector(`[data-id="${p.id}"]`);

    // -- drawing
    function show(piece, order) {
      const [width, height] = draft.extent(piece);
      const node = nodeOf(piece) ?? stage.appendChild(one("template").content.firstElementChild.cloneNode(true));
      node.dataset.id = piece.id;
      node.setAttribute("aria-label", piece.id === "card" ? name(piece) : `${name(piece)}, ${sizeWord(piece)}`);
      node.setAttribute("aria-pressed", piece.id === chosen);
      const places = { left: percent(piece.x - width / 2), top: percent(piece.y - height / 2), width: percent(width), height: percent(height) };
      Object.assign(node.style, places, { zIndex: order + 1 });
      if (piece.id === "card") return dress(node);
      node.style.setProperty("--t", things.indexOf(piece.thing));
      node.style.setProperty("--c", colours.indexOf(piece.colour));
    }

    // The card in motion is cut out of the last picture, where it lies in front of everything.
    function dress(node) {
      const card = draft.card, at = (offset, length) => `${(100 * offset) / Math.max(1, side - length)}%`;
      node.classList.add("is-card");
      if (!card || node.card === card) return;
      node.card = card;
      Object.assign(node.querySelector(".cmp-sprite").style, {
        backgroundImage: `url(${picture.src})`,
        backgroundSize: `${(100 * side) / card.width}% ${(100 * side) / card.height}%`,
        backgroundPosition: `${at(card.left, card.width)} ${at(card.top, card.height)}`,
        borderRadius: `${(20 * card.height) / card.width}% / 20%`,
      });
    }

    const sizeWord = (piece) => (piece.size_px < limits.big ? "small" : "big");

    function draw() {
      for (const node of all(".cmp-piece")) if (!draft.piece(node.dataset.id)) node.remove();
      draft.pieces.forEach(show);
      const piece = draft.piece(chosen), card = chosen === "card";
      one(".cmp-hint").hidden = Boolean(piece);
      one(".cmp-edit").hidden = !piece;
      if (piece) {
        [size.min, size.max] = limits[card ? "text" : "item"];
        size.value = draft.sizeOf(piece);
        one(".cmp-edit output").textContent = card ? `${size.value} px` : `${sizeWord(piece)}, ${size.value} px`;
        for (const action of ["copy", "front"]) one(`[data-do=${action}]`).disabled = card;
      }
      const now = piece?.colour ?? colour, { pattern } = draft.scene.background;
      dialog.style.setProperty("--c", colours.indexOf(now));
      for (const b of all("[data-colour]")) b.setAttribute("aria-pressed", b.dataset.colour === now);
      for (const b of all("[data-pattern]")) b.setAttribute("aria-pressed", b.dataset.pattern === pattern);
      if (document.activeElement !== text) text.value = draft.scene.tag?.text ?? "";
      hue.value = draft.scene.background.hue;
      for (const range of [size, hue]) range.style.setProperty("--at", percent((side * (range.value - range.min)) / (range.max - range.min)));
      one("[data-do=undo]").disabled = draft.history.length < 2;
    }

    // -- changes: `moving` draws with sprites until the picture has come; `done` makes a step for Undo of it
    function moving() { version += 1; stage.classList.remove("settled"); draw(); }
    function done() { draft.keep(); version += 1; draw(); paint(); }
    function choose(id) { chosen = id; colour = draft.piece(id)?.colour ?? colour; draw(); }

    let busy = false, again = false;
    async function paint() { // one request at a time; what changed meanwhile is asked for after it
      if (busy) { again = true; return; }
      busy = true;
      do { again = false; await ask(); } while (again);
      busy = false;
    }

    async function ask() {
      const asked = version, scene = draft.plain();
      try {
        const [reply] = await Promise.all([server.paint(scene), lay(scene)]);
        if (asked !== version) return;
        if (reply.error) return say(reply.error);
        await swap(picture, reply.picture);
        if (asked !== version) return;
        draft.adopt(reply);
        one(".cmp-note").textContent = reply.note;
        stage.classList.add("settled");
        draw();
      } catch { say(SAY.lost); }
    }

    async function swap(image, url) {
      const next = new Image();
      next.src = url;
      await next.decode();
      image.src = url;
    }

    let laid = "";
    async function lay(scene) { // the bare background, on which sprites move
      const key = JSON.stringify(scene.background);
      if (key === laid) return;
      const reply = await server.paint({ size: scene.size, items: [], tag: null, background: scene.background });
      if (reply.error) return;
      stage.style.setProperty("--ground", `url(${reply.picture})`);
      laid = key;
    }

    // -- pointer
    const at = (event) => {
      const box = stage.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * side, ((event.clientY - box.top) / box.height) * side];
    };

    function drag(event, piece, { grip = false, middle = false } = {}) { // middle: held by its middle, not where it was hit
      const node = nodeOf(piece), [x0, y0] = at(event), [dx, dy] = middle ? [0, 0] : [piece.x - x0, piece.y - y0];
      const reach = (x, y) => Math.max(1, Math.abs(x - piece.x), Math.abs(y - piece.y)), first = reach(x0, y0), was = draft.sizeOf(piece);
      const follow = (e) => {
        const [x, y] = at(e);
        grip ? draft.resize(piece, (was * reach(x, y)) / first) : draft.move(piece, x + dx, y + dy);
        moving();
      };
      node.setPointerCapture(event.pointerId);
      node.addEventListener("pointermove", follow);
      node.addEventListener("lostpointercapture", () => { node.removeEventListener("pointermove", follow); done(); }, { once: true });
    }

    stage.addEventListener("pointerdown", (event) => {
      const node = event.target.closest(".cmp-piece");
      if (!node) return choose(null);
      if (event.button) return;
      node.focus({ preventScroll: true });
      choose(node.dataset.id);
      drag(event, draft.piece(chosen), { grip: event.target.closest(".cmp-grip") });
    });
    stage.addEventListener("focusin", (event) => { const node = event.target.closest(".cmp-piece"); if (node && node.dataset.id !== chosen) choose(node.dataset.id); });

    // An object pulled out of the palette; by touch the palette only scrolls.
    one(".cmp-things").addEventListener("pointerdown", (event) => {
      const button = event.target.closest("[data-thing]"), from = [event.clientX, event.clientY];
      if (!button || event.button || event.pointerType === "touch") return;
      const pull = (e) => {
        if (Math.hypot(e.clientX - from[0], e.clientY - from[1]) < 8) return;
        stopPull();
        const piece = insert(button.dataset.thing, at(e));
        if (piece) drag(e, piece, { middle: true });
      };
      const stopPull = () => { for (const [kind, act] of [["pointermove", pull], ["pointerup", stopPull]]) document.removeEventListener(kind, act); };
      document.addEventListener("pointermove", pull);
      document.addEventListener("pointerup", stopPull);
    });

    function insert(thing, place) {
      const piece = draft.add({ thing, colour, size_px: limits.newItem }, place);
      if (!piece) { say(SAY.full(limits.most)); return null; }
      chosen = piece.id;
      moving();
      nodeOf(piece).focus({ preventScroll: true });
      say(SAY.added(name(piece)));
      return piece;
    }

    // -- keyboard
    stage.addEventListener("keydown", (event) => {
      const piece = draft.piece(event.target.dataset?.id), arrow = ARROWS[event.key];
      if (!piece || event.ctrlKey || event.metaKey || event.altKey) return;
      const step = event.shiftKey ? FINE : STEP, grow = { "+": GROW, "=": GROW, "-": -GROW, _: -GROW }[event.key];
      if (arrow) draft.move(piece, piece.x + step * arrow[0], piece.y + step * arrow[1]);
      else if (grow) draft.resize(piece, draft.sizeOf(piece) + grow);
      else if (["Delete", "Backspace"].includes(event.key)) return event.preventDefault(), discard(piece);
      else return;
      event.preventDefault();
      moving();
      done();
    });
    dialog.addEventListener("keydown", (event) => {
      if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey) || event.target === text) return;
      event.preventDefault();
      actions.undo();
    });

    function discard(piece) {
      const order = draft.pieces.indexOf(piece);
      draft.remove(piece);
      say(SAY.deleted(name(piece)));
      const next = draft.pieces[Math.min(order, draft.pieces.length - 1)];
      chosen = next?.id ?? null;
      moving();
      (next ? nodeOf(next) : one("[data-thing]")).focus({ preventScroll: true });
      done();
    }

    // -- buttons and fields
    function renew(scene) { scene(); chosen = null; moving(); done(); }
    const actions = {
      undo() { draft.undo(); moving(); done(); },
      clear() { renew(() => draft.load({ ...draft.plain(), items: [], tag: null })); },
      reset() { renew(() => draft.load(JSON.parse(origin))); },
      copy() {
        const piece = draft.piece(chosen), twin = draft.add(piece, draft.beside(piece));
        if (!twin) return say(SAY.full(limits.most));
        chosen = twin.id;
        moving();
        done();
      },
      front() {
        const piece = draft.piece(chosen);
        draft.scene.items = [...draft.scene.items.filter((p) => p !== piece), piece];
        moving();
        done();
      },
      delete() { discard(draft.piece(chosen)); },
      number() { write(String(10 + Math.floor(Math.random() * 990))); },
      texture() { draft.scene.background.seed = Math.floor(Math.random() * 2 ** 30); done(); },
      cancel() { dialog.close(); },
      use() {
        props.value = { scene: draft.plain() };
        origin = "";
        dialog.close();
        pick({});
      },
    };

    function write(words) { draft.write(words); chosen = words ? "card" : null; text.value = words; done(); }

    dialog.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const { do: action, thing, write: word, pattern, colour: paint } = button.dataset;
      if (action) actions[action]();
      if (thing && insert(thing)) done();
      if (word) write(word);
      if (pattern) { draft.scene.background.pattern = pattern; done(); }
      if (paint) { colour = paint; if (chosen && chosen !== "card") draft.piece(chosen).colour = paint; moving(); done(); }
    });

    text.addEventListener("input", () => {
      const words = text.value.toUpperCase().replaceAll(/[^A-Z0-9]/g, "");
      say(words.length < text.value.length ? SAY.characters : "");
      write(words);
    });
    size.addEventListener("input", () => { draft.resize(draft.piece(chosen), Number(size.value)); moving(); paint(); });
    hue.addEventListener("input", () => { draft.scene.background.hue = Number(hue.value); version += 1; draw(); paint(); });
    for (const range of [size, hue]) range.addEventListener("change", done);

    // -- opening. A draft that was left with Cancel is still there as long as the picture shown is the same.
    async function fetchTools() {
      const kit = await server.kit({});
      dialog.style.setProperty("--sheet", `url(${kit.sheet})`);
      for (const b of all("[data-pattern]")) b.querySelector("img").src = kit.patterns[b.dataset.pattern];
    }

    watch("value", () => {
      if (!props.value.opened) return;
      const now = JSON.stringify(props.value.scene);
      if (now !== origin) { origin = now; chosen = null; draft.begin(props.value.scene); }
      say("");
      if (!dialog.open) dialog.showModal();
      tools ??= fetchTools().catch(() => { tools = null; say(SAY.lost); });
      moving();
      paint();
    });
  }

  window.vtc.composer = composer;
})();
