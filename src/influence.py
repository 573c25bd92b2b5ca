"""Run the `influence` command; see `python src/influence.py --help`."""

from deeppatch.cli.main import main

if __name__ == "__main__":
    main("influence")
