"""Run the `select` command; see `python src/select.py --help`.

This file shadows the standard library's `select` for scripts in this folder: imported under that name, it steps aside.
"""

if __name__ == "__main__":
    from deeppatch.cli.main import main

    main("select")
elif __name__ == "select":  # the standard library asked for its own module
    import sys
    from pathlib import Path

    here = Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if Path(p).resolve() != here] + [str(here)]
    del sys.modules["select"]
    import select  # noqa: F401  the real one
