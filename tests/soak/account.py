"""The account of a soak: one figure for each demand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.figures import MET, MISSED, Figure
from tests.soak.disturbances import Disturbances
from tests.soak.history import WINDOW, History
from tests.soak.judge import Verdict
from tests.soak.load import Load
from tests.soak.recorder import Recorder

SHARE = 0.7
"""Of the peak."""
LOST = 1e-4
GROWTH = 0.05
BATCH = 64
"""Replies that a worker may have sent and not yet counted when it is killed."""
DESCRIPTORS = 8
KILLED = 0.5
"""Seconds of one worker's traffic that its death may cost."""
WORKERS = 2
SLACK = 0.95
"""Share of the rate that the load must have had: else it was another test."""


@dataclass(frozen=True, slots=True)
class Account:
    """Everything that is known at the end. `peak`: replies a second; `peaks`: the loads that measured it; `ended`: the last
    lines of a server that is not there any more."""

    peak: float
    load: Load
    peaks: list[Load]
    verdict: Verdict
    history: History
    disturbances: Disturbances
    recorder: Recorder
    ended: list[str]


def figures(account: Account) -> list[Figure]:
    seconds = account.load.seconds
    told = (_load(account), _answers(account), _lost(account), _failed(account), *_flat(account), _sums(account), _all(account))
    return [
        Figure(f"S{number}", what, demand, measured, MET if met else MISSED, round(seconds, 1))
        for number, (what, demand, measured, met) in enumerate(told, 1)
    ]


Row = tuple[str, str, str, bool]


def _load(account: Account) -> Row:
    load, wanted = account.load, SHARE * account.peak
    rate = load.sent / load.seconds
    return (
        "load: UDP over IPv4 and IPv6, 60 % bound names, two workers",
        f"{SHARE:.0%} of the peak, from the start to the end",
        f"peak {account.peak:,.0f}/s, load {rate:,.0f}/s: {load.sent:,} queries; {load.skipped:,} more did not leave in time",
        rate >= SLACK * wanted,
    )


def _answers(account: Account) -> Row:
    verdict, load = account.verdict, account.load
    wrong = verdict.wrong + load.strays
    examples = "".join(f"\n      {one}" for one in verdict.examples)
    return (
        "every answer is checked while bindings change",
        f"0 wrong; for {WINDOW:g} s after a change the old answer is right too",
        f"{load.answered:,} answers, {verdict.wrong:,} wrong, {load.strays:,} strays; {verdict.judged:,} to names that change "
        f"({len(account.history):,} changes), the old answer at most {verdict.behind:.2f} s longer{examples}",
        wrong == 0,
    )


def _lost(account: Account) -> Row:
    verdict, load, kills = account.verdict, account.load, account.disturbances.kills
    share = KILLED * load.sent / load.seconds / WORKERS
    worst = max((kill.held + kill.beside for kill in kills), default=0)
    dropped = account.recorder.total("canal_dns_udp_receive_dropped_total")
    at = "; ".join(f"{count} at {tenth / 10:.1f} s" for tenth, count in verdict.lost_at.most_common(5))
    held, beside = sum(kill.held for kill in kills), sum(kill.beside for kill in kills)
    return (
        "lost queries",
        "<= 0.01 %; with a killed worker no more than its share of 0.5 s",
        f"{verdict.lost:,} = {verdict.lost / load.sent:.4%}{f' ({at})' if at else ''}; with {len(kills)} killed workers "
        f"{held:,} that they held and {beside:,} until there was a new one, {worst:,} of {share:,.0f} with one at most; "
        f"{load.late:,} of all these answered too late; dropped by the kernel, a buffer being full: {dropped:,.0f}",
        verdict.lost <= LOST * load.sent and worst <= share,
    )


def _failed(account: Account) -> Row:
    verdict = account.verdict
    return (
        "one of two upstreams is down every other 2 s, closed or silent",
        "no SERVFAIL",
        f"{verdict.failed:,} SERVFAIL, {account.disturbances.flaps} times down; the upstreams themselves had no time for "
        f"{account.disturbances.stall:.2f} s at most" + "".join(f"\n      {one}" for one in verdict.failures),
        verdict.failed == 0,
    )


def _flat(account: Account) -> Iterator[Row]:
    (before, after), (control_before, control_after) = map(account.recorder.growth, ("memory", "control"))
    yield (
        "memory",
        "flat after the warm-up: +5 % at most",
        f"all processes {before / 2**20:.1f} -> {after / 2**20:.1f} MiB ({after / before - 1:+.1%}), the control process "
        f"{control_before / 2**20:.1f} -> {control_after / 2**20:.1f} MiB ({control_after / control_before - 1:+.1%})",
        after <= (1 + GROWTH) * before and control_after <= (1 + GROWTH) * control_before,
    )
    recorder = account.recorder
    most = max((one.descriptors for one in recorder.samples), default=0)
    yield (
        "open files",
        f"when the load is over as many as before, {DESCRIPTORS} more at most",
        f"{recorder.idle} -> {recorder.idle_again}; under load {most:,} at most",
        recorder.idle_again <= recorder.idle + DESCRIPTORS,
    )


def _sums(account: Account) -> Row:
    """Whatever was asked is in one of these counts: lost before it was read, dropped, lost with a worker, or answered."""
    count, loads = account.recorder.total, (*account.peaks, account.load)
    asked, answered = sum(one.sent for one in loads), sum(one.answered for one in loads)
    requests, responses, by_origin = map(
        count, ("canal_dns_requests_total", "canal_dns_responses_total", "canal_dns_answers_total")
    )
    dropped, durations = count("canal_dns_dropped_total"), count("canal_dns_request_duration_seconds_count")
    uncounted = BATCH * len(account.disturbances.kills)
    backwards = f"; went back: {', '.join(account.recorder.backwards[:3])}" if account.recorder.backwards else ""
    return (
        "counters, with those of killed workers",
        "they add up, and never go back",
        f"asked {asked:,}, received {requests:,.0f}, answered {responses:,.0f} by response code, {by_origin:,.0f} by origin, "
        f"{durations:,.0f} by duration, dropped {dropped:,.0f}; clients have {answered:,} answers{backwards}",
        by_origin == responses == durations
        and asked >= requests >= responses + dropped
        and abs(responses - answered) <= uncounted
        and not account.recorder.backwards,
    )


def _all(account: Account) -> Row:
    """What was done must have been noticed, and nothing else must have happened."""
    done, recorder = account.disturbances, account.recorder
    reloads = recorder.totals("canal_dns_config_reloads_total", "result")
    back = max((kill.whole - kill.sent for kill in done.kills), default=0.0)
    deaths = recorder.totals("canal_dns_worker_restarts_total", "cause")
    return (
        "what happened",
        "the server lives, its workers are back, and it noticed all of it",
        f"{len(done.kills)} workers killed (restarts: {_said(deaths)}; a new one after {back:.2f} s at most), "
        f"API server restarted {done.restarts} times, configuration {done.good} times good and {done.bad} times bad "
        f"(reloads: {_said(reloads)}), scraped {recorder.scrapes} times, "
        f"{recorder.slowest * 1e3:.0f} ms at most{' / '.join(account.ended)}",
        not account.ended and done.noticed(),
    )


def _said(totals: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.0f}" for name, value in totals.items()) or "none"
