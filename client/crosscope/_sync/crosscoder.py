# Written by client/generate.py from _async/crosscoder.py. Do not edit.
"""A handle of a published crosscoder: its latents, examples and columns; by inheritance, prompts and effects."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crosscope import _decode
from crosscope._errors import InvalidInput, ServerError
from crosscope._examples import Example, ExampleList
from crosscope._export import MOST_EXPORTED, latents_document, write_page
from crosscope._filters import Condition, build_filters
from crosscope._groups import MOST_GROUPED, LatentGroup, LatentGroupList, groups_of
from crosscope._latents import LatentStatistics, latent_html, latent_table
from crosscope._matches import LatentMatches
from crosscope._prompts import check_count, check_text
from crosscope._public import public
from crosscope._search import SearchResults
from crosscope._sections import Section, sections
from crosscope._steering import MODELS
from crosscope._sync.annotations import Annotations
from crosscope._sync.behaviours import Behaviours
from crosscope._sync.columns import ColumnAnswer, Columns
from crosscope._sync.handle import check_version
from crosscope._sync.pages import PAGE_SIZE, Page, Pages
from crosscope._sync.searching import search
from crosscope._sync.transport import Transport
from crosscope._tables import MOST_ROWS
from crosscope._types import Detector, TrainingCurves
from crosscope_proto.artefacts import ExampleGroup
from crosscope_proto.v1 import latents_pb2
from crosscope_proto.v1.latents_pb2_grpc import LatentsStub
from crosscope_proto.verdict import Verdict

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd

_EXAMPLES_A_PAGE = 100
_GROUPS: dict[str | None, latents_pb2.ExampleGroup.ValueType] = {
    None: latents_pb2.EXAMPLE_GROUP_UNSPECIFIED,
    ExampleGroup.TOP: latents_pb2.EXAMPLE_GROUP_TOP,
    ExampleGroup.QUANTILE: latents_pb2.EXAMPLE_GROUP_QUANTILE,
    ExampleGroup.SILENT: latents_pb2.EXAMPLE_GROUP_SILENT,
}
_NAMES = "'top', 'quantile', 'silent', or None for both on which it fires"


@public
@dataclass(frozen=True)
class Latent(LatentStatistics):
    """One latent's statistics, and a call for its examples. Activations are scaled (math §1)."""

    source: "Crosscoder" = field(repr=False, compare=False)
    """The handle of the crosscoder that it belongs to."""

    def examples(
        self,
        limit: int = 10,
        group: ExampleGroup | str | None = None,
        dataset: str | None = None,
        context: int | None = None,
    ) -> ExampleList:
        """Texts on which it fires, strongest first; of group "silent" the nearest texts on which it does not fire.

        A silent text has the token at which the latent peaks elsewhere. Older versions have none.
        `context` is the number of tokens on each side of the peak; None gives the whole text.
        """
        return self.source.examples(self.id, limit=limit, group=group, dataset=dataset, context=context)

    def to_html(self, path: "str | Path", *, limit: int = 10, context: int | None = 32) -> int:
        """Writes it as one HTML file, as `Crosscoder.export_html` does, and returns the bytes written."""
        return self.source.export_html([self.id], path, limit=limit, context=context)


@public
class LatentList(Pages[Latent]):
    """Latents of one listing. Pages are fetched when they are reached, up to the limit."""

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each latent, indexed by id; needs pandas."""
        import pandas as pd

        rows = [latent.to_row() for latent in self]
        return pd.DataFrame(rows).set_index("id") if rows else pd.DataFrame()

    @property
    def remarks(self) -> tuple[str, ...]:
        """`notes`, and how many latents have no value of the order."""
        without = f"{self.num_undefined} of {self.num_matching} latents have no value of this order; they come last"
        return (*self.notes, *([without] if self.num_undefined else []))

    def __str__(self) -> str:
        return latent_table(self._fetched[: min(len(self), MOST_ROWS)], len(self), self.remarks)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return latent_html(self._fetched[: min(len(self), MOST_ROWS)], len(self), self.remarks)


@public
class Crosscoder(Behaviours):
    """One version of a published crosscoder. Made by `Client.crosscoder` and `Client.crosscoders`.

    Every call is answered from this version, whatever is published later. It raises VersionGone once the server has
    removed the version. `current()` gives a handle of the newest one.
    """

    @property
    def annotations(self) -> Annotations:
        """The words about its latents: labels, notes, stars, lists."""
        return Annotations(self._transport, self.name, self._version)

    def current(self) -> "Crosscoder":
        """A handle of the version that is current now; this handle keeps its own. Raises NotFound."""
        return open_crosscoder(self._transport, self.name)

    def latents(
        self,
        where: Condition | Iterable[Condition] = (),
        order_by: str = "",
        limit: int | None = 50,
        *,
        progress: bool | None = None,
    ) -> LatentList:
        """Latents that meet all conditions, in the order of a column; "-" in front of its name descends.

        A condition or an order may also be about words: "label contains refus", "list = mine", "starred = 1",
        "labelled = 1", "noted = 1"; with one condition on a list, the order "list" is that of the list. "detection"
        and "fuzzing" are the scores of automatic labels, also of those in whose place a person's stands.

        Latents without a value of the order come last; by "verdict" the best comes first. Columns are those of
        `columns()`, and the shares "dataset_share_NAME" and "role_share_ROLE". A condition may also compare
        "top_tokens", "logit_tokens_base" or "logit_tokens_chat" with the text of a token. `limit=None` lists all
        latents, page by page as they are reached; `progress` shows a bar of the pages, by default in a terminal and in
        a notebook.
        Raises InvalidInput for an unknown column, and for an order that is undefined for every latent that matches.
        """
        filters = build_filters(where)
        order = check_text(order_by, "order_by")
        if limit is not None:
            check_count(limit, "limit", low=1)

        def read_page(page_token: str, page_size: int) -> Page[Latent]:
            request = latents_pb2.ListLatentsRequest(
                crosscoder=self.name,
                version_id=self._version,
                filters=filters,
                order_by=order,
                page_size=page_size,
                page_token=page_token,
            )
            reply = self._transport.unary(self._latents.ListLatents, request)
            version_id = self._checked(reply.version_id)
            found = [self._latent(message, version_id) for message in reply.latents]
            return Page(found, reply.next_page_token, reply.num_matching, reply.num_undefined, tuple(reply.notes))

        first = read_page("", PAGE_SIZE if limit is None else min(limit, PAGE_SIZE))
        return LatentList(read_page, first, limit, progress)

    def search(
        self,
        text: str,
        places: str | Iterable[str] = (),
        where: Condition | Iterable[Condition] = (),
        *,
        regex: bool = False,
        match_case: bool = False,
        order_by: str = "",
        limit: int = 20,
        wait_s: float = 120.0,
    ) -> SearchResults:
        """Latents that a text finds in their labels, peaks, raised tokens and examples.

        A text is found wherever it stands, within words too, whatever the case and the accents of Latin, Greek and
        Cyrillic letters, unless `match_case`. With `regex` it is a regular expression of RE2; accents then count.
        `places` are some of SearchPlace, by default all; `where` are conditions as in `latents`.

        Latents whose label matches come first; then those whose examples peak on a match most often; then those that
        fire on one most, as a share of their own maximum. `order_by` gives another order, as in `latents`, in which
        latents without a value come last. The first search of a version builds an index of its
        examples, for which this waits up to `wait_s` seconds; the `remarks` say what was not searched.
        Raises InvalidInput, with the place of the fault in a regular expression.
        """
        return search(
            self._transport,
            (self.name, self._version),
            text,
            places,
            where,
            regex=regex,
            match_case=match_case,
            order_by=order_by,
            limit=limit,
            wait_s=wait_s,
        )

    def latent(self, latent: int) -> Latent:
        """One latent's statistics."""
        request = latents_pb2.GetLatentRequest(
            crosscoder=self.name, version_id=self._version, latent=check_count(latent, "latent")
        )
        reply = self._transport.unary(self._latents.GetLatent, request)
        return self._latent(reply.latent, self._checked(reply.version_id))

    def _latent(self, message: latents_pb2.Latent, version_id: str) -> Latent:
        return Latent(crosscoder=self.name, version_id=version_id, source=self, **_decode.latent_fields(message))

    def examples(
        self,
        latent: int,
        *,
        limit: int = 10,
        group: ExampleGroup | str | None = None,
        dataset: str | None = None,
        context: int | None = None,
    ) -> ExampleList:
        """Texts on which a latent fires; see `Latent.examples`."""
        if group not in _GROUPS:
            raise InvalidInput.of("group", f"{group!r} is no group of examples; use {_NAMES}")
        request = latents_pb2.ListExamplesRequest(
            crosscoder=self.name,
            version_id=self._version,
            latent=check_count(latent, "latent"),
            group=_GROUPS[group],
            dataset=check_text(dataset, "dataset") if dataset is not None else "",
            page_size=min(check_count(limit, "limit", low=1), _EXAMPLES_A_PAGE),
        )
        if context is not None:
            request.context = check_count(context, "context")
        found = ExampleList()
        while len(found) < limit:
            reply = self._transport.unary(self._latents.ListExamples, request)
            self._checked(reply.version_id)
            found.extend(map(_decode.example, reply.examples))
            if not reply.next_page_token:
                break
            request.page_token = reply.next_page_token
        return ExampleList(found[:limit])

    def html(self, latents: Iterable[int], *, limit: int = 10, context: int | None = 32, title: str = "") -> str:
        """Some latents as one HTML document that opens without a server and loads nothing.

        Each has its figures, their errors, its verdict, and at most `limit` examples of each group: the strongest,
        those of the bands, and silent ones. `context` as in `examples`. Without a `title` the ids are it. Raises
        InvalidInput for no latent and for more than 1 000.
        """
        ids = [check_count(each, "latents") for each in latents]
        if not 0 < len(ids) <= MOST_EXPORTED:
            raise InvalidInput.of("latents", f"{len(ids)} latents; name 1 to {MOST_EXPORTED}")
        shown: list[tuple[LatentStatistics, list[Section]]] = []
        for each in ids:
            latent = self.latent(each)
            found: list[Example] = []
            for group in (ExampleGroup.TOP, ExampleGroup.QUANTILE, ExampleGroup.SILENT):
                found += self.examples(each, limit=limit, group=group, context=context)
            shown.append((latent, sections(found, latent.max)))
        return latents_document(self.info, shown, title)

    def export_html(
        self,
        latents: Iterable[int],
        path: "str | Path",
        *,
        limit: int = 10,
        context: int | None = 32,
        title: str = "",
    ) -> int:
        """Writes `html` to a file and returns the bytes written. Raises OSError if the file cannot be written."""
        return write_page(path, self.html(latents, limit=limit, context=context, title=title))

    def columns(self, *names: str, only_known: bool = False) -> Columns:
        """Columns of the statistics table, by name: what each means, and its values when they are first used.

        Names may also be the shares "dataset_share_NAME" and "role_share_ROLE", "labelled", "starred" and "noted" (1 or
        0), and the scores "detection" and "fuzzing" (NaN where there is none). The values of up to 64 names come in
        one call, which raises InvalidInput for a column that the server does not know; with `only_known` such columns
        are left out, and a warning names them. Without names: every column of one number a latent that the server
        knows.
        """
        checked = [check_text(name, "columns") for name in names]
        return Columns(self._read_columns, checked, only_known=only_known or not names)

    def atlas(self, columns: Sequence[str]) -> "dict[str, np.ndarray]":
        """The values of `columns(*columns)`, by name: the former name of that call."""
        return self.columns(*([columns] if isinstance(columns, str) else columns)).read()

    def _read_columns(self, names: Sequence[str]) -> dict[str, ColumnAnswer]:
        import numpy as np

        request = latents_pb2.GetAtlasRequest(crosscoder=self.name, version_id=self._version, columns=names)
        pieces: dict[str, list[np.ndarray]] = {name: [] for name in names}
        categories: dict[str, tuple[str, ...]] = {}
        versions: set[str] = set()
        timeout_s = self._transport.connection.timeout_s
        for reply in self._transport.stream(self._latents.GetAtlas, request, timeout_s):
            pieces.setdefault(reply.column, []).append(np.frombuffer(reply.values, dtype="<f4"))
            categories[reply.column] = tuple(reply.categories)
            versions.add(self._checked(reply.version_id))
        values = {name: np.concatenate(parts) if parts else np.empty(0, np.float32) for name, parts in pieces.items()}
        if len(versions) > 1 or len({len(column) for column in values.values()}) > 1:
            raise ServerError(f"the columns of {self.name} came in pieces that do not fit together; ask again")
        return {name: ColumnAnswer(column, categories.get(name, ())) for name, column in values.items()}

    def training_curves(self) -> TrainingCurves:
        """Loss, FVE, L0, … over training."""
        request = latents_pb2.GetTrainingCurvesRequest(crosscoder=self.name, version_id=self._version)
        reply = self._transport.unary(self._latents.GetTrainingCurves, request)
        self._checked(reply.version_id)
        return _decode.training_curves(reply)

    def detectors(self) -> list[Detector]:
        """The latents that best detect each tagged behaviour in the conversations of the analysis."""
        request = latents_pb2.GetCrosscoderRequest(crosscoder=self.name, version_id=self._version)
        reply = self._transport.unary(self._latents.GetCrosscoder, request)
        self._checked(reply.crosscoder.version_id)
        return [_decode.detector(message) for message in reply.detectors]

    def groups(self, specific_to: str = "chat", limit: int = 24, num_examples: int = 3) -> LatentGroupList:
        """What one model has and the other lacks: latents specific to it that fire together, and examples of each.

        `specific_to` is "chat" or "base". At most `limit` groups come, each with at most `num_examples` texts of its
        first latent; what is left out is counted. The rule is that of math §13.
        """
        if specific_to not in MODELS:
            raise InvalidInput.of("specific_to", f"{specific_to!r} is no model of the pair; use 'chat' or 'base'")
        check_count(limit, "limit", low=1)
        check_count(num_examples, "num_examples", low=1)
        where = ("specific_to", "=", specific_to)
        listed = self.latents([where], "verdict", MOST_GROUPED, progress=False)
        latents = listed[:]
        found = groups_of(latents, self.detectors() if latents else [])
        result = LatentGroupList()
        labelled = [latent.id for _, some, _ in found[:limit] for latent in some if latent.label]
        names = self.annotations.names(labelled) if labelled else {}
        labels = {latent: name.label for latent, name in names.items() if not name.is_automatic}
        for behaviour, some, detectors in found[:limit]:
            examples = self.examples(some[0].id, limit=num_examples, group=ExampleGroup.TOP)
            called = next((labels[latent.id] for latent in some if latent.id in labels), "")
            result.append(LatentGroup(some, behaviour, detectors, examples, called))
        result.crosscoder, result.version_id, result.specific_to = self.name, self.version_id, specific_to
        result.num_latents, result.num_specific = self.info.num_latents, listed.num_matching
        result.num_supported = sum(latent.verdict.verdict is Verdict.SUPPORTED for latent in latents)
        result.num_grouped, result.num_groups = len(latents), len(found)
        result.gap = self.info.metrics.get("causal_gap_all", float("nan"))
        return result

    def match(self, other: "Crosscoder | str") -> LatentMatches:
        """For each living latent the nearest one of another crosscoder of the same pair and layer, and the way back.

        `other` is a handle, or the name of a crosscoder whose current version is taken. Nearness is the cosine of the
        decoder rows (math §13). The first answer of two large dictionaries may take a minute; the call ends after ten
        times the client's `timeout_s`. Raises InvalidInput where the two cannot be compared, or are too large.
        """
        if not isinstance(other, Crosscoder):
            other = open_crosscoder(self._transport, check_text(other, "other"))
        request = latents_pb2.MatchLatentsRequest(
            **self._source, other=other.name, other_version_id=other.version_id or None
        )
        timeout_s = self._transport.connection.long_timeout_s
        reply = self._transport.unary(self._latents.MatchLatents, request, timeout_s=timeout_s)
        self._checked(reply.first.version_id)
        return _decode.latent_matches(reply)


def open_crosscoder(transport: Transport, name: str, version: str | None = None) -> Crosscoder:
    """A handle of the version with this id, else of the current one. Raises NotFound, or VersionGone."""
    wanted = version if version is None else check_text(version, "version")
    request = latents_pb2.GetCrosscoderRequest(crosscoder=check_text(name, "name"), version_id=wanted)
    reply = transport.unary(transport.stub(LatentsStub).GetCrosscoder, request)
    check_version(name, wanted, reply.crosscoder.version_id, transport.address)
    return Crosscoder(transport, _decode.crosscoder_info(reply.crosscoder))
