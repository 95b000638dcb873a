"""Vision-language models: `load_vlm`, one adapter per family in `families`, the catalogue of what the app offers."""

from . import catalog, memory
from .adapter import Adapter
from .catalog import CATALOG
from .loading import EMBEDDED, FAMILIES, load_vlm, offers, spec_of
from .vlm import VLM

__all__ = ["CATALOG", "EMBEDDED", "FAMILIES", "VLM", "Adapter", "catalog", "load_vlm", "memory", "offers", "spec_of"]
