"""The guards of Solidity sources, each broken behind a switch of its own.

`scripts/mutate_contracts.py` says what for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

COMMENT: Final = re.compile(r'//[^\n]*|/\*.*?\*/|("[^"\n]*")', re.DOTALL)
REVERT: Final = re.compile(r"\b(?:revert\s+(?:\w+\.)?(\w+)|require)\s*\(")
CHECK: Final = re.compile(r"(?<=[;{}\s()])(?:\w+\.)?(_?require[A-Z]\w*)\s*\(")
DECLARED: Final = re.compile(
    r"^\s*(?:abstract )?(?:contract|library|interface) (\w+)(?: is ([\w, ]+\w))?\s*\{", re.MULTILINE
)
FUNCTION: Final = re.compile(r"\b(?:function (\w+)|constructor)\s*\(")
CALL: Final = re.compile(r"(?:\b(\w+)\.)?\b(\w+)\(")
ANSWERS: Final = {"_requireQuorum": "new address[](0)"}
"""What a check answers that is left out, where its answer is used: nobody signed."""
COMPARISON: Final = re.compile(r"(?<![<>=!])(<=|>=|<|>)(?![<>=])")
OFF_BY_ONE: Final = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}


class Mutant(NamedTuple):
    """One guard, broken in one way."""

    switch: int
    source: str
    line: int
    kind: str
    text: str
    errors: frozenset[str]
    """What the guard reverts with."""

    @property
    def name(self) -> tuple[str, str, str]:
        """What it is called in `EXPLAINED`."""
        return (Path(self.source).stem, self.kind, self.text)


def blanked(source: str) -> str:
    """Return the source with spaces where its comments are: every place stays where it is."""
    return COMMENT.sub(lambda m: m[1] or re.sub(r"[^\n]", " ", m[0]), source)


def closing(text: str, start: int, brackets: str = "()") -> int:
    """Return the place behind the bracket that closes the one before `start`."""
    depth = 1
    while depth:
        depth += {brackets[0]: 1, brackets[1]: -1}.get(text[start], 0)
        start += 1
    return start


def split(text: str, operator: str) -> list[str]:
    """Return the operands of an operator of two characters, outside of all brackets."""
    parts, depth, begin = [], 0, 0
    for place, sign in enumerate(text):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth == 0 and text[place : place + 2] == operator:
            parts.append(text[begin:place])
            begin = place + 2
    return [*parts, text[begin:]]


def shown(text: str) -> str:
    """Return code in one line, as it is written in a table."""
    return re.sub(r"(?<=[(\[]) | (?=[)\]])", "", " ".join(text.split()))


class Weaver:
    """Puts switches into sources, and numbers them."""

    def __init__(self, errors: Callable[[str], frozenset[str]]) -> None:
        self.mutants: list[Mutant] = []
        self._errors = errors
        self._where = ("", 0)
        self._raised: frozenset[str] = frozenset()

    def weave(self, name: str, source: str) -> str:
        """Return the source with a switch for each of its mutants."""
        code = blanked(source)
        edits: list[tuple[int, int, str]] = []
        for match in [*REVERT.finditer(code), *CHECK.finditer(code)]:
            if re.search(r"\bfunction\s*$", code[: match.start()]):
                continue  # the check itself is declared here
            stands = code.count("\n", 0, match.start()) + 1
            self._where = (name, stands)
            raised, kind = frozenset({match[1] or ""}), "removed"
            if match.re is CHECK:
                raised, kind = self._errors(match[1]), "not called"
            self._raised = raised
            statement = code[match.start() : closing(code, match.end())]
            switch = self._new(kind, statement)
            if match.re is CHECK and code[: match.start()].rstrip()[-1] in "=(":
                end = match.start() + len(statement)
                edits.append((match.start(), match.start(), f"({switch} ? "))
                edits.append((end, end, f" : {ANSWERS[match[1]]})"))
            else:
                edits.append((match.start(), match.start(), f"if ({switch}) "))
            if match.re is REVERT and (condition := condition_before(code, match.start())):
                begin, end = condition
                self._where = (name, code.count("\n", 0, begin) + 1)
                edits.append((begin, end, self._condition(code[begin:end])))
        for begin, end, text in sorted(edits, reverse=True):
            code = code[:begin] + text + code[end:]
        return re.sub(r"\bpure\b", "view", code)  # for it reads the switches now

    def _new(self, kind: str, text: str) -> str:
        """Number a mutant, and return what is true as long as it is not on."""
        switch = len(self.mutants) + 1
        self.mutants.append(Mutant(switch, *self._where, kind, shown(text), self._raised))
        return f"block.prevrandao != {switch}"

    def _condition(self, text: str) -> str:
        """Return a condition with switches around its clauses and its comparisons."""
        for operator, fixed in (("||", "({off} && ({part}))"), ("&&", "(!({off}) || ({part}))")):
            parts = split(text, operator)
            if len(parts) > 1:
                return f" {operator} ".join(
                    fixed.format(off=self._new("clause", part), part=self._condition(part))
                    for part in parts
                )
        inner = text.strip()
        opening = re.match(r"!?\(", inner)
        if opening and closing(inner, opening.end()) == len(inner):
            return f"{opening[0]}{self._condition(inner[opening.end() : -1])})"
        found = list(COMPARISON.finditer(text))
        if len(found) != 1:
            return text
        begin, end = found[0].span()
        moved = text[:begin] + OFF_BY_ONE[found[0][1]] + text[end:]
        return f"({self._new('bound', moved)} ? {text} : {moved})"


def condition_before(code: str, place: int) -> tuple[int, int] | None:
    """Return where the condition of the `if` lies whose statement begins at `place`."""
    for match in re.finditer(r"\bif\s*\(", code[:place]):
        end = closing(code, match.end())
        if re.fullmatch(r"[\s{]*", code[end:place]) and end <= place:
            return match.end(), end - 1
    return None


class Functions:
    """The functions of Solidity sources, and what each raises, by itself or through others.

    `code` is blanked, and may be that of many files. A name is looked up in the contracts that
    make up one that is deployed, then anywhere.
    """

    def __init__(self, code: str) -> None:
        declared = [
            (match[1], match[2], match.end(), closing(code, match.end(), "{}"))
            for match in DECLARED.finditer(code)
        ]
        self._bases = {name: (of or "").split(", ") for name, of, _, _ in declared}
        self._bodies: dict[str, dict[str, str]] = {}
        for match in FUNCTION.finditer(code):
            begin = re.compile("[{;]").search(code, match.end())
            if begin is None or begin[0] == ";":
                continue  # one of an interface, or that another contract has to write
            owner = next((n for n, _, a, end in declared if a <= match.start() < end), "")
            of = self._bodies.setdefault(match[1] or "constructor", {})
            body = code[begin.end() : closing(code, begin.end(), "{}")]
            of[owner] = of.get(owner, "") + body

    def bases(self, contract: str) -> frozenset[str]:
        """Return of which contracts of these sources one is made, itself among them."""
        above = (self.bases(name) for name in self._bases.get(contract, ()) if name in self._bases)
        return frozenset({contract}).union(*above)

    def raised(
        self, name: str, scope: frozenset[str] = frozenset(), apart: Collection[str] = ()
    ) -> tuple[frozenset[str], frozenset[str]]:
        """Return which errors a function raises, and which of `apart` it calls.

        What functions of these names raise is left out. `scope` has the contracts that make up the
        one that is called. Raises `KeyError` if there is no such function.
        """
        errors: set[str] = set()
        met: set[str] = set()
        seen: set[tuple[str, frozenset[str]]] = set()
        waiting = [(name, scope)]
        while waiting:
            here = waiting.pop()
            if here in seen:
                continue
            seen.add(here)
            for owner, body in self._found(*here).items():
                errors |= {match[1] or "" for match in REVERT.finditer(body)}
                called = [(q, n) for q, n in CALL.findall(body) if n in self._bodies]
                met |= {n for _, n in called if n in apart}
                below = here[1] if owner in here[1] else self.bases(owner)
                waiting += [
                    (n, frozenset({q}) if q in self._bases else below)
                    for q, n in called
                    if n not in apart
                ]
        return frozenset(errors), frozenset(met)

    def has(self, name: str, scope: frozenset[str]) -> bool:
        """Say whether one of the contracts writes a function of that name."""
        return not scope.isdisjoint(self._bodies.get(name, {}))

    def _found(self, name: str, scope: frozenset[str]) -> dict[str, str]:
        """Return the bodies of a function, by contract."""
        everywhere = self._bodies[name]
        return {owner: everywhere[owner] for owner in scope & everywhere.keys()} or everywhere


def errors_by_check(code: str) -> Callable[[str], frozenset[str]]:
    """Return what says which errors a function raises, by itself or through others."""
    functions = Functions(code)
    return cache(lambda name: functions.raised(name)[0])
