"""Set up everything that the pipeline needs, in .venv beside this folder: what `make install` calls.

Five steps: the environment, the packages of requirements.lock (by hash), this project with the dashboard's JavaScript,
the jars (by checksum), and an archive that lets Spark start sooner. A stamp remembers what was set up; while nothing of
it changes, a second run returns at once and asks nobody. An interrupted one is taken up again. Needs nothing but Python's
own library, and runs on an old Python far enough to say that it is too old.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

OLDEST = (3, 11)
NEEDED_GB = 3.0  # the environment takes 1.6 GB, the downloads of pip about as much while it works

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "stock-pipeline.stamp"
UNFINISHED = VENV / "stock-pipeline.unfinished"  # holds the word INSTALLING while packages are half there
LOG = VENV / "install.log"
INSTALLING = "installing"

# What the set-up depends on; a change of any of them is a reason to run it again.
INPUTS = (
    "requirements.lock",
    "pyproject.toml",
    "hatch_build.py",
    "pipeline_lib/services/jars.sha256",
    "pipeline_lib/record_classes.py",
    "frontend",
)

# What pip says, and what it means to a person. The first that is found is told.
NO_INDEX = "the package index cannot be reached; check the network, https_proxy, or pip's own configuration"
FAULTS = (
    ("No space left on device", f"the disk is full; free {NEEDED_GB:.0f} GB"),
    ("DO NOT MATCH THE HASHES", "a package has another checksum than requirements.lock; do not trust where it came from, see the log"),
    ("CERTIFICATE_VERIFY_FAILED", "the package index shows a certificate that this machine does not trust; set PIP_CERT to your CA bundle"),
    ("Failed to establish a new connection", NO_INDEX),
    ("Name or service not known", NO_INDEX),
    ("Temporary failure in name resolution", NO_INDEX),
    ("Read timed out", "the package index answers too slowly; try again"),
    ("Permission denied", "a file of .venv may not be written; see the log for which"),
)


class InstallError(Exception):
    """The set-up cannot go on: one line, what was found, and the way out."""


def main():
    """Return the exit code: 0 when everything is set up."""
    try:
        check_python()
        if is_complete():
            return 0
        with_lock(install)
        return 0
    except InstallError as error:
        print(f"cannot install: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: run `make install` again, and it goes on from what is there", file=sys.stderr)
        return 130


def check_python():
    """Raise InstallError if this Python is too old, or cannot make an environment."""
    version = platform.python_version()
    if sys.version_info[:2] < OLDEST:
        raise InstallError(f"this is Python {version}, and 3.11 or newer is needed; say `make PYTHON=/path/to/python3.11`")
    for module in ("venv", "ensurepip", "ssl"):
        if importlib.util.find_spec(module) is None:
            raise InstallError(
                f"Python {version} at {sys.executable} has no module {module}; on Debian or Ubuntu `apt install python3-venv`, "
                "elsewhere take another Python: `make PYTHON=/path/to/python`"
            )


def wanted_stamp():
    """Return what the stamp must hold: where we are, and a hash of everything that the set-up depends on."""
    digest = hashlib.sha256()
    for path in (path for name in INPUTS for path in files_of(ROOT / name)):
        digest.update(str(path.relative_to(ROOT)).encode("utf-8", "surrogateescape") + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return f"{ROOT}\n{digest.hexdigest()}\n"


def files_of(path):
    """Return the file itself, or the files of a folder, in order; what npm has put there does not count."""
    if not path.is_dir():
        return [path] if path.exists() else []
    return sorted(each for each in path.rglob("*") if each.is_file() and "node_modules" not in each.parts)


def is_complete():
    """Return whether the environment is there, and was set up from what is here now."""
    return read(STAMP) == wanted_stamp() and venv_python().exists()


def install():
    """Take the steps that are left; raises InstallError."""
    if is_complete():  # by the one that we waited for
        return
    started = time.time()
    print(f"Setting up in .venv; needs about {NEEDED_GB:.0f} GB and, once, the network.")
    make_environment()
    write(UNFINISHED, "fetching")
    check_space()
    install_packages()
    step(3, "this project and the dashboard's page")
    pip(["install", "--no-deps", "--no-user", "--editable", "."], Progress("building"))
    step(4, "the jars of Apache Kafka and of Spark's Kafka source")
    fetch_jars()
    step(5, "an archive of Spark's classes, for a quicker start")
    run_module("pipeline_lib.record_classes")
    write(STAMP, wanted_stamp())
    UNFINISHED.unlink()
    print(f"Everything is there, after {time.time() - started:.0f} s.")


def make_environment():
    """Make .venv, unless a sound one is there."""
    step(1, f"an environment of Python {platform.python_version()}")
    moved = read(STAMP) is not None and read(STAMP).split("\n")[0] != str(ROOT)  # its programs name the folder it was made in
    cut_off = read(UNFINISHED) == INSTALLING
    if VENV.is_dir() and not moved and not cut_off and has_pip():
        return
    if VENV.is_dir() and any(VENV.iterdir()):
        if not (VENV / "pyvenv.cfg").exists() and read(UNFINISHED) is None:
            raise InstallError(f"{VENV} is there and is no environment of Python; move it away")
        print(f"      the one that is there is {'from another folder' if moved else 'cut off or too old'}: made anew")
        shutil.rmtree(VENV)
    check_space()
    VENV.mkdir(exist_ok=True)
    write(UNFINISHED, INSTALLING)
    made = subprocess.run(
        [getattr(sys, "_base_executable", sys.executable), "-m", "venv", str(VENV)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if made.returncode or not has_pip():
        said = (made.stdout or "").strip().split("\n")[-1]
        raise InstallError(f"`{sys.executable} -m venv` does not work: {said}; take another Python: `make PYTHON=/path/to/python`")


def has_pip():
    """Return whether the environment runs, is new enough, and has pip."""
    question = "import sys, pip; sys.exit(sys.version_info[:2] < (3, 11))"
    try:
        return subprocess.run([str(venv_python()), "-c", question], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def check_space():
    """Raise InstallError if the disk has too little room for what is not there yet."""
    if read(STAMP) is not None:  # packages are there; a new set of them replaces the old one
        return
    free = shutil.disk_usage(str(ROOT)).free / 1e9
    if free < NEEDED_GB:
        raise InstallError(f"{free:.1f} GB are free on the disk of {ROOT}, and {NEEDED_GB:.0f} are needed; free some")


def install_packages():
    """Install every package of the lock, by its hash; pip leaves alone those that are there."""
    total = count_packages()
    step(2, f"{total} packages of requirements.lock")
    pip(["install", "--require-hashes", "--no-user", "--requirement", "requirements.lock"], Progress("package", total))


def count_packages():
    """Return how many packages of the lock this Python and system need; all of them if pip cannot say."""
    question = (
        "import re, sys\n"
        "from pip._vendor.packaging.requirements import Requirement\n"
        "found = [Requirement(line.rstrip(' \\\\\\n')) for line in open('requirements.lock') if re.match('[A-Za-z0-9]', line)]\n"
        "print(sum(each.marker is None or each.marker.evaluate() for each in found))"
    )
    asked = subprocess.run([str(venv_python()), "-c", question], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if asked.returncode == 0:
        return int(asked.stdout)
    with (ROOT / "requirements.lock").open() as lock:
        return sum(1 for line in lock if line[0].isalnum())


def pip(arguments, progress):
    """Run pip, show how far it is, keep what it says in the log; raises InstallError in a person's words."""
    command = [
        str(venv_python()),
        "-m",
        "pip",
        *arguments,
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        "--retries",
        "2",
    ]
    said = []
    with LOG.open("a") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, errors="replace"
        )
        try:
            with progress:
                for line in process.stdout:
                    log.write(line)
                    said.append(line.strip())
                    if line.startswith("Installing collected packages"):
                        write(UNFINISHED, INSTALLING)
                    progress.note(line)
        finally:
            process.terminate()
            code = process.wait()
            process.stdout.close()
    if code == 0:
        write(UNFINISHED, "fetching")
        return
    whole = "\n".join(said)
    for sign, meaning in FAULTS:
        if sign in whole:
            raise InstallError(f"{meaning}, and run `make install` again; the log is .venv/install.log")
    errors = [line for line in said if line.startswith(("ERROR:", "error:")) or "Error:" in line] or said[-1:] or ["pip says nothing"]
    raise InstallError(f"pip says: {errors[-1][:300]}; the log is .venv/install.log")


def fetch_jars():
    """Fetch the jars by the project's own code, which reports how far it is."""
    if subprocess.run(
        [str(venv_python()), "-c", "import sys; from pipeline_lib.services.jars import main; sys.exit(main())"], cwd=ROOT
    ).returncode:
        raise InstallError("the jars are not complete, as said above; everything else is there")


def run_module(name):
    """Run one of the project's own programs, which says itself what it has to say."""
    subprocess.run([str(venv_python()), "-m", name], cwd=ROOT, stdin=subprocess.DEVNULL)


class Progress:
    """One line that shows how far pip is: renewed every second in a terminal, a line now and then elsewhere."""

    def __init__(self, noun, total=0):
        self.noun, self.total, self.count, self.current = noun, total, 0, ""
        self.started = time.time()
        self.terminal = sys.stdout.isatty()
        self.ended = threading.Event()
        self.ticker = threading.Thread(target=self.tick, daemon=True)

    def __enter__(self):
        self.ticker.start()
        return self

    def __exit__(self, *ignored):
        self.ended.set()
        self.ticker.join()
        if self.terminal:
            print("\r" + " " * 78 + "\r", end="")

    def note(self, line):
        """Take in one line of pip's."""
        words = line.split()
        if line.startswith("Collecting ") or line.startswith("Requirement already satisfied: "):
            if self.total:
                self.count += 1
            self.current = words[1] if words[0] == "Collecting" else words[3]
            if self.total and not self.terminal and (self.count % 20 == 0 or self.count == self.total):
                self.show()
        elif line.startswith("Installing collected packages"):
            self.count, self.current = self.total, "unpacking"
            if not self.terminal:
                self.show()

    def tick(self):
        """Renew the line until the end; every half minute where it cannot be renewed in place."""
        while not self.ended.wait(1 if self.terminal else 30):
            self.show()

    def show(self):
        """Print the line."""
        counted = f"{self.noun} {min(self.count, self.total)} of {self.total}" if self.total else self.noun
        text = f"      {counted}  {self.current.split(';')[0][:40]}  {time.time() - self.started:.0f} s"
        print(("\r" + text.ljust(78)) if self.terminal else text, end="" if self.terminal else "\n")
        sys.stdout.flush()


def with_lock(action):
    """Do it while no other set-up of this folder is at work; the second one waits, and finds it done."""
    try:
        import fcntl
    except ImportError:  # Windows: nobody runs two there at once from one make
        return action()
    folder = hashlib.sha256(str(ROOT).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    name = f"stock-pipeline-{os.getuid()}-{folder}.lock"
    with (Path(tempfile.gettempdir()) / name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("Another set-up of this folder is at work: waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        return action()


def step(number, what):
    """Say which of the five steps begins."""
    print(f"[{number}/5] {what}")
    sys.stdout.flush()


def venv_python():
    """Return the path of the environment's Python."""
    return VENV / "Scripts" / "python.exe" if os.name == "nt" else VENV / "bin" / "python"


def read(path):
    """Return the text of a file, None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None


def write(path, text):
    """Write a small file whole."""
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


if __name__ == "__main__":
    sys.exit(main())
