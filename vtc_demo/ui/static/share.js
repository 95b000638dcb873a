// The link to a comparison, and the comparison as JSON or Python. Python makes both texts; here they are handed over.
(() => {
  const { make } = window.vtc;

  // A dialog with a text to copy. note: a sentence above it.
  function offer(title, note, text, file) {
    const dialog = make("dialog", { class: "vtc-offer", "aria-label": title });
    const box = make("textarea", { readonly: "", rows: Math.min(22, text.split("\n").length + 1), "aria-label": title, spellcheck: "false" });
    const said = make("p", { role: "status" }, note), close = make("button", { type: "button", class: "pill" }, "Close");
    const copy = make("button", { type: "button", class: "pill" }, "Copy");
    box.value = text;
    box.hidden = copy.hidden = !text;
    copy.addEventListener("click", async () => { said.textContent = (await copied(text)) ? "Copied." : "Copying was refused: select the text and copy it by hand."; box.select(); });
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    const row = make("div", { class: "row" }, copy, ...(file ? [download(file, text)] : []), close);
    dialog.append(make("h2", {}, title), said, box, row);
    document.querySelector(".gradio-container").append(dialog);
    dialog.showModal();
    if (!file) box.select();
  }

  const copied = async (text) => { try { await navigator.clipboard.writeText(text); return true; } catch { return false; } };

  function download(file, text) {
    const button = make("button", { type: "button", class: "pill" }, `Save ${file}`);
    button.addEventListener("click", () => save(file, text));
    return button;
  }
  function save(file, text) {
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: file });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  async function share() {
    const view = document.querySelector(".vtc-strip")?.dataset.link;
    if (!view) return offer("Link to this comparison", "There is no finished comparison to link to; press Compare first.", "");
    const link = `${location.origin}${location.pathname}${view}`;
    const own = view.startsWith("?picture=own") ? " The picture is your own: it does not travel in the link." : "";
    const note = (await copied(link)) ? "Copied: the link opens this comparison." : "Copy the link by hand: the browser did not let the page do it.";
    offer("Link to this comparison", note + own, link);
  }
  document.addEventListener("click", (event) => { if (event.target.closest?.(".vtc-link")) share(); });

  function take(element, props, pick, watch) {
    element.addEventListener("click", (event) => {
      const want = event.target.closest("[data-want]")?.dataset.want;
      if (want) { props.value = { want, asked: Date.now() }; pick({}); }
    });
    watch("value", () => {
      const { want, text, problem } = props.value;
      if (problem) offer("Take this comparison along", problem, "");
      else if (text && want === "json") save("comparison.json", text);
      else if (text) offer("This comparison in Python", "Run it where the package is installed: it repeats what you see.", text, "comparison.py");
    });
  }
  window.vtc.take = take;
})();
