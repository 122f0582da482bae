"""Global memory of the emulated device, with the checks of a memory and race checker; shared memory: see shared.py.

All addresses come as integer arrays, one entry a lane; all checks are vectorised and raise Fault with the first bad
lane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .late import LateStores
    from .machine import Cta

GLOBAL_BASE = 0x7F40_0000_0000
SHARED_BASE = 0x400  # where dynamic shared memory starts on recent devices; keeps 1024-byte alignment for swizzles
_GAP = 4096  # bytes between tensors that belong to nobody
UINT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


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
        self.late: LateStores | None = None

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
            v = self.data.view(UINT[item])
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
        if release and self.late is not None:
            self.late.release(cta.number)
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
