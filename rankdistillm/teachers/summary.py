"""The table of what asking took."""

from collections.abc import Mapping

from rankdistillm.evaluation.agreement import Agreement
from rankdistillm.teachers.budget import Usage
from rankdistillm.teachers.report import Report

UNKNOWN = "unknown: the prices of a million tokens are not set"


def summary(
    report: Report,
    agreement: Agreement | None = None,
    counts: Mapping[str, int] | None = None,
) -> str:
    """The closing table of a command that asked a model; ``counts`` are lines of its own.

    Shows what applies: a model that scores passages has neither tokens nor repairs, and runs or
    recorded answers are not asked for.
    """
    lines = [(name, f"{number:,}") for name, number in (counts or {}).items()]
    if report.calls or report.cache_hits:
        lines.append(("answers", _both(report.calls, report.cache_hits)))
    lines.append(("seconds", f"{report.seconds:,.1f}"))
    if (report.asked + report.stored).tokens:
        lines += [
            ("input tokens", _both(report.asked.input_tokens, report.stored.input_tokens)),
            ("output tokens", _both(report.asked.output_tokens, report.stored.output_tokens)),
            ("cost", _cost(report)),
        ]
    repairs = [f"{kind} {number:,}" for kind, number in report.repairs.most_common()]
    if report.read or repairs:
        lines.append(("repairs", ", ".join(repairs) or "none"))
    if report.shortened:
        lines.append(("cut for the context", f"{report.shortened:,} questions"))
    if agreement is not None:
        lines += [
            ("agreement with the first stage", f"Kendall's tau {agreement.kendall_tau:.3f}"),
            ("new in the top 10", f"{agreement.moved:.0%} of the passages"),
        ]
    return _aligned(lines)


def rehearsal(report: Report) -> str:
    """The table of a dry run."""
    asked: Usage = report.asked
    least, these = ("at least ", " for these calls") if report.is_minimum else ("", "")
    calls = f"{least}{asked.answers:,} (another {report.cache_hits:,} are answered already)"
    lines = [("calls", calls)]
    if asked.tokens:
        price = UNKNOWN if report.cost is None else f"up to about {report.cost:,.4f}{these}"
        lines += [
            ("input tokens", f"about {asked.input_tokens:,}{these}"),
            ("output tokens", f"up to {asked.output_tokens:,}{these}"),
            ("price", price),
        ]
    return _aligned(lines)


def _both(asked: int, stored: int) -> str:
    return f"{asked:,} now" + (f", {stored:,} from the store" if stored else "")


def _cost(report: Report) -> str:
    if report.cost is None or report.total_cost is None:
        return UNKNOWN
    in_all = f", {report.total_cost:,.4f} in all" if report.stored.answers else ""
    return f"{report.cost:,.4f} now{in_all}"


def _aligned(lines: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines)
