"""`python -m varalign`: the program without its installed command."""

from varalign.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
