"""A command that knows nothing of a bench, ended with it: python -m benchmarks.leash COMMAND …

`make run` ends at Ctrl-C alone, and would outlive a bench that is killed. So this starts it, gives it a Ctrl-C at the end of its
own standard input, and ends as it ends. Started by the parts, through programs.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

PATIENCE_SECONDS = 60.0


def main() -> None:
    """Run the command, and end with its status; with 0 if it was ended here."""
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    ended_here = threading.Event()

    def end_with_parent() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        ended_here.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
            if not done.wait(PATIENCE_SECONDS):
                os.killpg(process.pid, signal.SIGKILL)

    done = threading.Event()
    threading.Thread(target=end_with_parent, name="until-eof", daemon=True).start()
    status = process.wait()
    done.set()
    sys.exit(0 if ended_here.is_set() else status)


if __name__ == "__main__":
    main()
