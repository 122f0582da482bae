"""The CUDA bindings of torch._C, put there before torch.cuda is imported: a CPU build of torch has none, and all of
torch.cuda's Python is built upon them."""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import itertools
import sys
import time
import types
from pathlib import Path
from typing import Any

from . import driver

_handles = itertools.count(0x5000_0000, 16)
library: Any = None


def install(path: Path) -> None:
    """Wait for torch._C, and add to it."""
    if "torch" in sys.modules:
        raise RuntimeError("fakecuda.install() comes before the first import of torch")
    sys.meta_path.insert(0, _Finder(path))


class _Finder:
    def __init__(self, path: Path):
        self.path = path

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name == "triton":
            sys.meta_path.remove(self)
            import triton

            if hasattr(triton.knobs.runtime.kernel_load_start_hook, "add"):
                triton.knobs.runtime.kernel_load_start_hook.add(_before_load)
            else:  # Triton 3.5
                triton.knobs.runtime.kernel_load_start_hook = _before_load
            return triton.__spec__
        if name != "torch._C":
            return None
        spec: Any = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            _extend(module, self.path)

        spec.loader.exec_module = exec_module
        return spec


def _before_load(module: Any, function: Any, name: str, metadata_group: Any, hash: str) -> None:
    driver.know(metadata_group)


_INT, _LONG, _POINTER, _TEXT = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "fakecuda_stream": (_LONG, _INT),
    "fakecuda_set_stream": (None, _INT, _LONG),
    "fakecuda_allocated": (_LONG, _INT),
    "fakecuda_peak": (_LONG, _INT, _INT),
    "fakecuda_synchronize": (None,),
    "fakecuda_synchronize_stream": (None, _LONG, _INT),
    "fakecuda_event": (_POINTER,),
    "fakecuda_event_delete": (None, _POINTER),
    "fakecuda_event_record": (None, _POINTER, _LONG, _INT),
    "fakecuda_event_block": (None, _POINTER, _LONG, _INT),
    "fakecuda_event_synchronize": (None, _POINTER),
    "fakecuda_event_query": (None, _POINTER, _INT),
    "fakecuda_counts": (ctypes.POINTER(_LONG),),
    "fakecuda_use": (_TEXT, ctypes.c_uint64, ctypes.c_uint64, _LONG, _INT, _INT, _TEXT),
    "fakecuda_arrives_late": (None, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64),
    "fakecuda_problems": (_TEXT,),
    "fakecuda_replay": (_INT, _INT, _TEXT, _INT),
}


class Properties:
    """torch.cuda.get_device_properties of an H100."""

    def __init__(self, **values: Any):
        self.__dict__.update(values)


def _extend(C: Any, path: Path) -> None:
    global library
    library = driver.torch_library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    for name, (result, *parameters) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, parameters
    cuda = driver.library
    count = cuda.fakecuda_devices

    def set_device(device: int) -> None:
        if not 0 <= device < count():
            raise RuntimeError("CUDA error: invalid device ordinal")
        cuda.fakecuda_set_device(device)

    def exchange(device: int) -> int:
        if device < 0:
            return -1
        before = cuda.fakecuda_device()
        set_device(device)
        return before

    def init() -> None:
        torch: Any = importlib.import_module("torch")
        torch.cuda.default_generators = tuple(torch._C.Generator() for _ in range(count()))
        torch.cuda._get_device_properties = properties

    def properties(device: int) -> Any:
        return Properties(
            name="NVIDIA H100 80GB HBM3 (fake)",
            major=9,
            minor=0,
            total_memory=80 << 30,
            multi_processor_count=driver.SMS,
            max_threads_per_multi_processor=2048,
            max_threads_per_block=1024,
            regs_per_multiprocessor=65536,
            warp_size=32,
            L2_cache_size=50 << 20,
            shared_memory_per_block=49152,
            shared_memory_per_block_optin=232448,
            shared_memory_per_multiprocessor=233472,
            is_integrated=0,
            is_multi_gpu_board=0,
            gcnArchName="",
            uuid="fake",
        )

    def synchronize(*_: Any) -> None:
        if library.fakecuda_capturing():
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        library.fakecuda_synchronize()

    class Stream(C.Stream):
        """torch._C._CudaStreamBase."""

        def __new__(cls, priority=0, stream_id=None, device_index=None, device_type=1, stream_ptr=0, **_):
            if stream_id is None:
                stream_id, device_index = next(_handles), cuda.fakecuda_device()
            if stream_id:
                driver.streams[stream_id] = device_index
            self = super().__new__(cls, stream_id=stream_id, device_index=device_index, device_type=1)
            self.cuda_stream, self.priority = stream_id, priority
            return self

        def __init__(self, *args, **kwargs):
            pass

        def synchronize(self):
            library.fakecuda_synchronize_stream(self.stream_id, self.device_index)

        def query(self):
            return True

    class Event:
        """torch._C._CudaEventBase: passed at the second query, or once something has synchronised."""

        def __new__(cls, enable_timing=False, blocking=False, interprocess=False, external=False):
            self = super().__new__(cls)
            self.handle, self.recorded, self.queries, self.time, self.cuda_event = (
                library.fakecuda_event(),
                False,
                0,
                None,
                0,
            )
            return self

        def __init__(self, *args, **kwargs):
            pass

        def __del__(self):
            library.fakecuda_event_delete(self.handle)

        def record(self, stream):
            library.fakecuda_event_record(self.handle, stream.stream_id, stream.device_index)
            self.recorded, self.queries, self.time = True, 0, time.perf_counter()

        def wait(self, stream):
            library.fakecuda_event_block(self.handle, stream.stream_id, stream.device_index)

        def query(self):
            if library.fakecuda_capturing():  # cudaEventQuery is not permitted in a global capture
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
            self.queries += 1
            passed = not self.recorded or self.queries > 1
            library.fakecuda_event_query(self.handle, passed)
            return passed

        def synchronize(self):
            library.fakecuda_event_synchronize(self.handle)

        def elapsed_time(self, end):
            return (end.time - self.time) * 1e3

    class Graph:
        """torch._C._CUDAGraph."""

        def __new__(cls, keep_graph=False):
            self = super().__new__(cls)
            self.number = None
            return self

        def __init__(self, *args, **kwargs):
            pass

        def capture_begin(self, pool=None, capture_error_mode="global"):
            if library.fakecuda_stream(cuda.fakecuda_device()) == 0:
                raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
            self.number = library.fakecuda_capture_begin()

        def capture_end(self):
            library.fakecuda_capture_end()

        def replay(self):
            driver.replay_errors.clear()
            error = ctypes.create_string_buffer(8192)
            self.nodes = library.fakecuda_replay(self.number, error, len(error))
            if driver.replay_errors:
                raise driver.replay_errors[0]
            if error.value:
                raise RuntimeError(error.value.decode())

        def reset(self):
            if self.number is not None:
                library.fakecuda_forget(self.number)
            self.number = None

        def pool(self):
            return (0, 1)

        def __del__(self):
            self.reset()

    def stream_data(device: int) -> tuple[int, int, int]:
        return library.fakecuda_stream(device), device, 1

    def set_stream(stream_id: int, device_index: int, device_type: int) -> None:
        set_device(device_index)
        library.fakecuda_set_stream(device_index, stream_id)

    def memory_stats(device: int) -> dict[str, Any]:
        now, peak = library.fakecuda_allocated(device), library.fakecuda_peak(device, 0)
        bytes_ = {"current": now, "peak": peak, "allocated": 0, "freed": 0}
        return {"allocated_bytes": {"all": bytes_}}

    C._has_cuda = True
    C._CudaStreamBase, C._CudaEventBase, C._CUDAGraph = Stream, Event, Graph
    C._CudaDeviceProperties = Properties
    C._cudart = types.ModuleType("torch._C._cudart")
    C._cudart.cudaError = type("cudaError", (), {"success": 0})
    C._graph_pool_handle = lambda: (0, 1)
    C._cuda_isCurrentStreamCapturing = lambda: bool(library.fakecuda_capturing())
    C._cuda_init, C._cuda_getDeviceCount, C._cuda_isInBadFork = init, lambda: count(), lambda: False
    # Asked several times in a call: without letting others run meanwhile, as a CUDA build asks.
    C._cuda_getDevice, C._cuda_setDevice = ctypes.PyDLL(cuda._name).fakecuda_device, set_device
    C._cuda_exchangeDevice, C._cuda_maybeExchangeDevice = exchange, lambda device: exchange(device)
    C._cuda_getCurrentRawStream = ctypes.PyDLL(library._name).fakecuda_stream
    C._cuda_getCurrentRawStream.argtypes, C._cuda_getCurrentRawStream.restype = [ctypes.c_int], ctypes.c_int64
    for function in (C._cuda_getDevice, C._cuda_getCurrentRawStream):  # torch's compiler has them in a dict
        type(function).__hash__ = object.__hash__  # type: ignore[assignment]
    C._cuda_getCurrentStream = stream_data
    C._cuda_getDefaultStream = lambda device: (0, device, 1)
    C._cuda_setStream = set_stream
    C._cuda_synchronize = synchronize
    C._cuda_emptyCache, C._host_emptyCache = lambda: None, lambda: None
    C._cuda_getArchFlags = lambda: "sm_90"
    C._cuda_memoryStats = memory_stats
    C._cuda_resetPeakMemoryStats = lambda device: library.fakecuda_peak(device, 1)
    C._cuda_getCompiledVersion = lambda: 13000
    C._cuda_get_sync_debug_mode = lambda: 0
