"""rankdistillm distils the rankings of a large language model into a fast cross-encoder."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["CrossEncoder", "Reranker", "Run", "__version__"]

if TYPE_CHECKING:
    from rankdistillm.data.runs import Run
    from rankdistillm.model.cross_encoder import CrossEncoder
    from rankdistillm.model.reranker import Reranker

_HOMES = {
    "CrossEncoder": "rankdistillm.model.cross_encoder",
    "Reranker": "rankdistillm.model.reranker",
    "Run": "rankdistillm.data.runs",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: torch and transformers take seconds.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
