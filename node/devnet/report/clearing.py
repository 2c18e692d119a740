"""What rounds of a clearing house came to, in lines that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from node.devnet.report.document import Report
from node.devnet.report.words import counted, legible


def clearing_lines(report: Report) -> list[str]:
    """Return what each market that clears by rounds came to; nothing for other markets."""
    return [line for market in report.get("clearing", ()) for line in _market(market)]


def pots_balance(report: Report) -> bool:
    """Whether every pot of the run came out again, to the wei."""
    return all(market["ledger"]["balances"] for market in report.get("clearing", ()))


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
            f"  {legible(bad['agent'], 24)} says that a root is wrong ({bad['seconds_left']} s "
            f"before it stood): {legible(str(bad['reason']), 80)}"
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
        f"{leaves}; in {one['paid_in']}, out {one['paid_out']}, broker {one['broker_got']}"
        + (f"; pooling hurts {_hurt(hurt, one['parties'])}" if _any(hurt) else "")
    )
    for party in one["parties"]:
        alone = "–" if party["alone"] is None else f"{100 * party['alone']:.1f} %"
        yield (
            f"    {legible(party['agent'], 24)} alone {alone}: due {party['due']}, paid "
            f"{party['paid']}, got {party['got']}, net {party['net']} ({party['ended'] or 'away'})"
        )


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
