"""Run the `switch` command; see `python src/switch.py --help`."""

from deeppatch.cli.main import main

if __name__ == "__main__":
    main("switch")
