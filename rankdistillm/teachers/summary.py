"""What asking took, as the lines of a table."""

from collections.abc import Mapping

from rankdistillm.evaluation.agreement import Agreement
from rankdistillm.teachers.ask import Report
from rankdistillm.teachers.budget import Usage

UNKNOWN = "unknown: the prices of a million tokens are not set"


def summary(
    report: Report,
    agreement: Agreement | None = None,
    counts: Mapping[str, int] | None = None,
) -> str:
    """The closing table of a command that asked a model; ``counts`` are lines of its own."""
    lines = [(name, f"{number:,}") for name, number in (counts or {}).items()]
    if report.calls or report.cache_hits:
        lines.append(("answers", _both(report.calls, report.cache_hits)))
    if (report.asked + report.stored).tokens:
        lines += [
            ("input tokens", _both(report.asked.input_tokens, report.stored.input_tokens)),
            ("output tokens", _both(report.asked.output_tokens, report.stored.output_tokens)),
            ("cost", _cost(report)),
        ]
    repairs = [f"{kind} {number:,}" for kind, number in report.repairs.most_common()]
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
    lines = [("calls", f"{asked.answers:,} (another {report.cache_hits:,} are answered already)")]
    if asked.tokens:
        lines += [
            ("input tokens", f"about {asked.input_tokens:,}"),
            ("output tokens", f"up to {asked.output_tokens:,}"),
            ("price", UNKNOWN if report.cost is None else f"up to about {report.cost:,.4f}"),
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
