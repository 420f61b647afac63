"""`python -m sprat` is the command line."""

from sprat.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
