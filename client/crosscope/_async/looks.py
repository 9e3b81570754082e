"""A look at a pair, with a call for the latents that carry its findings."""

from dataclasses import dataclass

from crosscope._async.crosscoder import AsyncCrosscoder
from crosscope._errors import InvalidInput
from crosscope._explained_looks import ExplainedFinding, ExplainedLook
from crosscope._findings import Finding
from crosscope._looks import LookContents
from crosscope._prompts import check_count
from crosscope._public import public
from crosscope._types import Tokens


@public
@dataclass(frozen=True, eq=False)
class AsyncLook(LookContents):
    """What differs between the models of a pair: layers, findings, conversations, continuations."""

    async def explain(
        self, crosscoder: AsyncCrosscoder, limit: int = 10, num_latents: int = 3, num_exact: int = 32
    ) -> ExplainedLook:
        """The latents of a crosscoder that carry the largest findings, `limit` of them, `num_latents` for each.

        Each finding takes one `attribute_both` of the crosscoder, at the tokens as the look read them. Raises
        InvalidInput for a crosscoder of another pair.
        """
        models = self.info.base_model, self.info.chat_model
        if (crosscoder.info.base_model, crosscoder.info.chat_model) != models:
            raise InvalidInput.of(
                "crosscoder",
                f"{crosscoder.name!r} is of the pair {crosscoder.info.pair!r} with other models than the look "
                f"{self.name!r}, whose pair is {self.info.pair!r}",
            )
        check_count(limit, "limit", low=1)
        check_count(num_latents, "num_latents", low=1)
        entries: list[ExplainedFinding] = []
        for finding in self.findings[:limit]:
            both = await crosscoder.attribute_both(
                token_ids=_until(finding), tokens=finding.position, num_exact=num_exact
            )
            entries.append(ExplainedFinding(finding, both, num_latents))
        return ExplainedLook(crosscoder.name, tuple(entries), self.num_findings)


def _until(finding: Finding) -> Tokens:
    """The tokens of a finding's text up to it; later ones change nothing."""
    tokens, end = finding.text.tokens, finding.position + 1
    return Tokens(tokens.ids[:end], tokens.pieces[:end], tokens.roles[:end])
