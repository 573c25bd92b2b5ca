"""Run the `annotate` command; see `python src/annotate.py --help`."""

from deeppatch.commands import main

if __name__ == "__main__":
    main("annotate")
