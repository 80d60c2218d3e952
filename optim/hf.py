"""`from plasls.hf import LineSearchTrainer`: see `extras.hf`."""

from .extras.hf import LineSearchMixin, LineSearchTrainer

__all__ = ["LineSearchMixin", "LineSearchTrainer"]
