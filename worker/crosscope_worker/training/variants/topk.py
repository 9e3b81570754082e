"""TopK: the k largest scaled activations of each token, in training and at inference (math §2)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from crosscope_proto import dictionaries
from crosscope_worker.dictionary.keep import Keep, LargestByModel, LargestOfToken
from crosscope_worker.dictionary.sparse import flat_indices
from crosscope_worker.training.active_code import Selected, Smallest, Weights
from crosscope_worker.training.budget import Budget
from crosscope_worker.training.choices import token_choice
from crosscope_worker.training.variants.budgeted import Budgeted
from crosscope_worker.training.variants.variant import Batch


class TopK(Budgeted[dictionaries.TopK]):
    """Entries compete within their token alone, so inference needs no threshold."""

    def select(self, batch: Batch) -> tuple[list[Selected], tuple[Smallest, ...]]:
        """See Variant."""
        relu = (batch.pre + batch.weights.b_enc).relu_()
        return [self._selected(batch, budget, relu) for budget in self.budgets()], ()

    def _selected(self, batch: Batch, budget: Budget, relu: Tensor) -> Selected:
        norms = budget.norms(batch.weights.decoder, self.widths, self.spec.code_normalisation)
        kept = flat_indices(token_choice(relu * norms, budget.k, self.spec.num_latents, self.ranks))
        return Selected(batch.active(kept), budget.columns(self.widths), norms)

    @property
    def num_thresholds(self) -> int:
        """See Variant."""
        return 0

    def keep(self, thresholds: Sequence[float], weights: Weights, extra: Mapping[str, Tensor]) -> Keep:
        """See Variant."""
        return LargestOfToken(self.spec.k) if len(self.budgets()) == 1 else LargestByModel(self.spec.k)


VARIANT = TopK
