"""Learning-rate-free optimizers by stochastic Armijo line searches, after Kenneweg et al., IJCNN 2023."""

from .components import split
from .criteria import Armijo, Criterion, Follow, Smoothed
from .extras.handover import handover
from .extras.paper import PAPER
from .extras.salsa import SALSA, SaLSA
from .guard import is_trial
from .line_search import LineSearch
from .optimizers import PLASLS, SGDSLS, AdamSLS, with_line_search
from .presets import DEFAULT, FOLLOW, FROM_SCRATCH, SMOOTHED, Preset
from .search import Search

__all__ = [
    "DEFAULT",
    "FOLLOW",
    "FROM_SCRATCH",
    "PAPER",
    "PLASLS",
    "SALSA",
    "SGDSLS",
    "SMOOTHED",
    "AdamSLS",
    "Armijo",
    "Criterion",
    "Follow",
    "LineSearch",
    "Preset",
    "SaLSA",
    "Search",
    "Smoothed",
    "__version__",
    "handover",
    "is_trial",
    "split",
    "with_line_search",
]

__version__ = "0.2.0.dev0"
