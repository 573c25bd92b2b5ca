"""Run the `relearn` command; see `python src/relearn.py --help`."""

from deeppatch.cli.main import main

if __name__ == "__main__":
    main("relearn")
