"""The table of what asking took."""

from collections.abc import Mapping

from rankdistillm.evaluation.agreement import Agreement
from rankdistillm.teachers.budget import Usage
from rankdistillm.teachers.tally import Tally

UNKNOWN = "unknown: the prices of a million tokens are not set"


def summary(
    tally: Tally,
    agreement: Agreement | None = None,
    counts: Mapping[str, int] | None = None,
) -> str:
    """The closing table of a command that asked a model; ``counts`` are lines of its own.

    Shows what applies: a model that scores passages has neither tokens nor repairs, and runs or
    recorded answers are not asked for.
    """
    lines = [(name, f"{number:,}") for name, number in (counts or {}).items()]
    if tally.calls or tally.cache_hits:
        lines.append(("answers", _both(tally.calls, tally.cache_hits)))
    lines.append(("seconds", f"{tally.seconds:,.1f}"))
    if (tally.asked + tally.stored).tokens:
        lines += [
            ("input tokens", _both(tally.asked.input_tokens, tally.stored.input_tokens)),
            ("output tokens", _both(tally.asked.output_tokens, tally.stored.output_tokens)),
            ("cost", _cost(tally)),
        ]
    repairs = [f"{kind} {number:,}" for kind, number in tally.repairs.most_common()]
    if tally.read or repairs:
        lines.append(("repairs", ", ".join(repairs) or "none"))
    if tally.shortened:
        lines.append(("cut for the context", f"{tally.shortened:,} questions"))
    if agreement is not None:
        lines += [
            ("agreement with the first stage", f"Kendall's tau {agreement.kendall_tau:.3f}"),
            ("new in the top 10", f"{agreement.new_in_top:.0%} of the passages"),
        ]
    return _aligned(lines)


def rehearsal(tally: Tally) -> str:
    """The table of a dry run."""
    asked: Usage = tally.asked
    least, these = ("at least ", " for these calls") if tally.is_minimum else ("", "")
    calls = f"{least}{asked.answers:,} (another {tally.cache_hits:,} are answered already)"
    lines = [("calls", calls)]
    if asked.tokens:
        price = UNKNOWN if tally.cost is None else f"up to about {tally.cost:,.4f}{these}"
        lines += [
            ("input tokens", f"about {asked.input_tokens:,}{these}"),
            ("output tokens", f"up to {asked.output_tokens:,}{these}"),
            ("price", price),
        ]
    return _aligned(lines)


def _both(asked: int, stored: int) -> str:
    return f"{asked:,} now" + (f", {stored:,} from the store" if stored else "")


def _cost(tally: Tally) -> str:
    if tally.cost is None or tally.total_cost is None:
        return UNKNOWN
    in_all = f", {tally.total_cost:,.4f} in all" if tally.stored.answers else ""
    return f"{tally.cost:,.4f} now{in_all}"


def _aligned(lines: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines)
