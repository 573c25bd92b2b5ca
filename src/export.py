"""Run the `export` command; see `python src/export.py --help`."""

from deeppatch.cli.main import main

if __name__ == "__main__":
    main("export")
