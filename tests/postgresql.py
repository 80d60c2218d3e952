"""A PostgreSQL server for tests, on loopback, in a folder of its own."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def binaries() -> Path | None:
    """The newest installed server's folder; Debian keeps it off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(on_path).resolve().parent if on_path else None


@contextmanager
def server() -> Iterator[str]:
    """Start a server and stop it afterwards; the URL of its database. As root it runs as a user without rights."""
    folder = binaries()
    assert folder is not None
    user = _user()
    home = Path(tempfile.mkdtemp(prefix="plasls-pg-"))
    if user is not None:
        shutil.chown(home, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(program: str, *args: str) -> None:
        subprocess.run(
            [folder / program, *args],
            check=True,
            cwd=home,
            user=user,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )

    data = str(home / "data")
    try:
        call("initdb", f"--pgdata={data}", "--username=plasls", "--auth=trust", "--encoding=UTF8", "--no-sync")
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home} -c fsync=off"
        call("pg_ctl", "start", "--wait", f"--pgdata={data}", f"--options={settings}", f"--log={home / 'log'}")
        try:
            yield f"postgresql+psycopg://plasls@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "stop", "--mode=immediate", f"--pgdata={data}")
    finally:
        shutil.rmtree(home)


def _user() -> str | None:
    """initdb refuses root."""
    if os.geteuid() != 0:
        return None
    return next(name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()})
