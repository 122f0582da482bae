"""Branches, barriers, returns, traps. machine.py carries them out; here they are only decoded."""

from __future__ import annotations

from collections.abc import Callable

from .isa_warp import warp_barrier
from .parse import Imm, Instruction
from .program import Op, Program, decoder


def _condition(ins: Instruction, p: Program) -> Callable | None:
    return p.predicate(ins.guard) if ins.guard else None


@decoder("bra")
def _bra(ins: Instruction, p: Program) -> Op:
    return Op(None, control="bra", data=(_condition(ins, p), p.module.labels[ins.operands[0].name]))


@decoder("ret", "exit")
def _ret(ins: Instruction, p: Program) -> Op:
    return Op(None, control="ret", data=_condition(ins, p))


@decoder("trap", "brkpt")
def _trap(ins: Instruction, p: Program) -> Op:
    return Op(None, control="trap", data=_condition(ins, p))


@decoder("bar", "barrier")
def _bar(ins: Instruction, p: Program) -> Op:
    parts = [x for x in ins.parts[1:] if x not in ("cta", "aligned")]
    if parts[0] == "warp":
        return warp_barrier(ins, p)
    if parts not in (["sync"], ["arrive"]) or ins.guard:
        raise NotImplementedError("barrier form")
    number = ins.operands[0]
    count = ins.operands[1].value if len(ins.operands) > 1 else None
    ident = number.value if isinstance(number, Imm) else p.src(number, "u32")
    # bar is the aligned form: whole warps; so is barrier.sync.aligned
    aligned = ins.parts[0] == "bar" or "aligned" in ins.parts
    return Op(
        None, sync=32 if aligned else 1, control="bar", data=(ident, isinstance(number, Imm), count, parts[0] == "sync")
    )
