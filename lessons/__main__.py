"""`python -m lessons build` makes notebooks, slides and instructor notes; `python -m lessons check` checks a set-up."""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lessons", description="The course's own commands.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="make the notebooks, slides and instructor notes from the sources")
    build.add_argument("lessons", nargs="*", metavar="LESSON", help="numbers or names, e.g. 00 12 (default: all)")
    build.add_argument("--no-run", action="store_true", help="student notebooks and instructor notes only")
    commands.add_parser("check", help="check that this machine is ready for the lessons")
    args = parser.parse_args(argv)
    try:
        if args.command == "check":  # imports nothing that an incomplete set-up lacks
            from ._build import ready

            return ready.main()
        from ._build import outputs

        return outputs.main(args.lessons, run=not args.no_run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
