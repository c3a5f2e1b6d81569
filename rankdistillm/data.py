"""Training lists -> batches, in an order that depends on nothing but the seed and the step."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankdistillm.devices import made_ahead
from rankdistillm.errors import InputError
from rankdistillm.qrels import Qrels, check_overlap, read_qrels
from rankdistillm.runs import Run
from rankdistillm.sampling import SINGLE_RELEVANT, sample
from rankdistillm.targets import make_targets, transform_targets
from rankdistillm.token_cache import TokenisedTexts
from rankdistillm.tokens import PackedPairs, PairTemplate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """The lists of one optimiser step.

    ``pairs`` holds the (query, passage) pairs of list 0, then of list 1, and so on; ``targets``
    ``[lists, list_size]`` (higher is better) and ``mask`` (True = a real passage) are padded on
    the right to the longest list.
    """

    query_ids: list[str]
    doc_ids: list[list[str]]
    pairs: PackedPairs
    targets: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.query_ids)

    def rows_of(self, lists: np.ndarray) -> np.ndarray:
        """The positions in ``pairs`` of all passages of these (ascending) lists."""
        return np.flatnonzero(np.isin(np.repeat(np.arange(len(self)), self._sizes), lists))

    def micro_batches(
        self,
        token_budget: int,
        lists: np.ndarray | None = None,
        *,
        count_tokens: Callable[[np.ndarray], int],
    ) -> Iterator[np.ndarray]:
        """Whole lists in groups of at most ``token_budget`` tokens.

        ``lists``: only these, ascending; None: all. ``count_tokens``: of pairs of such lengths, the
        model's. A list above the budget is a group of its own.
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

    def share(self, rank: int, count: int) -> np.ndarray:
        """The lists (ascending) that process ``rank`` of ``count`` takes: about equal in tokens."""
        owner = np.repeat(np.arange(len(self)), self._sizes)
        tokens = np.bincount(owner, weights=self.pairs.lengths, minlength=len(self))
        loads = np.zeros(count)
        taken: list[list[int]] = [[] for _ in range(count)]
        for i in np.argsort(-tokens, kind="stable").tolist():
            least = int(loads.argmin())
            loads[least] += tokens[i]
            taken[least].append(i)
        return np.array(sorted(taken[rank]), dtype=np.int64)

    @property
    def _sizes(self) -> np.ndarray:
        return np.array([len(doc_ids) for doc_ids in self.doc_ids])


class TrainingData:
    """All training lists; ``batch(step)`` makes those of one step.

    The lists of all epochs form one stream, shuffled anew in each epoch; step s takes the
    ``queries_per_step`` lists from ``s * queries_per_step`` on. The stream ends after ``epochs``
    epochs, or after ``max_steps`` full steps where that is given. Passages are sampled anew in each
    epoch, from a generator seeded by (seed, epoch, query_id): hence a step's batch is the same
    however the work is divided and wherever it was resumed. ``config`` is ``data.train``.
    """

    def __init__(
        self,
        run: Run,
        qrels: Qrels,
        query_tokens: TokenisedTexts,
        doc_tokens: TokenisedTexts,
        template: PairTemplate,
        config: Mapping[str, Any],
        *,
        queries_per_step: int,
        epochs: float,
        max_steps: int | None = None,
        seed: int,
    ) -> None:
        self.run = run
        self.query_ids = _usable(run, qrels, config)
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
        """The batches from step ``start`` on, each made in the background before it is needed."""
        return made_ahead(self.batch, range(start, len(self)))

    def batch(self, step: int) -> Batch:
        """The batch of ``step``, counted from 0."""
        start = step * self.queries_per_step
        places = range(start, min(start + self.queries_per_step, self.num_lists))
        lists = [self._training_list(*divmod(place, len(self.query_ids))) for place in places]
        pairs = self._template.pack(
            [
                (self._query_tokens[query_id], self._doc_tokens[doc_id])
                for query_id, doc_ids, _ in lists
                for doc_id in doc_ids
            ]
        )
        width = max(len(doc_ids) for _, doc_ids, _ in lists)
        targets = np.zeros((len(lists), width), dtype=np.float32)
        mask = np.zeros((len(lists), width), dtype=bool)
        for i, (_, doc_ids, values) in enumerate(lists):
            targets[i, : len(doc_ids)] = values
            mask[i, : len(doc_ids)] = True
        return Batch(
            [query_id for query_id, _, _ in lists],
            [doc_ids for _, doc_ids, _ in lists],
            pairs,
            torch.from_numpy(targets),
            torch.from_numpy(mask),
        )

    def _training_list(self, epoch: int, place: int) -> tuple[str, list[str], np.ndarray]:
        config = self._config
        query_id = self.query_ids[self._order(epoch)[place]]
        ranked = self.run[query_id]
        relevance = _relevance(ranked.doc_ids, self._qrels.get(query_id, {}))
        rng = np.random.default_rng([self._seed, epoch, int.from_bytes(query_id.encode())])
        positions = sample(config["sampling"], config["list_size"], relevance, rng)
        targets = make_targets(config["targets"], positions, ranked.scores, relevance)
        doc_ids = [ranked.doc_ids[i] for i in positions]
        return query_id, doc_ids, transform_targets(config["transform"], targets)

    @lru_cache(maxsize=2)  # noqa: B019 - one object a process; a step spans two epochs at most
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self.query_ids))


def _relevance(doc_ids: tuple[str, ...], judged: Mapping[str, int]) -> np.ndarray:
    return np.array([max(0, judged.get(doc_id, 0)) for doc_id in doc_ids], dtype=np.float32)


def _usable(run: Run, qrels: Qrels, config: Mapping[str, Any]) -> list[str]:
    """The queries that give a training list; says once how many are short or of no use."""
    sampling, list_size = config["sampling"], config["list_size"]
    longest = max(len(ranked) for ranked in run.values())
    if longest < 2:
        raise InputError(
            f"{run.source}: every ranked list is of one passage alone, which leaves nothing to "
            "rank; give a run with longer lists, or raise data.train.depth"
        )
    if list_size < 2:
        raise InputError(
            f"data.train.list_size={list_size}: a list to rank has at least 2 passages"
        )
    if list_size > longest:
        raise InputError(
            f"{run.source}: data.train.list_size={list_size} is above the longest ranked list "
            f"({longest} passages); lower it to {longest}, or raise data.train.depth"
        )
    # Sorted: the order in the file must not decide the trajectory.
    usable = sorted(run)
    if sampling == SINGLE_RELEVANT or config["targets"] == "relevance":
        relevance = {q: _relevance(run[q].doc_ids, qrels.get(q, {})) for q in usable}
        if sampling == SINGLE_RELEVANT:
            wish, lack = "sampling=single_relevant", "both a relevant and a non-relevant passage"
            usable = [q for q in usable if 0 < np.count_nonzero(relevance[q]) < len(relevance[q])]
        else:
            wish, lack = "targets=relevance", "passages of different relevance"
            usable = [q for q in usable if np.ptp(relevance[q]) > 0]
        if not usable:
            raise InputError(
                f"{run.source}: no query has {lack} in its list, as data.train.{wish} needs; give "
                "the qrels of these queries in data.train.qrels"
            )
        if len(usable) < len(run):
            log.warning(
                "%s: %d of %d queries are left out: their lists do not have %s",
                run.source,
                len(run) - len(usable),
                len(run),
                lack,
            )
    short = sum(len(run[q]) < list_size for q in usable)
    if short:
        log.warning(
            "%s: %d of %d lists have fewer than list_size=%d passages and are used as they are",
            run.source,
            short,
            len(usable),
            list_size,
        )
    return usable


def read_training_run(config: Mapping[str, Any], seed: int) -> tuple[Run, Qrels]:
    """The run and judgements that ``data.train`` names, sub-sampled by depth and queries.

    ``depth`` counts in ``first_stage`` where that is given, else in the run itself.
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
        if config["targets"] != "relevance":
            raise InputError(
                "data.train.add_docs_not_in_ranking=true needs data.train.targets=relevance, not "
                f"{config['targets']}: the positive that is added would be the worst target"
            )
        run = run.with_relevant(qrels)
    return run, qrels
