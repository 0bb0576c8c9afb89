"""Whom PostgreSQL runs as, and where its data lies so that this user reaches it.

For everyone but root the answer is: as yourself, in PIPELINE_HOME. PostgreSQL refuses to run as root; then it runs as an
unprivileged user who is there already, and no folder of root's is opened for him (docs/decisions/0006-postgres-as-root.md).
Called by `postgres`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline_lib.errors import ServiceError
from pipeline_lib.services import process
from pipeline_lib.services.process import User

USERS = ("postgres", "nobody")  # the first that exists; none is created

# Where data goes if the user cannot reach PIPELINE_HOME: the first that root can write to.
SHELTERS = (Path("/var/lib"), Path(tempfile.gettempdir()))
PREFIX = "stock-pipeline-"
OWNER = "belongs-to"  # a file in each, with the folder that it belongs to


class Place(NamedTuple):
    """Where the server's `data` folder is, which programs it is run with, and as whom (None: as we are)."""

    folder: Path
    binaries: Path
    user: User | None


def choose_place(folder: Path, binaries: Path, former: Path | None) -> Place:
    """Return the place for the server of this PIPELINE_HOME/postgres; ``former`` is the one it had.

    Raises ServiceError if there is no user for it, or nowhere that he reaches.
    """
    if os.name == "nt" or os.geteuid() != 0:
        own = folder / "server"
        own.mkdir(mode=0o700, exist_ok=True)
        return Place(own, binaries, None)
    if former is not None and (former / "data").exists():
        owner = (former / "data").stat()
        user = User(owner.st_uid, owner.st_gid)
        place = former
    else:
        user = _find_user()
        place = _shelter(folder, user)
    if not _reaches(user, place):
        raise ServiceError(
            f"cannot start PostgreSQL: user {user.uid} does not reach its data in {place} any more; "
            "give the folders above it their permissions back"
        )
    if _runs(user, binaries):
        return Place(place, binaries, user)
    return Place(place, _copy(binaries, place, user), user)


def _find_user() -> User:
    import pwd  # not on Windows

    for name in USERS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return User(found.pw_uid, found.pw_gid)
    raise ServiceError(
        f"cannot start PostgreSQL: it refuses to run as root, and there is no user {' or '.join(USERS)}; "
        "run as another user, or set DATABASE_URL"
    )


def _shelter(folder: Path, user: User) -> Path:
    """Return an empty folder of the user's own: inside ``folder`` if he gets there, else under one of SHELTERS."""
    inside = folder / "server"
    inside.mkdir(exist_ok=True)
    _give(inside, user)
    if _reaches(user, inside):
        return inside
    inside.rmdir()
    adopted = _former_shelter(folder)
    if adopted is not None:
        return adopted
    for shelter in SHELTERS:
        try:
            made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=shelter))
        except OSError:
            continue
        _give(made, user)
        if _reaches(user, made):
            (made / OWNER).write_text(str(folder.absolute()))
            return made
        made.rmdir()
    raise ServiceError(
        f"cannot start PostgreSQL: it refuses to run as root, and user {user.uid} reaches neither {folder} "
        f"nor {' nor '.join(map(str, SHELTERS))}; run as another user, or set DATABASE_URL"
    )


def remove_shelters(folder: Path) -> None:
    """Delete the data that the server of this PIPELINE_HOME/postgres keeps outside of it, if it does."""
    for made in _shelters_of(folder):
        shutil.rmtree(made)


def _shelters_of(folder: Path) -> Iterator[Path]:
    """Yield the shelters that say of themselves that they belong to this folder."""
    for made in (made for shelter in SHELTERS for made in shelter.glob(f"{PREFIX}*")):
        try:
            belongs_here = (made / OWNER).read_text() == str(folder.absolute())
        except OSError:  # another user's, or no shelter
            continue
        if belongs_here:
            yield made


def _former_shelter(folder: Path) -> Path | None:
    """Return the shelter that this folder had, if only its `state.json` is gone.

    If the password is gone too, PIPELINE_HOME was thrown away, and nobody could log in: the shelter is removed.
    """
    if (folder / "password").exists():
        return next(_shelters_of(folder), None)
    remove_shelters(folder)
    return None


def _give(path: Path, user: User) -> None:
    try:
        os.chown(path, *user)
    except OSError as error:
        raise ServiceError(
            f"cannot start PostgreSQL: it refuses to run as root, and a folder cannot be given to user {user.uid}: {error.strerror}; "
            "run as another user, or set DATABASE_URL"
        ) from error
    path.chmod(0o700)


def _reaches(user: User, folder: Path) -> bool:
    """Return whether the user gets into the folder and may write there; tried, since permissions are not all there is."""
    return _try(user, ["/bin/sh", "-c", 'cd "$0" && [ -w . ]', str(folder)])


def _runs(user: User, binaries: Path) -> bool:
    programs = all(_try(user, [str(binaries / program), "--version"]) for program in ("postgres", "initdb"))
    return programs and _try(user, ["/bin/sh", "-c", 'ls "$0"', str(binaries.parent / "share")])


def _try(user: User, command: list[str]) -> bool:
    try:
        return (
            subprocess.run(
                command,
                cwd="/",
                capture_output=True,
                env=process.service_environment(),
                **process.demotion(user),
            ).returncode
            == 0
        )
    except PermissionError:
        return False
    except (OSError, subprocess.SubprocessError) as error:
        raise ServiceError(
            f"cannot start PostgreSQL: it refuses to run as root, and nothing can be run as user {user.uid}: {error}; "
            "run as another user, or set DATABASE_URL"
        ) from error


def _copy(binaries: Path, place: Path, user: User) -> Path:
    """Return a copy of the programs, beside the data, that the user can run; made once for each installation of them."""
    install, package = binaries.parent, binaries.parent.parent
    status = (binaries / "postgres").stat()
    copy = place / f"programs-{status.st_size}-{status.st_mtime_ns}"
    if not copy.exists():
        for old in place.glob("programs-*"):
            shutil.rmtree(old)
        fresh = place / "programs-new"
        shutil.copytree(install, fresh / package.name / install.name, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
        # The programs look for their libraries in this folder, three above themselves.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        for folder in (fresh, fresh / package.name):
            folder.chmod(0o755)
        fresh.rename(copy)
    bin_folder = copy / package.name / install.name / "bin"
    if not _runs(user, bin_folder):
        raise ServiceError(f"cannot start PostgreSQL: user {user.uid} cannot run the copy of its programs in {copy}; set DATABASE_URL")
    return bin_folder
