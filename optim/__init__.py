"""Learning-rate-free optimizers by stochastic Armijo line searches, after Kenneweg et al., IJCNN 2023."""

from .components import split
from .line_search import LineSearch
from .optimizers import PAPER, PLASLS, SGDSLS, AdamSLS
from .search import Search

__all__ = ["PAPER", "PLASLS", "SGDSLS", "AdamSLS", "LineSearch", "Search", "split"]
