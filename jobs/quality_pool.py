"""Pools of candidates, and what each arm and seed of a quality benchmark takes from one through the gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actors.crew import Crew
from cdiff.config import Config
from cdiff.data.ledger import Ledger
from cdiff.data.store import pool_seconds
from cdiff.types import Attempt, Pair, Purpose, Revisions, Weakness, content_hash
from cdiff.wasm.pool import chosen, started
from cdiff.wasm.quality import Thresholds, counts

Key = tuple[str, int]  # arm and seed

WAVES = 4  # of a pool, at most
_JUDGED = 200  # candidates per call
_LEAST = 8  # candidates of a type in a wave


@dataclass(frozen=True)
class Choice:
    """What one arm of one seed trains on beside the real photos."""

    pairs: tuple[Pair, ...] = ()  # kept ones
    perlin: int = 0
    again: int = 0
    counts: tuple[tuple[str, str, int], ...] = ()  # (slice, reason or "kept", how many)
    beyond_band: int = 0  # kept pairs whose difficulty lies outside the band that was wanted

    @property
    def verdicts(self) -> dict[str, int]:
        """Candidates by the gate's verdict."""
        found: Counter[str] = Counter()
        for _, reason, number in self.counts:
            found[reason] += number
        return dict(found)


@dataclass(frozen=True)
class Wanted:
    """What an arm and seed ask of a pool."""

    slices: Sequence[Weakness]
    quotas: Mapping[tuple[str, Purpose], int]
    config: Config
    judge: str = ""  # revision of the segmenter whose loss is difficulty; "": nobody judges
    # by slice, where its candidates start; {}: anywhere
    starts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pools:
    """Candidates of one split; what another run of this home made already is taken from there."""

    crew: Crew
    ledger: Ledger
    revisions: Revisions
    thresholds: Thresholds

    def choose(
        self,
        configs: Sequence[Config],
        per_type: int | Mapping[str, int],
        wanted: Mapping[Key, Wanted],
        label: str,
        least: int = 1,
    ) -> dict[Key, Choice]:
        """What each arm and seed takes from one pool. While one lacks pairs, the pool gets a further wave, WAVES at most.

        Args:
            configs: how candidates are made: `per_type` of each kind in every wave; where it names types, those alone that lack pairs get a
                further one.
            least: waves that there are at any rate.
        """
        pool: list[Attempt] = []
        found: dict[Key, Choice] = {}
        for wave in range(WAVES):
            for config in configs:
                told = f"making {label}, wave {wave + 1}"
                pool += self.crew.pool(per_type, self.revisions, config, wave, told)
            if wave + 1 < least:
                continue
            found = {key: self._chosen(pool, asked, key[1], label) for key, asked in wanted.items()}
            if all(len(found[key].pairs) >= sum(asked.quotas.values()) for key, asked in wanted.items()):
                break
            if not isinstance(per_type, int):
                lacking = {name for key, asked in wanted.items() for name in _lacking(found[key], asked)}
                per_type = {name: number for name, number in per_type.items() if name in lacking}
        made = {"candidates": len(pool), "waves": wave + 1, "seconds": pool_seconds(self.crew.run, pool)}
        if self.ledger.milestone(f"pool:{label}") != made:
            self.ledger.record(f"pool:{label}", **made)
        return found

    def _chosen(self, pool: list[Attempt], asked: Wanted, seed: int, label: str) -> Choice:
        losses = self._losses(asked.judge, pool, label) if asked.judge else {}
        offered = started(pool, asked.slices, asked.starts)
        about = asked.slices, asked.quotas, losses, self.thresholds, asked.config, seed
        return kept(*chosen(offered, *about))

    def _losses(self, segmenter: str, pool: list[Attempt], label: str) -> dict[str, float]:
        """By task_id the loss of a segmenter on every candidate."""
        parts = [pool[first : first + _JUDGED] for first in range(0, len(pool), _JUDGED)]
        work = {
            f"losses:{segmenter}:{content_hash([a.task_id for a in part])}": (segmenter, part)
            for part in parts
        }
        found = self.crew.each(self.ledger, "losses", work, list[float], f"judging {label}")
        values = [value for name in work for value in found[name]]
        return dict(zip([attempt.task_id for attempt in pool], values, strict=True))


def enough(quotas: Mapping[tuple[str, Purpose], int]) -> dict[str, int]:
    """Candidates by type for so many pairs: twice as many, and some for the rarest, since the gate turns some away."""
    return {name: max(_LEAST, 2 * number) for name, number in _by_slice(quotas).items()}


def _by_slice(quotas: Mapping[tuple[str, Purpose], int]) -> Counter[str]:
    asked: Counter[str] = Counter()
    for (name, _), number in quotas.items():
        asked[name] += number
    return asked


def _lacking(choice: Choice, asked: Wanted) -> list[str]:
    """Slices of which an arm has fewer pairs than it asked for."""
    had = Counter(pair.attempt.assignment.slice for pair in choice.pairs)
    return [name for name, number in _by_slice(asked.quotas).items() if had[name] < number]


def kept(pairs: Sequence[Pair], beyond: int) -> Choice:
    """What passed the gate, and what did not, counted; `beyond` of the former lie outside their band."""
    passed = tuple(pair for pair in pairs if pair.kept)
    return Choice(passed, counts=counts(pairs), beyond_band=beyond)


def made_of(pairs: Sequence[Pair]) -> str:
    """Names what was made of pairs: an arm may choose others when the command is given again, by another variant or a larger pool."""
    return content_hash(sorted(pair.task_id for pair in pairs))


def starting(config: Config, start_strength: float) -> Config:
    """The configuration under which random candidates start there: nobody judges, and the pool is the same for all seeds and arms."""
    sampling = config.sampling.model_copy(update={"start_strength": start_strength})
    wasm = config.wasm.model_copy(update={"arm": "B0", "start_strengths": ()})
    return config.model_copy(update={"sampling": sampling, "wasm": wasm})


def copying(config: Config) -> Config:
    """The configuration under which a task pastes the real target and its mask as they are."""
    plain = starting(config, 0.0)
    return plain.model_copy(update={"sampling": plain.sampling.model_copy(update={"mode": "given_mask"})})
