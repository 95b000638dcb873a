// The page in another language. What Python and the scripts write is English, and English is the key: the language files
// (see language.py) say it otherwise. In English nothing of this runs. Text that is marked translate="no" or lang="en",
// and code, is left alone: answers, questions, names of files.
(() => {
  const ATTRIBUTES = ["title", "aria-label", "aria-valuetext", "placeholder", "alt", "label"];
  const INLINE = new Set(["B", "STRONG", "I", "EM", "A", "SMALL", "SPAN", "SUB", "SUP", "BR"]);
  const CLOSED = new Set(["SCRIPT", "STYLE", "CODE", "PRE"]);
  const SLOT = /\{([#~]?)(\w+)\}/g;

  // -- the words: texts are whole, patterns have slots, parts are patterns that stand only inside a slot ---------------
  // {#n} takes a number; {name} takes anything and keeps it; {~name} takes anything and translates it in turn.
  const compile = (table) => Object.entries(table ?? {}).map(([key, to]) => {
    const names = [], literal = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    let form = "", at = 0;
    for (const slot of key.matchAll(SLOT)) {
      form += literal(key.slice(at, slot.index)) + (slot[1] === "#" ? "([-+]?\\d[\\d.,]*)" : "(.+?)");
      names.push(slot[1] + slot[2]);
      at = slot.index + slot[0].length;
    }
    return { form: new RegExp(`^${form}${literal(key.slice(at))}$`, "s"), names, to };
  });

  class Words {
    constructor({ texts, patterns, parts }) {
      Object.assign(this, { texts, patterns: compile(patterns), parts: compile(parts), known: [new Map(), new Map()] });
    }

    // The translation, or null. inner: the text fills a slot.
    say(text, inner = false) {
      const known = this.known[Number(inner)], key = text.replace(/\s+/g, " ").trim();
      if (known.size > 5000) known.clear(); // what is pointed at makes ever new sentences
      if (!known.has(key)) known.set(key, Object.hasOwn(this.texts, key) ? this.texts[key] : this.fill(key, inner));
      return known.get(key);
    }

    fill(text, inner) {
      const within = inner && text.match(/^<(\d+)>(.*)<\/\1>$/s);
      if (within) return `<${within[1]}>${this.say(within[2], true) ?? within[2]}</${within[1]}>`;
      for (const { form, names, to } of inner ? [...this.patterns, ...this.parts] : this.patterns) {
        const found = text.match(form);
        if (!found) continue;
        const slots = Object.fromEntries(names.map((name, i) => [name.replace(/^[#~]/, ""), name[0] === "~" ? this.say(found[i + 1], true) ?? found[i + 1] : found[i + 1]]));
        return to.replace(/\{(\w+)\}/g, (_, name) => slots[name]);
      }
      return null;
    }
  }

  // -- a sentence with inline elements is one text: "a <0>visual token</0> is"; <0/> is an element that stays as it is ----
  const shut = (element) => element.getAttribute("translate") === "no" || element.hasAttribute("lang") || CLOSED.has(element.tagName);
  function sentence(element) {
    const parts = [];
    const read = (node) => [...node.childNodes].map((child) => {
      if (child.nodeType === Node.TEXT_NODE) return /<\/?\d/.test(child.nodeValue) ? null : child.nodeValue;
      if (child.nodeType !== Node.ELEMENT_NODE) return "";
      const place = parts.push(child) - 1;
      if (shut(child) || !child.textContent.trim()) return `<${place}/>`;
      const inside = INLINE.has(child.tagName) ? read(child) : null;
      return inside === null ? null : `<${place}>${inside}</${place}>`;
    }).reduce((all, text) => (all === null || text === null ? null : all + text), "");
    return { text: read(element), parts };
  }

  function build(element, text, parts) {
    const open = [[element, []]];
    for (const [token, end, place, empty] of text.matchAll(/<(\/?)(\d+)(\/?)>|[^<]+|</g)) {
      if (place === undefined) open.at(-1)[1].push(token);
      else if (end) { const [part, inside] = open.pop(); part.replaceChildren(...inside); }
      else {
        open.at(-1)[1].push(parts[place]);
        if (!empty) open.push([parts[place], []]);
      }
    }
    element.replaceChildren(...open[0][1]);
  }

  // -- what was changed: text node -> English and other, element -> the same by attribute, element -> its English nodes ---
  const texts = new WeakMap(), attributes = new WeakMap(), sentences = new WeakMap();
  let words = null; // of the language that is shown; null in English

  function attribute(element, name) {
    const now = element.getAttribute(name), done = attributes.get(element) ?? {};
    if (!now || done[name]?.to === now) return;
    const to = words.say(now);
    if (to === null) return;
    attributes.set(element, { ...done, [name]: { from: now, to } });
    element.setAttribute(name, to);
  }

  function text(node) {
    const now = node.nodeValue;
    if (!now.trim() || texts.get(node)?.to === now) return;
    const said = words.say(now);
    if (said === null) return;
    const to = now.replace(/\S(?:.*\S)?/s, () => said);
    texts.set(node, { from: now, to });
    node.nodeValue = to;
  }

  function whole(element) {
    if (sentences.has(element)) return true;
    if (!element.firstElementChild || ![...element.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.nodeValue.trim())) return false;
    const { text, parts } = sentence(element), said = text && words.say(text);
    if (!said) return false;
    sentences.set(element, [element, ...parts].filter((e) => e === element || !shut(e)).map((e) => [e, [...e.childNodes]]));
    build(element, said, parts);
    return true;
  }

  function visit(element, open) {
    const mark = element.getAttribute("translate");
    open = mark ? mark !== "no" : open && (!element.hasAttribute("lang") || element === document.documentElement);
    if (open) for (const name of ATTRIBUTES) if (element.hasAttribute(name)) attribute(element, name);
    if (CLOSED.has(element.tagName)) return;
    if (open && whole(element)) {
      for (const child of element.querySelectorAll("*")) for (const name of ATTRIBUTES) attribute(child, name);
      return;
    }
    for (const child of element.childNodes) {
      if (child.nodeType === Node.ELEMENT_NODE) visit(child, open);
      else if (open && child.nodeType === Node.TEXT_NODE && element.tagName !== "TEXTAREA") text(child);
    }
  }

  function restore(element) {
    for (const [part, nodes] of sentences.get(element) ?? []) part.replaceChildren(...nodes);
    sentences.delete(element);
    for (const [name, { from, to }] of Object.entries(attributes.get(element) ?? {})) if (element.getAttribute(name) === to) element.setAttribute(name, from);
    attributes.delete(element);
    for (const child of element.childNodes) {
      if (child.nodeType === Node.ELEMENT_NODE) restore(child);
      const done = texts.get(child);
      if (done && child.nodeValue === done.to) child.nodeValue = done.from;
      texts.delete(child);
    }
  }

  // -- what is drawn later -------------------------------------------------------------------------------------------
  const waiting = new Set();
  let frame = 0, title = null;

  function collect(records) {
    for (const { target, type } of records) {
      let element = target.nodeType === Node.ELEMENT_NODE ? target : target.parentElement;
      for (let up = element; up && type !== "attributes"; up = up.parentElement) if (sentences.delete(up)) element = up; // rewritten: its English is gone
      if (element) waiting.add(element);
    }
    if (waiting.size && !frame) frame = requestAnimationFrame(flush);
  }

  const observer = new MutationObserver(collect);
  const allowed = (element) => {
    const mark = element.closest("[translate], [lang]:not(html)");
    return !mark || (mark.hasAttribute("translate") && mark.getAttribute("translate") !== "no");
  };
  function flush() {
    frame = 0;
    collect(observer.takeRecords());
    cancelAnimationFrame(frame);
    frame = 0;
    for (const element of waiting) if (element.isConnected && !element.closest("script, style, code, pre")) visit(element, allowed(element));
    waiting.clear();
    if (title?.to !== document.title) {
      title = { from: document.title, to: words.say(document.title) ?? document.title };
      document.title = title.to;
    }
    observer.takeRecords(); // our own changes
  }

  // -- choosing -------------------------------------------------------------------------------------------------------
  const files = () => [...document.querySelectorAll("script.vtc-language-file")];
  const codes = () => ["en", ...new Set(files().map((file) => file.dataset.language))];
  const parsed = {};
  const load = (code) => (parsed[code] ??= JSON.parse(files().find((file) => file.dataset.language === code).textContent));
  const store = { get: () => { try { return localStorage.getItem("vtc-language"); } catch { return null; } },
                  set: (v) => { try { localStorage.setItem("vtc-language", v); } catch { /* private window */ } } };
  const asked = () => [new URLSearchParams(location.search).get("lang"), store.get(), navigator.language]
    .map((wish) => wish?.toLowerCase().split("-")[0]).find((wish) => codes().includes(wish)) ?? "en";
  let shown = "en";

  function show(code) {
    observer.disconnect();
    if (words) restore(document.body);
    if (words && title?.to === document.title) document.title = title.from;
    words = title = null;
    shown = code;
    const file = code === "en" ? null : load(code);
    document.documentElement.lang = file?.lang ?? "en";
    if (file) {
      words = new Words(file);
      observer.observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ATTRIBUTES });
      waiting.add(document.body);
      flush();
    }
    label();
    window.dispatchEvent(new Event("resize")); // the title has another width
  }

  // The button names the language that it leads to.
  const next = () => codes()[(codes().indexOf(shown) + 1) % codes().length];
  function label() {
    const button = document.querySelector(".vtc-language"), file = next() === "en" ? { name: "English", lang: "en" } : load(next());
    if (!button) return setTimeout(label, 100); // Gradio draws the header late
    button.textContent = file.name;
    button.lang = file.lang;
  }

  document.addEventListener("click", (event) => {
    if (!event.target.closest?.(".vtc-language")) return;
    show(next());
    store.set(shown);
    const query = new URLSearchParams(location.search);
    if (!query.has("lang")) return;
    query.delete("lang"); // else it would win when the page is loaded again
    history.replaceState(history.state, "", `${location.pathname}${query.size ? `?${query}` : ""}${location.hash}`);
  });
  window.vtc.begin(() => { const code = asked(); if (code !== "en") show(code); });
})();
