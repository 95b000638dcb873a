"""The named endpoints for programs: /compare and /methods."""

from __future__ import annotations

import logging

import gradio as gr

from vtc_demo.core.images import load_rgb

from . import serve


def build(stream, model: str) -> None:
    """Endpoints without a face; their components are hidden. stream: see `serve.streamer`; model: name of the VLM."""

    def compare(question, methods, scene, image, match, tokens) -> dict:
        """Compare methods on a built-in scene or on an image.

        question: text. methods: list of "name", "name@retention" or {"method": name, ...}. scene: number of a
        built-in scene (used if no image is given). image: an image file. match: "none", or what is made equal, at the
        cost of `tokens` visual tokens: "final tokens", "equivalent tokens" or "flops". Returns a dict.
        """
        try:
            picture = load_rgb(image) if image else serve.scene(scene).image
            options = {} if match == "none" else {"match": match, "tokens": tokens}
            events = list(stream(picture, question, methods if isinstance(methods, list) else [methods], options))
            return events[-1][-1]
        except ValueError as error:
            raise gr.Error(str(error)) from None
        except Exception:
            logging.exception("an API comparison failed")
            raise gr.Error("something went wrong on the server; try again") from None

    with gr.Column(visible=False):
        question = gr.Textbox(label="question")
        chosen = gr.JSON(label="methods", value=["full", "fastervlm@0.11"])
        scene = gr.Number(0, label="scene", precision=0)
        image = gr.File(label="image")  # not gr.Image, which fails on a bad file before any handler can say why
        match = gr.Textbox("none", label="match")
        tokens = gr.Number(64, label="tokens", precision=0)
        result = gr.JSON(label="comparison")
        gr.Button().click(
            compare, [question, chosen, scene, image, match, tokens], result, api_name="compare",
            api_description=compare.__doc__, concurrency_id="model", concurrency_limit=1,
        )  # fmt: skip
        gr.Button().click(
            lambda: serve.catalogue(model), None, result, api_name="methods", queue=False,
            api_description="Every method that runs on this model: its card and its hyper-parameters.",
        )  # fmt: skip
