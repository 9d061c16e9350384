"""`python -m pipelines`: the command line from this checkout, whatever else is installed."""

from pipelines.cli import main

if __name__ == "__main__":
    main()
