"""What jobs write to the disk of the home, term by term, from their recipes alone.

Sizes that follow from a recipe are exact; where texts decide, they are the largest that can come, and tables are what
was measured, with room. tests/worker/recipes/test_disk_plan.py compares them with the folder of a job. Pure functions
of sizes: reads no file and asks no disk.
"""

from dataclasses import dataclass

from crosscope_proto.dictionaries import ChoosesK, Delta, DictionarySpec
from crosscope_proto.label_specs import CHARACTERS_A_TOKEN
from crosscope_proto.roles import NUM_ROLES
from crosscope_proto.specs import AnalysisSpec, TokenPolicy
from crosscope_proto.training_memory import weights_bytes

PART_TOKENS = 2_000_000
"""Held-out tokens of a part where the recipe does not say how many parts there are."""
HISTOGRAM_BINS = 112
"""Bins of the histogram of activations that the pass fills: eight for each of 14 decades."""
MAX_CHAT_ONLY = 8192
"""The largest set of chat-only latents for which the joint scores of base uselessness are computed. Above it they are
NaN, and `set_size` in the manifest says why."""
RESERVOIR_BYTES = 128 << 20
"""Residuals that are kept to train base uselessness, float32. If chat-only latents fire on more tokens, the residuals
are a uniform sample of these; on other tokens the loss does not depend on the scalars."""
LEAST_RESERVOIR = 1024
"""Tokens that are kept at least, however wide the model: one training step."""
CO_ACTIVE_ENTRIES = 1 << 21
"""Active entries in the sample from which co-activation is counted, 24 bytes each."""
ASSUMED_ACTIVE = 100.0
"""Active latents of a token where a penalty and the training decide how many."""
ENTRY_BYTES, SEGMENT_BYTES = 6, 22
"""Of an active latent of a token; and of a latent in a text in which it fires."""
_TOKEN_BYTES, _TEXT_BYTES = 13.25, 300
"""Of the texts themselves, in the plan and in the part that has them: ids, roles, shards; place and tags."""
_HEADER_BYTES = 8192
"""Of the files of a part, or of weights, besides their numbers."""
_CHAT_ONLY_SHARE = 0.2
"""Share of latents that are chat-only at most; 0 to 0.15 were measured."""
_THRESHOLD_ROOM = 1.1
"""A threshold that keeps k latents a token of the training keeps about as many of the held-out texts."""
_LATENT_BYTES, _TABLE_BYTES = 640, 40_000
"""Of the table of latents in Parquet: 290 to 540 bytes a latent were measured, and its footer."""
_SEQUENCE_BYTES = 6
"""A token of a shown text in Parquet; 1.6 to 2.7 bytes were measured with a vocabulary of 2 000."""
_EXAMPLE_BYTES = 12
"""Of an example besides its active tokens; 4 to 9 bytes were measured."""
_STRONGER = 2.0
"""Examples are the strongest texts: a latent fires on more of their tokens, 1.2 to 1.6 times the mean was measured."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out texts that an analysis reads, at most."""

    tokens: int
    mean_text: float | None
    """Tokens of a text on average; None if unknown."""
    num_datasets: int

    @classmethod
    def of(
        cls, analysis: AnalysisSpec, policy: TokenPolicy, num_datasets: int, mean_text: float | None, there: int | None
    ) -> "HeldOut":
        """The texts that a recipe reads where about `there` tokens are held out; None if nobody knows how many.

        The last text of each data set is read whole. `there` is a guess by characters, and a token has one at least.
        """
        most = analysis.max_tokens + num_datasets * policy.max_length
        return cls(most if there is None else min(most, CHARACTERS_A_TOKEN * there), mean_text, num_datasets)

    @property
    def texts(self) -> int:
        """Number of texts; of texts of unknown length the number of tokens, which no number of texts exceeds."""
        return self.tokens if self.mean_text is None else round(self.tokens / max(1.0, self.mean_text))


@dataclass(frozen=True)
class Measured:
    """A dictionary that is measured."""

    spec: DictionarySpec
    d_model: tuple[int, int]
    analysis: AnalysisSpec
    held_out: HeldOut

    @property
    def active(self) -> float:
        """Active latents of a token at most; of a dictionary whose training decides, what is assumed."""
        if not isinstance(self.spec, ChoosesK):
            return min(ASSUMED_ACTIVE, self.spec.num_latents)
        k = self.spec.k + (self.spec.k_delta if isinstance(self.spec, Delta) else 0)
        both = 2 if self.spec.code_normalisation == "decoupled" else 1
        return k * both * (_THRESHOLD_ROOM if self.spec.calibrates else 1.0)

    @property
    def num_parts(self) -> int:
        """Number of parts in which the texts are measured."""
        return self.analysis.parts or max(1, -(-self.held_out.tokens // PART_TOKENS))

    @property
    def weights_bytes(self) -> int:
        """The file of the weights in float32."""
        return weights_bytes(self.spec.num_latents, self.spec.width(*self.d_model)) + _HEADER_BYTES

    def texts_bytes(self) -> int:
        """The texts, in the plan of the parts and in the parts."""
        # A text of unknown length counts as one of 16 tokens.
        texts = self.held_out.tokens // 16 + 1 if self.held_out.mean_text is None else self.held_out.texts
        return round(_TOKEN_BYTES * (self.held_out.tokens + texts) + _TEXT_BYTES * texts)

    def sums_bytes(self) -> int:
        """The sums of all parts; each part has all of them."""
        shards, latents = self.analysis.num_shards, self.spec.num_latents
        decoupled = self.spec.code_normalisation == "decoupled"
        of_latent = (14 if decoupled else 12) * shards + 2 + NUM_ROLES + self.held_out.num_datasets + HISTOGRAM_BINS
        moments = (8 * of_latent + 4) * latents + 8 * shards
        quality = 3 * 2 * 8 * sum(self.d_model)
        return self.num_parts * (moments + quality + self._chat_only() + self._co_active() + _HEADER_BYTES)

    def _chat_only(self) -> int:
        """The normal matrix and the sample for base uselessness in one part."""
        base, chat = self.d_model
        if base != chat or self.spec.code_normalisation == "decoupled":
            return 0
        members = min(round(_CHAT_ONLY_SHARE * self.spec.num_latents), MAX_CHAT_ONLY)
        kept = min(self._part_tokens(), max(LEAST_RESERVOIR, RESERVOIR_BYTES // (4 * base)))
        return round(8 * members**2 + kept * (16 + 4 * base + 12 * min(members, self.active)))

    def _co_active(self) -> int:
        return round(24 * min(CO_ACTIVE_ENTRIES, self._part_tokens() * self.active))

    def _part_tokens(self) -> int:
        return -(-self.held_out.tokens // self.num_parts)

    def codes_bytes(self) -> int:
        """Every active latent of every token, over all parts."""
        entries = self.held_out.tokens * self.active
        return round(ENTRY_BYTES * entries + SEGMENT_BYTES * min(entries, self.held_out.texts * self.spec.num_latents))

    def tables_bytes(self) -> int:
        """The published tables but the examples, about: latents, and the texts that are shown."""
        texts = min(self.held_out.tokens, self._num_examples() * (self.held_out.mean_text or self.held_out.tokens))
        return round(_LATENT_BYTES * self.spec.num_latents + _SEQUENCE_BYTES * texts + _TABLE_BYTES)

    def examples_bytes(self) -> int:
        """The published examples, about."""
        length = self.held_out.mean_text or 512.0
        share = min(1.0, self.active / self.spec.num_latents)
        fires_in = 1 - (1 - share) ** length
        entries = min(length, _STRONGER * share * length / fires_in)
        rows = self._num_examples()
        return round(rows * (_EXAMPLE_BYTES + ENTRY_BYTES * entries) + _TABLE_BYTES)

    def _num_examples(self) -> int:
        """Number of examples at most: of each latent and data set no more than there are texts."""
        spec, texts = self.analysis, self.held_out.texts
        each = min(spec.top_examples, texts) + min(spec.quantiles * spec.examples_per_quantile, texts)
        return self.spec.num_latents * self.held_out.num_datasets * (each + min(spec.silent_examples, texts))
