"""Learning-rate-free optimizers by stochastic Armijo line searches, after Kenneweg et al., IJCNN 2023."""

from .components import split
from .guard import is_trial
from .line_search import LineSearch
from .optimizers import PAPER, PAPER_SEARCH, PLASLS, SGDSLS, AdamSLS, SaLSA
from .search import Search

__all__ = [
    "PAPER",
    "PAPER_SEARCH",
    "PLASLS",
    "SGDSLS",
    "AdamSLS",
    "LineSearch",
    "SaLSA",
    "Search",
    "__version__",
    "is_trial",
    "split",
]

__version__ = "0.2.0.dev0"
