"""Run the `correct` command; see `python src/correct.py --help`."""

from deeppatch.cli.main import main

if __name__ == "__main__":
    main("correct")
