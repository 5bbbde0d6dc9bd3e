"""`python -m varalign`: the program without its installed command."""

from varalign.cli import main

raise SystemExit(main())
