"""Static pictures of the plotly figures in an executed notebook, so that GitHub shows them.

Drawn by an installed Chromium with the plotly.js that the plotly package brings; nothing is fetched.
"""

from __future__ import annotations

import base64
import io
import json
import shutil

import nbformat
from PIL import Image
from plotly.offline import get_plotlyjs

PLOTLY = "application/vnd.plotly.v1+json"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT, SCALE = 900, 420, 1.5  # px of a figure that names no size; pixels per px
DRAW = """async ([figure, width, height, scale]) => {
  const holder = document.createElement("div");
  document.body.append(holder);
  await Plotly.newPlot(holder, figure.data, figure.layout, {staticPlot: true});
  const url = await Plotly.toImage(holder, {format: "png", width, height, scale});
  holder.remove();
  return url;
}"""


def add(notebooks: list[nbformat.NotebookNode]) -> None:
    """Put image/png beside every plotly figure. Raises ValueError without a browser."""
    figures = [data for notebook in notebooks for data in plotly_outputs(notebook)]
    if not figures:
        return
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise ValueError(f"static pictures need an installed Chromium ({', '.join(BROWSERS)}); none was found")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_content("<!doctype html><body></body>")
        page.add_script_tag(content=get_plotlyjs())
        for data in figures:
            data["image/png"] = draw(page, data[PLOTLY])
        browser.close()


def plotly_outputs(notebook: nbformat.NotebookNode) -> list[dict]:
    """The data of every output that is a plotly figure."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"] for output in outputs if PLOTLY in output.get("data", {})]


def draw(page, figure: dict) -> str:
    """A figure as PNG in base64, with a palette of 256 colours: a third of the bytes."""
    layout = figure.get("layout", {})
    size = [layout.get("width") or WIDTH, layout.get("height") or HEIGHT, SCALE]
    url = page.evaluate(DRAW, [json.loads(json.dumps(figure)), *size])
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    file = io.BytesIO()
    image.quantize(256, method=Image.Quantize.FASTOCTREE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
