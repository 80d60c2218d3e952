"""python -m sweeps live: look at a sweep while it runs. optuna-dashboard shows the queue, /report what has finished.

python -m sweeps live                            the sweep in runs/ whose queue has changed last
python -m sweeps live --sweep=splits             another one
python -m sweeps live --storage=postgresql+psycopg://USER@HOST/DATABASE        all that a database has
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from train.arguments import Parser, any_terminal, folder, positive
from train.errors import InputError, one_line
from train.folder import SweepFolder

from .storage import Storage

HOST = "127.0.0.1"
REPORT = "/report"

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def queues(out: Path) -> dict[str, Path]:
    """Sweep or tuning study -> the journal of its queue, beginning with the one that has changed last."""
    found = [path for path in out.glob("*/*") if path == SweepFolder(path.parent).journal_file]
    return {path.parent.name: path for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)}


def report(out: Path) -> tuple[str, str]:
    """The report of what has finished so far, made now, or the reason why there is none; and the content's type."""
    command = [sys.executable, "-m", "analysis", "report", "--allow-missing", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr or done.stdout).removeprefix("error: "), "text/plain"
    return Path(done.stdout.strip()).read_text(encoding="utf-8"), "text/html"


def app(queue_page: App, out: Path) -> App:
    """optuna-dashboard's page, and at /report the report, which is made anew at each visit."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"].rstrip("/") != REPORT:
            return queue_page(environ, start_response)
        text, kind = report(out)
        start_response("200 OK", [("Content-Type", f"{kind}; charset=utf-8")])
        return [text.encode()]

    return answer


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Do nothing: the page asks again every few seconds."""


def server(options: argparse.Namespace) -> tuple[WSGIServer, str]:
    """The server, which is listening, and the words that name what it shows.

    Raises:
        InputError: there is no queue, it cannot be used, or the port cannot be had.
    """
    import optuna_dashboard  # it takes seconds

    out, port = Path(folder("out", options.out)), positive("port", options.port)
    there = queues(out)
    others = ""
    if options.storage:
        storage, _ = Storage(options.storage).open(out)
        what = Storage(options.storage).shown()
    else:
        name = options.sweep or next(iter(there), None)
        if name is None:
            raise InputError(f"--out={out}: no sweep has been started there, so there is nothing to look at yet")
        if name not in there:
            raise InputError(
                f"--sweep={name}: it has no queue in {out}; allowed: {', '.join(there) or 'none there yet'}"
            )
        storage, _ = Storage().open(there[name])
        what, rest = name, [each for each in there if each != name]
        others = f"; SWEEP=NAME shows another: {', '.join(rest)}" if rest else ""
    try:
        listening = make_server(HOST, port, app(optuna_dashboard.wsgi(storage), out), handler_class=_Quiet)
    except OSError as error:
        raise InputError(f"--port={port}: {one_line(error)}; allowed: a port that is free") from None
    return listening, f"{what}{others}"


def main(args: list[str]) -> int:
    """Serve until Ctrl-C. Exit status: 0, or 2 for bad input."""
    any_terminal()
    parser = Parser(
        prog="python -m sweeps live",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", default="runs", help="folder of the sweeps [runs]")
    parser.add_argument("--sweep", help="sweep or tuning study to look at [the one whose queue has changed last]")
    parser.add_argument("--storage", help="the queue's file or the database's URL, if it is not in the sweep's folder")
    parser.add_argument("--port", default="8080", help="port on this machine [8080]")
    try:
        listening, what = server(parser.parse_args(args))
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    address = f"http://{HOST}:{listening.server_port}"
    print(f"{address}/dashboard  {what}")
    print(f"{address}{REPORT}     what has finished so far; made anew at each visit")
    print("Ctrl-C ends it", flush=True)
    with listening:
        try:
            listening.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0
