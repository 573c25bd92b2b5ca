"""Run the `decompose` command; see `python src/decompose.py --help`."""

from deeppatch.cli.main import main

if __name__ == "__main__":
    main("decompose")
