"""`from plasls.hf import LineSearchTrainer`: see `extras.hf`."""

try:
    from .extras.hf import LineSearchMixin, LineSearchTrainer
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ModuleNotFoundError(
        "plasls.hf needs transformers 5 and accelerate, which are not installed: pip install transformers accelerate",
        name=error.name,
    ) from None

__all__ = ["LineSearchMixin", "LineSearchTrainer"]
