"""Trained connectors and attention reworks, one file each; each is a method of the embedded VLM.

`python -m vtc_demo train zoo` trains them. A file here is a module and the method that offers it; discovery is that of
`vtc_demo.methods`.
"""

from .. import methods  # noqa: F401  first: its discovery imports the files of this folder
from .base import Connected, Connector, Dims, Trained

__all__ = ["Connected", "Connector", "Dims", "Trained"]
