"""Lightning 2.x, automatic optimization or --manual: python -m examples.with_lightning."""

from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from examples.reviews import accuracy, classifier, loader, reviews, settings
from optim import AdamSLS  # where it is installed: from plasls import AdamSLS

args = settings(manual=False, accelerator="auto")
learn, validate, collate = reviews(args)


class Reviews(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = classifier(args)
        self.automatic_optimization, self.losses = not args.manual, []

    def training_step(self, batch, index):
        if not args.manual:  # Lightning's closure calls backward: a trial costs one, too
            return self.model(**batch).loss
        return self.optimizers().step(closure=lambda: self.model(**batch).loss)  # forward only

    def on_train_batch_end(self, *_):  # not in training_step, which every trial runs again
        search = self.optimizers().search
        self.log_dict({"loss": search.base, "step_size": search.after, "trials": float(search.trials)})
        self.losses.append(search.base)

    def on_train_epoch_end(self):
        mean, self.losses = sum(self.losses) / len(self.losses), []
        print(
            f"epoch {self.current_epoch + 1}: loss {mean:.6f}, accuracy {accuracy(self.model, validate, collate):.3f}"
        )

    def configure_optimizers(self):
        return AdamSLS(self.model.parameters())

    def train_dataloader(self):
        return loader(learn, collate, args.batch, self.current_epoch)

    def on_save_checkpoint(self, checkpoint):  # Lightning keeps no random state
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint):
        self.on_train_start = lambda: torch.set_rng_state(checkpoint["random"])


trainer = lightning.Trainer(
    max_epochs=args.epochs, accelerator=args.accelerator, reload_dataloaders_every_n_epochs=1, log_every_n_steps=1,
    callbacks=[ModelCheckpoint(args.out, "last", save_on_train_epoch_end=True, enable_version_counter=False)],
    logger=CSVLogger(args.out), enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
saved = Path(args.out, "last.ckpt")
trainer.fit(Reviews(), ckpt_path=str(saved) if saved.exists() else None)
