"""What the lessons import beside the package itself: checks, text with numbers from the run, figures."""

import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, where ipywidgets is not installed

from vtc_demo.cli.common import quiet

from .checks import CheckFailed, check, check_equal, done
from .figures import bars, heat, lines, masks, matrix, picture
from .text import facts, report, results, say, table

quiet()  # no progress bars or advice of libraries among the outputs

__all__ = [
    "CheckFailed", "bars", "check", "check_equal", "done", "facts", "heat", "lines", "masks", "matrix", "picture",
    "report", "results", "say", "table",
]  # fmt: skip
