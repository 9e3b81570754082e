"""One pass over held-out texts that measures every latent, and the tables that follow (math §4 to §7)."""

from crosscope_worker.analysis.causal import measure_causal
from crosscope_worker.analysis.errors import AnalysisError
from crosscope_worker.analysis.latents import with_columns
from crosscope_worker.analysis.run import Analysis, HeldOut, analyse, conclude
from crosscope_worker.analysis.whole_texts import Splicing

__all__ = ["Analysis", "AnalysisError", "HeldOut", "Splicing", "analyse", "conclude", "measure_causal", "with_columns"]
