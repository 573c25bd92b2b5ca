"""Run the `relearn` command; see `python src/relearn.py --help`."""

from deeppatch.commands import main

if __name__ == "__main__":
    main("relearn")
