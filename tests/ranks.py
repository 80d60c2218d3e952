"""Under torchrun: train a run and write down what each rank has after each step."""

import json
import os
import sys
from pathlib import Path

import torch

import train.run as module
from train.__main__ import main
from train.checkpoint import whole

rank = int(os.environ["RANK"])
steps: list[dict[str, object]] = []
train_step = module.Training.train_step


def watched(self, batch):
    done = train_step(self, batch)
    weights = torch.cat([parameter.flatten() for parameter in whole(list(self.model.state_dict().values()))])
    steps.append(
        {"step sizes": self.step_sizes(), "weights": weights.double().sum().item(), "loss": self.done.epoch_losses[-1]}
    )
    return done


module.Training.train_step = watched  # type: ignore[method-assign]
seen = Path(sys.argv[1])
status = main(sys.argv[2:])
seen.with_name(f"{seen.name}-{rank}.json").write_text(json.dumps(steps))
sys.exit(status)
