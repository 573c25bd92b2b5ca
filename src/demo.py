"""Run the `demo` command; see `python src/demo.py --help`."""

from deeppatch.cli.main import main

if __name__ == "__main__":
    main("demo")
