"""`python -m sprat`, where the script `sprat` is not on the path."""

from sprat.cli.main import main

raise SystemExit(main())
