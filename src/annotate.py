"""Run the `annotate` command; see `python src/annotate.py --help`."""

from deeppatch.cli.main import main

if __name__ == "__main__":
    main("annotate")
