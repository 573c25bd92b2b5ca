"""Run the `compose` command; see `python src/compose.py --help`."""

from deeppatch.cli.main import main

if __name__ == "__main__":
    main("compose")
