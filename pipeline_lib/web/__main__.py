"""`python -m pipeline_lib.web …` is `python -m voila …` that ends when its standard input does.

The process that serves the dashboard holds the other end, so a page does not outlive it, however it dies.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from voila.app import main


def end_with_input() -> None:
    """Wait for the end of standard input, then ask this process to stop as a service manager would."""
    while sys.stdin.buffer.read(1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, name="end-with-input", daemon=True).start()
    main()
