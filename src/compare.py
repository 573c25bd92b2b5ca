"""Run the `compare` command; see `python src/compare.py --help`."""

from deeppatch.cli.main import main

if __name__ == "__main__":
    main("compare")
