"""The tab Your method: how a file in a folder becomes a method of this page, and what came of the folders given."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from vtc_demo import registry
from vtc_demo.figures.render import render
from vtc_demo.methods import contract

from ..components import controls

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
                controls.heading("Your own method on this page")
                gr.Markdown(INTRO + STEPS, elem_classes="vtc-text")
            with gr.Column(elem_classes="vtc-panel"):
                gr.HTML(loaded(), apply_default_css=False)
            with gr.Column(elem_classes="vtc-panel"):
                gr.HTML(rules(), apply_default_css=False)
        with gr.Column(elem_classes="vtc-panel"):
            controls.heading("The template: vtc_demo/methods/template.py")
            gr.Markdown(f"```python\n{TEMPLATE.read_text(encoding='utf-8')}```", elem_id="vtc-template")


def loaded() -> str:
    """The methods of the folders that were given, with what the contract says of each, and the files left out."""
    methods = [_method(name, file) for name, file in registry.extra_methods().items()]
    problems = [_problem(Path(file), problem) for file, problem in registry.problems.items()]
    return render("ui/tabs/own_loaded.html", methods=methods, problems=problems)


def _method(name: str, file: Path) -> dict:
    cls = registry.get(name)
    faults = [finding.message for finding in contract.check(cls)]
    state = f"{len(faults)} rule{'s' * (len(faults) > 1)} broken" if faults else "keeps the contract"
    return {"name": name, "title": cls.card.title, "state": state, "faults": faults, "file": _short(file)}


def _problem(file: Path, problem: str) -> dict:
    return {"name": file.name, "why": registry.in_words(problem), "file": _short(file)}


def _short(file: Path) -> str:
    """Folder and file; the way there on the server is no visitor's business."""
    return f"{file.parent.name}/{file.name}"


def rules() -> str:
    found = {name: (rule.__doc__ or "").strip().splitlines()[0] for name, rule in contract.CHECKS.items()}
    return render("ui/tabs/own_rules.html", rules=found)
