"""Run the `switch` command; see `python src/switch.py --help`."""

from deeppatch.commands import main

if __name__ == "__main__":
    main("switch")
