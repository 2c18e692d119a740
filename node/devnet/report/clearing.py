"""What rounds of a clearing house came to, in lines that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from node.devnet.report.document import Report
from node.devnet.report.markup import Html, escaped, number, table, text, word
from node.devnet.report.words import counted, legible


def clearing_lines(report: Report) -> list[str]:
    """Return what each market that clears by rounds came to; nothing for other markets."""
    return [line for market in report.get("clearing", ()) for line in _market(market)]


def clearing_fault(report: Report) -> str:
    """Return what is wrong with the rounds of a run, or nothing."""
    for market in report.get("clearing", ()):
        if not market["ledger"]["balances"] or any(int(one["sum"]) for one in market["rounds"]):
            return "the pots of the clearing house do not balance"
        if any(one["right"] is False for one in market["rounds"]):
            return "a root of the clearing house is not what follows from its inputs"
        if any(one.get("certified") is False for one in (*market["rounds"], *market["off"])):
            return "a certificate of the clearing house is not confirmed"
    return ""


def nobody_paid(report: Report) -> bool:
    """Whether rounds were opened, and all of them in vain."""
    rounds = [one for market in report.get("clearing", ()) for one in market["rounds"]]
    return bool(rounds) and not any(int(one["paid_in"]) for one in rounds)


def rounds_table(report: Report) -> Html:
    """Return every party of every round, with what it paid and got, in wei."""
    cells = [
        [
            word(f"{market['arm']}, seed {market['seed']}"),
            number(one["round"]),
            word(party["agent"]),
            escaped(", ".join(party["roles"]), 80),
            *map(number, (_alone(party), party["due"], party["paid"], party["got"], party["net"])),
            word(party["ended"] or "away"),
        ]
        for market in report.get("clearing", ())
        for one in market["rounds"]
        for party in one["parties"]
    ]
    if not cells:
        return text("p", "No round was opened.")
    headings = ["market", "round", "agent", "as", "alone", "due", "paid", "got", "net", "ended"]
    return table(
        "Every party of every round, in wei; alone: its own model's accuracy when it came",
        headings,
        cells,
        numeric="-n--nnnnn-",
    )


def _market(market: Mapping[str, Any]) -> Iterator[str]:
    yield f"{legible(market['arm'], 24)}, seed {market['seed']}: rounds of a clearing house, in wei"
    for one in market["rounds"]:
        yield from _round(one)
    for off in market["off"]:
        gains = off["figures"].get("loop_gain")
        told = f"; loop gains {', '.join(f'{gain:.3g}' for gain in gains)}" if gains else ""
        yield f"  not opened, {legible(str(off['reason']), 80)}{told}: no money moved"
    for out in market["stayed_out"]:
        yield (
            f"  {legible(out['agent'], 24)} took no part in its round {out['round']}: "
            f"{legible(str(out['reason']), 80)}"
        )
    for bad in market["disputed"]:
        yield (
            f"  {legible(bad['agent'], 24)} says that a root of {legible(bad['broker'], 44)} is "
            f"wrong ({bad['seconds_left']} s before it stood): {legible(str(bad['reason']), 80)}"
        )
    book = market["ledger"]
    yield (
        f"  {'✓' if book['balances'] else '✗'} paid in {book['paid_in']} = claimed "
        f"{book['claimed']} + taken back {book['reclaimed']} + held {book['held']}; stuck "
        f"{book['stuck']}, not drawn {book['credited']}"
    )


def _round(one: Mapping[str, Any]) -> Iterator[str]:
    sold = counted(len(one["models"]), "model") + " sold"
    why = f", {legible(one['reason'], 80)}" if one["reason"] else ""
    checks = {True: "certified", False: "NOT CERTIFIED", None: "no certificate"}[one["certified"]]
    leaves = {True: "computed again", False: "OTHERS THAN COMPUTED", None: "none"}[one["right"]]
    hurt = one["figures"].get("hurt") or []
    yield (
        f"  round {one['round']} {legible(one['state'], 16)}{why}: {sold}, {checks}, leaves "
        f"{leaves}; in {one['paid_in']}, out {one['paid_out']}, broker {one['broker_got']}, "
        f"Σ {one['sum']}" + (f"; pooling hurts {_hurt(hurt, one['parties'])}" if _any(hurt) else "")
    )
    for party in one["parties"]:
        roles = legible(", ".join(party["roles"]), 80)
        yield (
            f"    {legible(party['agent'], 24)} ({roles}) alone {_alone(party)}: due "
            f"{party['due']}, paid {party['paid']}, got {party['got']}, net {party['net']} "
            f"({legible(party['ended'], 16) or 'away'})"
        )


def _alone(party: Mapping[str, Any]) -> str:
    return "–" if party["alone"] is None else f"{100 * party['alone']:.1f} %"


def _any(hurt: Any) -> bool:
    return any(bool(each) or each == 0 for each in hurt) and hurt != [[]] * len(hurt)


def _hurt(hurt: list[Any], parties: list[Mapping[str, Any]]) -> str:
    """Name who is hurt: parties, or by model the sellers that lower it."""
    if all(isinstance(each, list) for each in hurt):
        named = [
            f"model {model} by {', '.join(legible(parties[i]['agent'], 24) for i in sellers)}"
            for model, sellers in enumerate(hurt)
            if sellers
        ]
        return "; ".join(named)
    return ", ".join(legible(parties[i]["agent"], 24) for i in hurt)
