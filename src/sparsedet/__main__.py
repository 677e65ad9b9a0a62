"""The `sparsedet` command, and `python -m sparsedet`."""

import sys


def run() -> None:
    """Run the command line and exit; Ctrl-C is silent from the first import on."""
    try:
        from .cli import main

        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()
