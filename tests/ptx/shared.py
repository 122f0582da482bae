"""Shared memory of a program of the emulated device, with the checks of a memory and race checker."""

from __future__ import annotations

import numpy as np

from .memory import SHARED_BASE, UINT, Fault

_MANY = 63  # in place of a warp number: several warps
_ATOMIC = 62  # in place of a warp number: written by atomics


class SharedMemory:
    """Shared memory of one program.

    The state is kept for granules of 1, 2 or 4 bytes (the smallest access in the code). A tag is epoch * 64 + warp; the
    epoch counts barriers of the whole program, so a tag of this epoch by another warp is unordered with this access.

      written   tag of the last write, -1 before the first
      read      tag of the last read; warp 63 when several warps read in that epoch
      flight    1 + warp whose cp.async will write the granule, 0 when none is under way
      busy      number of wgmma under way that read the granule
      unfenced  1 + warp that wrote through the generic proxy and has not executed fence.proxy.async since
    """

    def __init__(self, nbytes: int, granule: int, checks: bool, races: bool, wgmma: bool):
        size = max((nbytes + 15) // 16 * 16, 16)
        self.size, self.granule, self.checks, self.races, self.wgmma = size, granule, checks, races and checks, wgmma
        self.data = np.zeros(size, np.uint8)
        self.epoch = 0
        self.in_flight = 0
        self.views: dict = {}
        if checks:
            n = size // granule
            self.written = np.full(n, -1, np.int32)
            self.read = np.full(n, -1, np.int32)
            self.flight = np.zeros(n, np.int32)
            self.busy = np.zeros(n, np.int32)
            self.unfenced = np.zeros(n, np.int32)
        self.any_busy = 0

    def view(self, item: int, count: int) -> np.ndarray:
        key = (item, count)
        v = self.views.get(key)
        if v is None:
            v = self.data.view(UINT[item])
            v = self.views[key] = v.reshape(-1, count) if count > 1 else v
        return v

    def _state(self, name: str, width: int):
        key = (name, width)
        v = self.views.get(key)
        if v is None:
            v = self.views[key] = getattr(self, name).reshape(-1, max(width // self.granule, 1))
        return v

    def index(self, address: np.ndarray, width: int) -> np.ndarray:
        """Index of each `width`-byte unit at `address` (uint32 array), checked for alignment and range."""
        offset = address.astype(np.int64) - SHARED_BASE
        if width > 1:
            low = offset & (width - 1)
            if np.count_nonzero(low):
                i = int(np.flatnonzero(low)[0])
                raise Fault(f"misaligned shared access: {width} bytes at shared address {int(offset[i])}", i)
        idx = offset // width if width > 1 else offset
        bad = idx.view(np.uint64) >= np.uint64(self.size // width)
        if np.count_nonzero(bad):
            i = int(np.flatnonzero(bad)[0])
            raise Fault(
                f"shared access out of range: {width} bytes at shared address {int(offset[i])} of {self.size} bytes", i
            )
        return idx

    # -- checks; idx: (k,) units of `width` bytes, warp: (k,) int32 --------------------------------------------------

    def _fault(self, mask, text: str, idx, width):
        i = int(np.flatnonzero(mask.any(1))[0])
        return Fault(f"{text}: {width} bytes at shared address {int(idx[i]) * width}", i)

    def _who(self, tags, mask) -> str:
        w = int(tags[mask][0]) & 63
        return "several warps" if w == _MANY else "an atomic" if w == _ATOMIC else f"warp {w}"

    def check_read(self, idx: np.ndarray, width: int, warp: np.ndarray, atomic: bool = False) -> None:
        """Before a read."""
        if not self.checks:
            return
        tags = self._state("written", width).take(idx, axis=0)
        mine = (warp + (self.epoch << 6))[:, None]
        fresh = self.epoch << 6
        if self.in_flight:
            flight = self._state("flight", width).take(idx, axis=0)
            if np.count_nonzero(flight):
                raise self._fault(
                    flight != 0,
                    f"read of shared memory that a cp.async of warp {int(flight.max()) - 1} still writes "
                    "(no cp.async.wait_group yet)",
                    idx,
                    width,
                )
        if np.count_nonzero(tags.view(np.uint32) >= fresh):  # never written, or written in this epoch
            if np.count_nonzero(tags < 0):
                raise self._fault(tags < 0, "read of shared memory that was never written", idx, width)
            if self.races:
                bad = (tags >= fresh) & (tags != mine)
                if atomic:
                    bad &= (tags & 63) != _ATOMIC
                if np.count_nonzero(bad):
                    raise self._fault(
                        bad,
                        f"shared memory race: read of bytes that {self._who(tags, bad)} wrote with no barrier "
                        "in between",
                        idx,
                        width,
                    )
        if self.races and not atomic:
            self._mark_read(idx, width, mine, fresh)

    def _mark_read(self, idx, width, mine, fresh):
        state = self._state("read", width)
        many = fresh + _MANY
        old = state.take(idx, axis=0)
        keep = (old == mine) | (old == many)
        if np.count_nonzero(keep) == keep.size:
            return
        new = np.where(keep, old, np.where(old >= fresh, many, mine))
        state[idx] = new
        differs = state.take(idx, axis=0) != new  # two warps in one instruction
        if np.count_nonzero(differs):
            rows = differs.any(1)
            state[idx[rows]] = np.where(differs[rows], many, new[rows])

    def check_write(
        self,
        idx: np.ndarray,
        width: int,
        warp: np.ndarray,
        values: np.ndarray | None,
        atomic: bool = False,
        asynchronous: bool = False,
    ) -> None:
        """Before a write of `values` ((k, bytes) uint8, or None when not known yet)."""
        if not self.checks:
            return
        if self.in_flight:
            flight = self._state("flight", width).take(idx, axis=0)
            if np.count_nonzero(flight):
                raise self._fault(
                    flight != 0,
                    f"write to shared memory that a cp.async of warp {int(flight.max()) - 1} still writes",
                    idx,
                    width,
                )
        if self.any_busy:
            busy = self._state("busy", width).take(idx, axis=0)
            if np.count_nonzero(busy):
                raise self._fault(
                    busy != 0, "write to shared memory that a wgmma still reads (no wgmma.wait_group yet)", idx, width
                )
        state = self._state("written", width)
        who = np.full_like(warp, _ATOMIC) if atomic else warp
        mine = (who + (self.epoch << 6))[:, None]
        if self.races:
            fresh = self.epoch << 6
            readers = self._state("read", width).take(idx, axis=0)
            bad = (readers >= fresh) & (readers != (warp + fresh)[:, None])
            if np.count_nonzero(bad):
                raise self._fault(
                    bad,
                    f"shared memory race: write to bytes that {self._who(readers, bad)} read with no barrier in "
                    "between",
                    idx,
                    width,
                )
            writers = state.take(idx, axis=0)
            bad = (writers >= fresh) & (writers != mine)
            if np.count_nonzero(bad) and not self._same(bad, idx, width, values):
                raise self._fault(
                    bad,
                    f"shared memory race: write to bytes that {self._who(writers, bad)} wrote with no barrier in "
                    "between",
                    idx,
                    width,
                )
        if asynchronous:
            self._state("flight", width)[idx] = warp[:, None] + 1
            return
        state[idx] = mine
        if self.races and values is not None and np.count_nonzero(state.take(idx, axis=0) != mine):
            self._same_instruction(idx, width, warp, values)
        if self.wgmma:
            self._state("unfenced", width)[idx] = warp[:, None] + 1

    def _same(self, bad, idx, width, values) -> bool:
        """Whether conflicting writes store what is there already (harmless)."""
        if values is None:
            return False
        rows = bad.any(1)
        return bool((self.view(1, width)[idx[rows]].reshape(-1, width) == values[rows]).all())

    def _same_instruction(self, idx, width, warp, values):
        order = np.argsort(idx, kind="stable")
        same = idx[order][1:] == idx[order][:-1]
        differ = same & (warp[order][1:] != warp[order][:-1]) & (values[order][1:] != values[order][:-1]).any(1)
        if differ.any():
            i = int(order[np.flatnonzero(differ)[0] + 1])
            raise Fault(
                f"shared memory race: two warps write different values to {width} bytes at shared address "
                f"{int(idx[i]) * width} in one instruction",
                i,
            )

    def land(self, idx: np.ndarray, width: int, warp: np.ndarray) -> None:
        """A cp.async has completed for its own warp."""
        if self.checks:
            self._state("flight", width)[idx] = 0
            self._state("written", width)[idx] = (warp + (self.epoch << 6))[:, None]
            if self.wgmma:
                self._state("unfenced", width)[idx] = 0  # what fills buffers for wgmma in practice needs no proxy fence

    def fence(self, warps: np.ndarray) -> None:
        """fence.proxy.async by these warps."""
        if self.checks and self.wgmma:
            ordered = self.written < self.epoch << 6  # by a barrier before this fence
            self.unfenced[ordered | np.isin(self.unfenced, warps + 1)] = 0

    def start_wgmma(self, chunks: np.ndarray) -> np.ndarray | None:
        """A wgmma starts to read these 16-byte units; returns what `end_wgmma` needs."""
        if not self.checks:
            return None
        chunks = np.unique(chunks)
        width = 16
        tags = self._state("written", width).take(chunks, axis=0)
        if np.count_nonzero(tags < 0):
            raise self._fault(tags < 0, "wgmma reads shared memory that was never written", chunks, width)
        flight = self._state("flight", width).take(chunks, axis=0)
        if np.count_nonzero(flight):
            raise self._fault(flight != 0, "wgmma reads shared memory that a cp.async still writes", chunks, width)
        if self.races:
            # every warp of the group reads through the asynchronous proxy: even a warp's own writes are unordered
            fresh = self.epoch << 6
            if np.count_nonzero(tags >= fresh):
                raise self._fault(
                    tags >= fresh,
                    "shared memory race: wgmma reads bytes written with no barrier in between",
                    chunks,
                    width,
                )
            unfenced = self._state("unfenced", width).take(chunks, axis=0)
            if np.count_nonzero(unfenced):
                raise self._fault(
                    unfenced != 0,
                    f"wgmma reads bytes that warp {int(unfenced.max()) - 1} stored without "
                    "fence.proxy.async afterwards",
                    chunks,
                    width,
                )
        self._state("busy", width)[chunks] += 1
        self.any_busy += 1
        return chunks

    def end_wgmma(self, chunks: np.ndarray | None) -> None:
        """A wgmma has ended: the argument is what `start_wgmma` returned."""
        if chunks is None:
            return
        self._state("busy", 16)[chunks] -= 1
        self.any_busy -= 1
        if self.races:
            self._state("read", 16)[chunks] = (self.epoch << 6) + _MANY
