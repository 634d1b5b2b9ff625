"""`python -m trust_engine`, and the console script `trust-unlearn`."""

import sys


def run() -> int:
    """Run the command line; without its packages, say in one line what to install."""
    try:
        from .cli.main import main

        return main()
    except ModuleNotFoundError as error:
        from .cli.console import missing

        said = missing(error)
        if said is None:
            raise
        print(f"trust_engine: {said}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(run())
