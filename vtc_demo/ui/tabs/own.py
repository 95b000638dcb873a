"""The tab Your method: how a file in a folder becomes a method of this page, and what came of the folders given."""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr

from vtc_demo import registry
from vtc_demo.methods import contract

TEMPLATE = Path(contract.__file__).with_name("template.py")
FOLDER = "my_methods"

INTRO = """
A method is **one Python file**. In a folder that is named when the page starts, it stands in every list beside the
published methods: in Compare, in Sweep, in the shell. Nothing else has to be edited, and nothing is uploaded: a method
is code, and it runs only on the machine that serves the page.
"""

STEPS = f"""
1. **Copy the template** into a folder of your own, say `{FOLDER}/mine.py`. It is a whole method of sixty lines: it
   keeps the tokens with the largest norm.
2. **Give class and card names** that no other method has, and the card a title, a family and one sentence for a
   visitor. Hyper-parameters are fields declared with `param(default, help, low=, high=)`; they become sliders.
3. **Write the maths, then the hook.** `sites` says where in the pass the method acts. `reduce` is called there, sees
   the tokens and, on request, rows of attention, and answers with a `Reduction` (which tokens stay, or how they are
   merged) or with `None`.
4. **Hold it to the contract.** Every rule that is broken is named, with the line of your file:

   ```sh
   python -m vtc_demo check {FOLDER}
   ```
5. **Start the page with the folder** (the option may be given more than once), then pick the method in Compare:

   ```sh
   python app.py --methods {FOLDER}
   ```

After a change, start the page again. The shell takes the folder too:

```sh
python -m vtc_demo compare full mine@0.25 --scene 0 --methods {FOLDER}
```
"""


def build() -> None:
    with gr.Row(elem_classes="vtc-page vtc-own"):
        with gr.Column(elem_classes="vtc-rail"):
            with gr.Column(elem_classes="vtc-panel"):
                gr.HTML('<h2 class="vtc-h">Your own method on this page</h2>', apply_default_css=False)
                gr.Markdown(INTRO + STEPS, elem_classes="vtc-text")
            with gr.Column(elem_classes="vtc-panel"):
                gr.HTML(_loaded(), apply_default_css=False)
            with gr.Column(elem_classes="vtc-panel"):
                gr.HTML(_rules(), apply_default_css=False)
        with gr.Column(elem_classes="vtc-panel"):
            gr.HTML('<h2 class="vtc-h">The template: vtc_demo/methods/template.py</h2>', apply_default_css=False)
            gr.Markdown(f"```python\n{TEMPLATE.read_text(encoding='utf-8')}```", elem_id="vtc-template")


def _loaded() -> str:
    """The methods of the folders that were given, with what the contract says of each, and the files left out."""
    entries = [_method(name, file) for name, file in registry.extra_methods().items()]
    entries += [_problem(file, problem) for file, problem in registry.problems.items()]
    none = '<p class="soft">None: this page was started without a folder of methods.</p>'
    found = f'<ul class="own">{"".join(entries)}</ul>' if entries else none
    return f'<h2 class="vtc-h">Loaded from your folders</h2>{found}'


def _method(name: str, file: Path) -> str:
    cls = registry.get(name)
    findings = contract.check(cls)
    state = f"{len(findings)} rule{'s' * (len(findings) > 1)} broken" if findings else "keeps the contract"
    faults = "".join(f"<li>{escape(f.message)}</li>" for f in findings)
    return (
        f'<li class="{"bad" if findings else "good"}"><p><b>{escape(cls.card.title)}</b> <code>{escape(name)}</code> '
        f'<span class="state">{state}</span> <a class="try" href="?method={escape(name)}">Try it</a></p>'
        f'<p class="soft">{escape(_short(file))}</p>{f"<ul>{faults}</ul>" if faults else ""}</li>'
    )


def _problem(file: str, problem: str) -> str:
    return (
        f'<li class="bad"><p><b>{escape(Path(file).name)}</b> <span class="state">left out</span></p>'
        f'<p>{escape(registry.in_words(problem))}</p><p class="soft">{escape(_short(Path(file)))}</p></li>'
    )


def _short(file: Path) -> str:
    """Folder and file; the way there on the server is no visitor's business."""
    return f"{file.parent.name}/{file.name}"


def _rules() -> str:
    rules = "".join(
        f"<dt>{name}</dt><dd>{escape(rule.__doc__.strip().splitlines()[0])}</dd>"
        for name, rule in contract.CHECKS.items()
    )
    return f'<h2 class="vtc-h">What the contract asks</h2><dl class="own">{rules}</dl>'
