"""The `sparsedet` command, and `python -m sparsedet`."""

import os
import sys


def _stop(number: int, _: object) -> None:
    sys.exit(128 + number)


def run() -> None:
    """Run the command line and exit; Ctrl-C is silent from the first import to the end."""
    heeded = False
    try:
        import signal

        usual = signal.getsignal(signal.SIGINT)
        heeded = usual is signal.default_int_handler  # else ignored, as after nohup
        if heeded:  # numpy would turn a KeyboardInterrupt into an ImportError
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) is signal.SIG_DFL:  # half-written files are deleted
                signal.signal(number, _stop)
        try:
            from .cli import main
        except ImportError as error:
            sys.exit(f"sparsedet: cannot start, a package is missing or damaged: {error}")
        # Building the parser imports more.
        code = main(parsed=lambda: signal.signal(signal.SIGINT, usual))
    except KeyboardInterrupt:
        code = 130
    if heeded:  # Python's end would print a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


if __name__ == "__main__":
    run()
