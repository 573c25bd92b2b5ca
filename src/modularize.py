"""Run the `modularize` command; see `python src/modularize.py --help`."""

from deeppatch.cli.main import main

if __name__ == "__main__":
    main("modularize")
