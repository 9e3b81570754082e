"""One pass over held-out texts that measures every latent, and the tables that follow (math §4 to §7)."""

from crosscope_worker.analysis.errors import AnalysisError
from crosscope_worker.analysis.fidelity import Splicing
from crosscope_worker.analysis.run import Analysis, HeldOut, analyse

__all__ = ["Analysis", "AnalysisError", "HeldOut", "Splicing", "analyse"]
