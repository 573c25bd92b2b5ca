"""Run the `eval` command; see `python src/eval.py --help`."""

from deeppatch.cli.main import main

if __name__ == "__main__":
    main("eval")
