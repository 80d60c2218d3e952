"""python -m train --key=value ...: train one run (see train.config.Config, or --help, for the keys)."""

import os
import sys

from . import stopping

STOPPED = "stopping; the same command resumes the run"


def main(args: list[str]) -> int:
    # torch and transformers are imported later: they take seconds, and a misspelt flag need not wait.
    from .arguments import any_terminal
    from .config import Config
    from .errors import InputError, one_line
    from .imports import uncollected
    from .tasks import judge

    any_terminal()
    first = int(os.environ.get("RANK", 0)) == 0  # all processes of torchrun find the same mistakes
    try:
        config = Config.from_args(args)
        with uncollected():
            from tqdm import tqdm

            from .run import run

        with (
            stopping.listening(STOPPED if first else ""),
            tqdm(desc=config.run_id, unit="step", disable=None if first else True) as bar,
        ):

            def progress(step: int, total: int, loss: float) -> None:
                bar.total = total
                bar.set_postfix_str(f"loss {loss:.2f}", refresh=False)
                bar.update(step - bar.n)

            result = run(config, progress)
    except (InputError, OSError) as error:
        if first or not isinstance(error, InputError):
            print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except SystemExit as end:  # a stop, or --help
        return int(end.code or 0)
    if not first:
        return 0
    s, key = result.summary, judge(config.task)
    print(
        f"{result.folder}: {key.removeprefix('eval/')} {s[key]:.4f}, training loss of the last epoch "
        f"{s['train/epoch_loss']:.4f}, {s['steps']} steps in {s['time/total']:.0f} s"
    )
    return 0


if __name__ == "__main__":
    stopping.end_at_once(STOPPED)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(sys.argv[1:]))
