"""Starts the page: python app.py, then open the address it prints."""

import argparse
import os


def parse(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare methods of visual token compression in the browser.")
    parser.add_argument(
        "--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="address to listen on"
    )
    parser.add_argument("--port", type=int, help="port to listen on; default: the first free one from 7860 on")
    parser.add_argument(
        "--model",
        default=os.environ.get("VTC_MODEL") or "embedded",
        help="'embedded', a folder, or a hub id of a supported family; 'list' prints a few and whether they fit here; "
        "default: the variable VTC_MODEL, or 'embedded'",
    )
    parser.add_argument("--methods", metavar="DIR", action="append", default=[], help="folder with methods of your own")
    return parser.parse_args(args)


def main() -> None:
    options = parse()
    # Before torch is imported. Spinning threads slow a two-core machine down many times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if options.model == "embedded":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")

    from vtc_demo import models, registry, ui

    if options.model == "list":
        return print(models.offers()[1])
    try:
        for folder in options.methods:
            registry.load_folder(folder)
        vlm, notice = ui.serve.load(options.model)
    except ValueError as error:
        raise SystemExit(f"app.py: {error}") from None
    if notice:
        print(notice, flush=True)
    page = ui.build(vlm, notice)
    page.launch(server_name=options.host, server_port=options.port, **ui.LAUNCH)


if __name__ == "__main__":
    main()
