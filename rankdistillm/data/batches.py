"""Build training batches, in an order that depends only on the seed and the step."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rankdistillm.data.qrels import Qrels, check_overlap, read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.sampling import SINGLE_RELEVANT, sample
from rankdistillm.data.targets import (
    NEED_QRELS,
    Kinds,
    kinds_of,
    learns_from_judgements,
    make_targets,
)
from rankdistillm.devices import prefetch
from rankdistillm.errors import InputError

if TYPE_CHECKING:  # the data room does not depend on the model
    from rankdistillm.model.pairs import PackedPairs, PairTemplate
    from rankdistillm.model.tokenise import TokenisedTexts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """The lists of one optimiser step.

    ``pairs`` holds the (query, passage) pairs of list 0, then those of list 1, and so on.
    ``targets`` (higher is better) and ``mask`` (True = a real passage) are ``[lists, list_size]``,
    padded on the right to the longest list. With several kinds of targets, these are ``[lists,
    kinds, list_size]``.
    """

    query_ids: list[str]
    doc_ids: list[list[str]]
    pairs: "PackedPairs"
    targets: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.query_ids)

    def rows_of(self, lists: np.ndarray) -> np.ndarray:
        """The indices into ``pairs`` of all passages of these lists, which must ascend."""
        return np.flatnonzero(np.isin(np.repeat(np.arange(len(self)), self._sizes), lists))

    def micro_batches(
        self,
        token_budget: int,
        lists: np.ndarray | None = None,
        *,
        count_tokens: Callable[[np.ndarray], int],
    ) -> Iterator[np.ndarray]:
        """Group whole lists into micro-batches of at most ``token_budget`` tokens.

        ``lists``: indices of the lists to use, ascending; None for all. ``count_tokens``: the
        model's token count for pairs of given lengths. A list above the budget gets a micro-batch
        of its own.
        """
        group: list[int] = []
        for i in range(len(self)) if lists is None else lists.tolist():
            rows = self.rows_of(np.array([*group, i]))
            if group and count_tokens(self.pairs.lengths[rows]) > token_budget:
                yield np.array(group)
                group = []
            group.append(i)
        if group:
            yield np.array(group)

    def share(self, rank: int, world_size: int) -> np.ndarray:
        """The indices of the lists of process ``rank``, ascending; tokens are shared evenly."""
        owner = np.repeat(np.arange(len(self)), self._sizes)
        tokens = np.bincount(owner, weights=self.pairs.lengths, minlength=len(self))
        loads = np.zeros(world_size)
        taken: list[list[int]] = [[] for _ in range(world_size)]
        for i in np.argsort(-tokens, kind="stable").tolist():
            least = int(loads.argmin())
            loads[least] += tokens[i]
            taken[least].append(i)
        return np.array(sorted(taken[rank]), dtype=np.int64)

    @property
    def _sizes(self) -> np.ndarray:
        return np.array([len(doc_ids) for doc_ids in self.doc_ids])


class TrainingData:
    """All training lists; ``batch(step)`` builds the batch of one step.

    The lists of all epochs form one stream, reshuffled every epoch. Step s takes the
    ``queries_per_step`` lists from index ``s * queries_per_step`` on. The stream ends after
    ``epochs`` epochs, or after ``max_steps`` full steps if that is set. Passages are sampled anew
    every epoch, from a generator seeded by (seed, epoch, query_id), so a step's batch does not
    depend on how the work is split or where training was resumed. ``config`` is ``data.train``.
    ``targets``: the kinds of targets to build; by default, the one of ``config``.

    Raises `InputError` if the run has no usable training list.
    """

    def __init__(
        self,
        run: Run,
        qrels: Qrels,
        query_tokens: "TokenisedTexts",
        doc_tokens: "TokenisedTexts",
        template: "PairTemplate",
        config: Mapping[str, Any],
        *,
        queries_per_step: int,
        epochs: float,
        max_steps: int | None = None,
        seed: int,
        targets: Kinds | None = None,
    ) -> None:
        self.run = run
        self.targets = targets or config["targets"]
        self.query_ids = _usable(run, qrels, config, self.targets)
        self.queries_per_step = queries_per_step
        self.num_lists = round(len(self.query_ids) * epochs)
        if max_steps is not None:
            self.num_lists = max_steps * queries_per_step
        if not self.num_lists:
            raise InputError(
                f"epochs={epochs} of {len(self.query_ids)} training lists are less than one list; "
                "raise epochs"
            )
        self._qrels = qrels
        self._query_tokens = query_tokens
        self._doc_tokens = doc_tokens
        self._template = template
        self._config = config
        self._seed = seed

    def __len__(self) -> int:
        """The number of steps; the last one may have fewer lists."""
        return -(-self.num_lists // self.queries_per_step)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The batches from step ``start`` on, built in the background ahead of their use."""
        return prefetch(self.batch, range(start, len(self)))

    def batch(self, step: int) -> Batch:
        """The batch of ``step``, counted from 0."""
        start = step * self.queries_per_step
        stream = range(start, min(start + self.queries_per_step, self.num_lists))
        lists = [self._training_list(*divmod(i, len(self.query_ids))) for i in stream]
        pairs = self._template.pack(
            [
                (self._query_tokens[query_id], self._doc_tokens[doc_id])
                for query_id, doc_ids, _ in lists
                for doc_id in doc_ids
            ]
        )
        width = max(len(doc_ids) for _, doc_ids, _ in lists)
        kinds = () if isinstance(self.targets, str) else (len(self.targets),)
        targets = np.zeros((len(lists), *kinds, width), dtype=np.float32)
        mask = np.zeros((len(lists), width), dtype=bool)
        for i, (_, doc_ids, values) in enumerate(lists):
            targets[i, ..., : len(doc_ids)] = values
            mask[i, : len(doc_ids)] = True
        return Batch(
            [query_id for query_id, _, _ in lists],
            [doc_ids for _, doc_ids, _ in lists],
            pairs,
            torch.from_numpy(targets),
            torch.from_numpy(mask),
        )

    def _training_list(self, epoch: int, index: int) -> tuple[str, list[str], np.ndarray]:
        config = self._config
        query_id = self.query_ids[self._order(epoch)[index]]
        ranked = self.run[query_id]
        judgements = _judgements(ranked.doc_ids, self._qrels.get(query_id, {}))
        rng = np.random.default_rng([self._seed, epoch, int.from_bytes(query_id.encode())])
        indices = sample(
            config["sampling"],
            config["list_size"],
            ranked.scores,
            np.nan_to_num(judgements),
            rng,
        )

        targets = make_targets(
            self.targets, config["transform"], indices, ranked.scores, judgements
        )
        return query_id, [ranked.doc_ids[i] for i in indices], targets

    @lru_cache(maxsize=2)  # noqa: B019 - one object per process, and few epochs are in use at a time
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self.query_ids))


def _judgements(doc_ids: tuple[str, ...], judged: Mapping[str, int]) -> np.ndarray:
    """float32 ``[len(doc_ids)]``: relevance, 0 if negative, NaN if unjudged."""
    return np.array(
        [max(0, judged[doc_id]) if doc_id in judged else np.nan for doc_id in doc_ids],
        dtype=np.float32,
    )


def _usable(run: Run, qrels: Qrels, config: Mapping[str, Any], targets: Kinds) -> list[str]:
    """The queries with a training list, sorted; logs how many are short or left out."""
    sampling, list_size = config["sampling"], config["list_size"]
    lengths = dict(zip(run, run.lengths.tolist(), strict=True))
    longest = max(lengths.values())
    if longest < 2:
        raise InputError(
            f"{run.source}: every ranked list has only one passage, so there is nothing to rank; "
            "give a run with longer lists, or raise data.train.depth"
        )
    if list_size < 2:
        raise InputError(
            f"data.train.list_size={list_size}: a training list needs at least 2 passages"
        )
    if list_size > longest:
        raise InputError(
            f"{run.source}: data.train.list_size={list_size} is above the longest ranked list "
            f"({longest} passages); lower it to {longest}, or raise data.train.depth"
        )
    # Sorted, so that the order in the file cannot affect training.
    usable = sorted(run)
    from_qrels = [kind for kind in kinds_of(targets) if kind in NEED_QRELS]
    judged = run.listed_relevance(qrels) if from_qrels or sampling == SINGLE_RELEVANT else {}
    lack = "passages of different relevance"
    if sampling == SINGLE_RELEVANT:
        lack = "a relevant and another passage"
        relevant = {q: sum(r > 0 for r in judged[q]) for q in usable}
        usable = [q for q in usable if 0 < relevant[q] < lengths[q]]
        if not usable:
            raise InputError(
                f"{run.source}: data.train.sampling=single_relevant needs {lack} in a list, and no "
                "query has them; give the qrels of these queries in data.train.qrels"
            )
    differing = {kind: _lists_that_differ(kind, judged, lengths) for kind in from_qrels}
    for kind, lists in differing.items():
        if not lists.intersection(usable):
            remedy = "give the qrels of these queries in data.train.qrels"
            if any(judged.values()):
                remedy = "their qrels know only one; for targets=relevance the rest counts as 0"
            raise InputError(
                f"{run.source}: targets={kind} needs passages of different relevance in a list, "
                f"and no query has them; {remedy}"
            )
    if learns_from_judgements(targets):
        usable = [q for q in usable if any(q in lists for lists in differing.values())]
    if len(usable) < len(run):
        log.warning(
            "%s: %d of %d queries are left out: their lists lack %s",
            run.source,
            len(run) - len(usable),
            len(run),
            lack,
        )
    for kind, lists in differing.items():
        if len(lists.intersection(usable)) < len(usable):
            log.info(
                "%s: targets=%s has something to compare in %d of %d lists",
                run.source,
                kind,
                len(lists.intersection(usable)),
                len(usable),
            )
    short = sum(lengths[q] < list_size for q in usable)
    if short:
        log.warning(
            "%s: %d of %d lists have fewer than list_size=%d passages and are used whole",
            run.source,
            short,
            len(usable),
            list_size,
        )
    return usable


def _lists_that_differ(
    kind: str, judged: Mapping[str, list[int]], lengths: Mapping[str, int]
) -> set[str]:
    """The queries whose listed passages have targets of this kind that differ."""
    # An unjudged passage counts 0 for ``relevance`` and nothing for ``judged``.
    unjudged = [0] if kind == "relevance" else []
    return {
        q for q, found in judged.items() if len({*found, *unjudged[: lengths[q] - len(found)]}) > 1
    }


def read_training_run(
    config: Mapping[str, Any], seed: int, targets: Kinds | None = None
) -> tuple[Run, Qrels]:
    """Read the run and judgements of ``data.train``, sub-sampled by depth and queries.

    ``targets``: the kinds of targets that will be built; by default, the one of ``config``.
    ``depth`` counts in ``first_stage`` if that is set, else in the run itself. Raises `InputError`
    for unreadable files and for options that contradict each other.
    """
    if config["run"] is None:
        raise InputError(
            "data.train.run is not set; add data.train.run=FILE_OR_IR_DATASETS_ID to the command "
            "line, or take the embedded collection with data=mini"
        )
    run = Run.read(config["run"])
    if config["depth"] is not None:
        if config["first_stage"]:
            first_stage = Run.read(config["first_stage"], queries=set(run))
            run = run.within(first_stage, config["depth"])
        else:
            run = run.truncate(config["depth"])
    run = run.sample_queries(config["num_queries"], seed)
    qrels = read_qrels(config["qrels"]) if config["qrels"] else {}
    if qrels:
        check_overlap(run, qrels)
    if config["add_docs_not_in_ranking"]:
        if config["sampling"] != SINGLE_RELEVANT:
            raise InputError(
                "data.train.add_docs_not_in_ranking=true needs data.train.sampling="
                f"{SINGLE_RELEVANT}, not {config['sampling']}: a passage that the run lacks has no "
                "rank to learn"
            )
        targets = targets or config["targets"]
        if isinstance(targets, str) and not learns_from_judgements(targets):
            raise InputError(
                "data.train.add_docs_not_in_ranking=true needs data.train.targets=relevance or "
                f"loss=mixed, not {targets}: the positive that is added has no rank to learn"
            )
        run = run.with_relevant(qrels)
    return run, qrels
