"""Global and shared memory of the emulated device, with the checks of a memory and race checker.

All addresses come as integer arrays, one entry a lane; all checks are vectorised and raise Fault with the first bad
lane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .machine import Cta

GLOBAL_BASE = 0x7F40_0000_0000
SHARED_BASE = 0x400  # where dynamic shared memory starts on recent devices; keeps 1024-byte alignment for swizzles
_GAP = 4096  # bytes between tensors that belong to nobody
_UINT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Fault(Exception):
    """What went wrong, and in which entry of the address array (an index into the active lanes), if known."""

    def __init__(self, message: str, index: int | None = None, lane: int | None = None):
        super().__init__(message)
        self.message, self.index, self.lane = message, index, lane

    def at_lane(self, lanes: np.ndarray) -> None:
        """The array's entries belong to these threads."""
        if self.lane is None and self.index is not None and self.index < len(lanes):
            self.lane = int(lanes[self.index])


class GlobalMemory:
    """Every tensor argument gets its own address range, with gaps around it; contents are copied in and out.

    Addresses keep a tensor's alignment up to 256 bytes."""

    def __init__(self, checks: bool = True, strong: bool = False):
        self.strong = strong  # see check_strong
        self.regions: list[tuple[str, int, int]] = []  # name, start offset, bytes
        self.sources: dict[str, np.ndarray] = {}  # of those that are tensors: the bytes in main memory
        self.size = _GAP
        self.checks = checks
        self.views: dict = {}
        self.data = np.zeros(0, np.uint8)
        self.valid: dict[int, np.ndarray] = {}  # see _valid
        self.tracking = self.observed = False

    def add(self, name: str, nbytes: int) -> int:
        """Reserve a range; returns its device address."""
        return self._place({name: nbytes}, nbytes, 0)[name]

    def add_tensors(self, sources: dict[str, np.ndarray]) -> dict[str, int]:
        """Reserve ranges for the tensors with these bytes; returns their device addresses. The bytes are copied in by
        `seal` and out by `copy_back`. Tensors that share bytes share them on the device, too: they get one range."""
        address = {name: self._place({name: 0}, 0, 0)[name] for name, raw in sources.items() if not raw.size}
        spans = sorted((raw.ctypes.data, raw.ctypes.data + raw.size, name) for name, raw in sources.items() if raw.size)
        joined: list[tuple[str, int]] = []  # of the range being put together: name, host address
        first = last = 0
        for start, stop, name in [*spans, (1 << 64, 1 << 64, "")]:
            if joined and start >= last:
                offsets = {n: a - first for n, a in joined}
                address |= self._place({n: sources[n].size for n in offsets}, last - first, first, offsets)
                joined = []
            if not joined:
                first = last = start
            joined.append((name, start))
            last = max(last, stop)
        self.sources = sources
        return address

    def _place(self, sizes: dict[str, int], nbytes: int, pointer: int, offsets: dict[str, int] | None = None) -> dict:
        start = (self.size + 255) // 256 * 256 + pointer % 256
        self.size = start + nbytes + _GAP
        at = {name: start + (offsets or {}).get(name, 0) for name in sizes}
        self.regions += [(name, at[name], size) for name, size in sizes.items()]
        return {name: GLOBAL_BASE + offset for name, offset in at.items()}

    def seal(self) -> None:
        """No range comes any more: fill the memory."""
        self.size = (self.size + 255) // 256 * 256
        self.data = np.zeros(self.size, np.uint8)
        valid = np.zeros(self.size, bool)
        for name, start, size in self.regions:
            if name in self.sources:
                self.data[start : start + size] = self.sources[name]
            valid[start : start + size] = True
        self.valid = {1: valid}

    def copy_back(self) -> None:
        """The tensors get what is on the device."""
        for name, start, size in self.regions:
            if name in self.sources:
                self.sources[name][:] = self.data[start : start + size]

    def view(self, item: int, count: int) -> np.ndarray:
        """The memory as (n,) items of `item` bytes, or (n, count)."""
        key = (item, count)
        if key not in self.views:
            v = self.data.view(_UINT[item])
            self.views[key] = v.reshape(-1, count) if count > 1 else v
        return self.views[key]

    def _valid(self, width: int) -> np.ndarray:
        """Whether all bytes of a unit belong to a range, for each unit of `width` bytes."""
        if width not in self.valid:
            half = self._valid(width // 2)
            self.valid[width] = half[0::2] & half[1::2]
        return self.valid[width]

    def index(self, address: np.ndarray, width: int) -> np.ndarray:
        """Index of each `width`-byte unit at `address` (uint64 array), checked."""
        offset = address - np.uint64(GLOBAL_BASE)
        if self.checks and width > 1:
            low = address & np.uint64(width - 1)
            if np.count_nonzero(low):
                i = int(np.flatnonzero(low)[0])
                raise Fault(f"misaligned global access: {width} bytes at 0x{int(address[i]):x}", i)
        idx = (offset // np.uint64(width)).view(np.int64)
        ok = self._valid(width).take(idx, mode="clip")
        if np.count_nonzero(ok) != ok.size:
            i = int(np.flatnonzero(~ok)[0])
            raise Fault(
                f"global access out of bounds: {width} bytes at 0x{int(address[i]):x}, " + self.where(int(address[i])),
                i,
            )
        if self.observed:
            self._state("reached", width)[idx] = True
        return idx

    def observe(self) -> None:
        """Remember which bytes are read and written, for `spans`. After `seal`."""
        self.observed = True
        self.reached, self.wrote = np.zeros(self.size, bool), np.zeros(self.size, bool)

    def spans(self) -> dict[str, list[tuple[int, int, bool]]]:
        """Of each tensor: first and last byte + 1 of what was read or written (False), and of what was written (True);
        of overlapping tensors, each. Empty where it was not touched."""
        found: dict[str, list[tuple[int, int, bool]]] = {}
        for name, start, size in self.regions:
            if name in self.sources:
                touched = ((self.reached, False), (self.wrote, True))
                places = [(np.flatnonzero(bytes_[start : start + size]), write) for bytes_, write in touched]
                found[name] = [(int(at[0]), int(at[-1]) + 1, write) for at, write in places if at.size]
        return found

    # -- bytes that go from one program to another -------------------------------------------------------------------

    def track(self, granule: int, programs: list[tuple[int, int, int]]) -> None:
        """Remember who wrote what during the launch, for granules of `granule` bytes; programs: their ids."""
        self.tracking, self.granule, self.programs = True, granule, programs
        self.owner = np.zeros(self.size // granule, np.int32)  # 1 + number of the program that wrote last
        self.stamp = np.zeros(self.size // granule, np.int64)  # when
        self.item = np.zeros(self.size // granule, np.int8)  # by a strong access of items of so many bytes; 0: weak
        self.clock = 0
        self.released = np.zeros(len(programs) + 1, np.int64)  # when each program last released its writes

    def _state(self, name: str, width: int):
        key = (name, width)
        if key not in self.views:
            granule = 1 if name in ("reached", "wrote") else self.granule
            self.views[key] = getattr(self, name).reshape(-1, max(width // granule, 1))
        return self.views[key]

    def note_write(self, idx: np.ndarray, width: int, number: int, item: int) -> None:
        """Program `number` writes these units, of items of `item` bytes, 0 where the access is weak."""
        if self.tracking:
            self.clock += 1
            if self.strong:
                self._state("item", width)[idx] = item
            self._state("owner", width)[idx] = number
            self._state("stamp", width)[idx] = self.clock
        if self.observed:
            self._state("wrote", width)[idx] = True

    def check_weak(self, idx: np.ndarray, width: int, cta: Cta) -> None:
        """A load that may be served from a stale cache line: it must not see another program's writes of this launch
        unless this program has acquired and that one has released since."""
        if not self.tracking:
            return
        owner = self._state("owner", width).take(idx, axis=0)
        other = (owner != 0) & (owner != cta.number)
        if not np.count_nonzero(other):
            return
        stamp = self._state("stamp", width).take(idx, axis=0)
        for bad, text in (
            (
                other & (stamp > cta.acquired),
                "this program has acquired nothing since (volatile, or an acquire before it?)",
            ),
            (other & (stamp > self.released[owner]), "that program has released nothing since"),
        ):
            if np.count_nonzero(bad):
                i = int(np.flatnonzero(bad.any(1))[0])
                writer = self.programs[int(owner[bad][0]) - 1]
                raise Fault(
                    f"plain load of bytes that program {writer} wrote during this launch, and {text}: "
                    f"{self.where(GLOBAL_BASE + int(idx[i]) * width)}",
                    i,
                )

    def check_strong(self, idx: np.ndarray, width: int, cta: Cta, item: int) -> None:
        """With `strong`, a strong load of items of `item` bytes: what another program wrote in this launch, and nothing
        orders before it, must have been written by strong accesses of such items. The memory model says nothing of a
        race with a weak access or one of another size."""
        if not (self.tracking and self.strong):
            return
        owner = self._state("owner", width).take(idx, axis=0)
        stamp = self._state("stamp", width).take(idx, axis=0)
        racing = (owner != 0) & (owner != cta.number) & ((stamp > cta.acquired) | (stamp > self.released[owner]))
        written = self._state("item", width).take(idx, axis=0)
        bad = racing & (written != item)
        if np.count_nonzero(bad):
            i = int(np.flatnonzero(bad.any(1))[0])
            writer, size = self.programs[int(owner[bad][0]) - 1], int(written[bad][0])
            how = f"by items of {size} bytes" if size else "by a weak store"
            raise Fault(
                f"race of a strong load of items of {item} bytes with program {writer}, which wrote {how}: "
                f"{self.where(GLOBAL_BASE + int(idx[i]) * width)}",
                i,
            )

    def order(self, cta: Cta, acquire: bool, release: bool) -> None:
        """A fence, or an atomic or access with these semantics."""
        if self.tracking:
            if acquire:
                cta.acquired = self.clock
            if release:
                self.released[cta.number] = self.clock

    def where(self, address: int) -> str:
        """The address in words."""
        offset = address - GLOBAL_BASE
        best = min(self.regions, key=lambda r: max(r[1] - offset, offset - (r[1] + r[2] - 1), 0), default=None)
        if best is None:
            return "no argument is a tensor"
        name, start, size = best
        if offset < start:
            return f"{start - offset} bytes before '{name}'"
        if offset >= start + size:
            return f"{offset - start - size} bytes past the end of '{name}' ({size} bytes)"
        return f"byte {offset - start} of '{name}' ({size} bytes)"

    def read_string(self, address: int) -> str:
        """A C string."""
        start = address - GLOBAL_BASE
        raw = self.data[start : start + 4096].tobytes()
        return raw.split(b"\0", 1)[0].decode("utf8", "replace")


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
            v = self.data.view(_UINT[item])
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
