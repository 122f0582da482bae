"""After any failure: nothing half-written, nothing kept alive, and the next call right."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from conftest import INTERPRETED
from failing import failing
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_sequence

import trigru
from trigru.kernels import launch
from trigru.kernels.watch import KernelTimeout
from trigru.planning import measured

pytestmark = pytest.mark.skipif(INTERPRETED, reason="about the host's code")

RESULTS = ("output_ptr", "h_n_ptr", "reserve_ptr", "begins_ptr")
RESULTS += ("d_gates_ptr", "d_an_ptr", "d_state_ptr", "d_begin_ptr")


def numbers(kernel, grid, args, constexprs, **options):
    """A starter for the host's code alone: what a kernel would write is filled with a number."""
    for name in RESULTS:
        if args.get(name) is not None:
            args[name].fill_(0.25)


WAYS = {
    "eager": {"schedule": "eager"},
    "eager, 16 bits": {"schedule": "eager", "dtype": torch.bfloat16, "variant": "cho"},
    "recomputed": {"schedule": "eager", "memory": "recompute", "variant": "chung"},
    "torch": {"schedule": "auto"},
    "options": {"schedule": "eager", "clip": 0.5, "zoneout": 0.3},
    "stepwise": {"schedule": "stepwise"},
    "walking": {"schedule": "walking", "variant": "cho"},
    "resident": {"schedule": "resident", "hidden_size": 17},
    "persistent": {"schedule": "persistent", "dtype": torch.bfloat16},
    "persistent, recomputed": {"schedule": "persistent", "dtype": torch.float16, "memory": "recompute"},
}


class Training:
    """A layer, and a training step of it."""

    def __init__(self, hidden_size=16, packed=False, **options):
        torch.manual_seed(0)
        dtype = options.get("dtype", torch.float32)
        self.layer = trigru.GRU(3, hidden_size, bidirectional=True, **options)
        self.x = torch.randn(4, 2, 3, dtype=dtype)
        if packed:
            self.x = pack_sequence([torch.randn(n, 3, dtype=dtype) for n in (4, 2)])
        self.alive: list[weakref.ref] = []

    def step(self) -> list[torch.Tensor]:
        """Results, and derivatives, which .grad holds too. What it makes is watched."""
        torch.default_generator.manual_seed(0)
        packed = not isinstance(self.x, torch.Tensor)
        leaf = (self.x.data if packed else self.x).clone().requires_grad_()
        self.alive.append(weakref.ref(leaf))
        output, h_n = self.layer(self.x._replace(data=leaf) if packed else leaf)
        rows = output.data if packed else output
        self.alive += [weakref.ref(rows), weakref.ref(h_n)]
        (rows.sum() + h_n.sum()).backward()
        assert leaf.grad is not None
        return [rows.detach(), h_n.detach(), leaf.grad, *(p.grad for p in self.layer.parameters())]

    def forget(self, number=None) -> None:
        """.grad as before any step, or all one number."""
        for parameter in self.layer.parameters():
            parameter.grad = None if number is None else torch.full_like(parameter, number)

    def untouched(self, number: float) -> bool:
        return all(bool((p.grad == number).all()) for p in self.layer.parameters())

    def left(self) -> int:
        """Of the tensors that steps made, those that are still there."""
        gc.collect()
        return sum(ref() is not None for ref in self.alive)


def same(got, want):
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("way", WAYS)
def test_every_operation_fails_once(way, error):
    """Memory runs out, or Ctrl-C comes, at each operation in turn, forward and backward."""
    with launch.using(numbers):
        training = Training(**WAYS[way])
        training.step()  # what is made once is there
        training.forget()
        with failing(None, error) as place:
            want = [x.clone() for x in training.step()]
        assert place.calls > (10 if way == "torch" else 40)  # torch's own GRU is called with few steps before
        assert torch.cuda.is_available() or all(x.isfinite().all() for x in want)
        failed = 0
        for at in range(place.calls):
            training.forget(7.0)
            try:
                with failing(at, error):
                    training.step()
            except error:
                failed += 1
                assert training.untouched(7.0), f"a gradient was written, and call {at} failed"
            if at % 16 == 0:
                training.forget()
                assert same(training.step(), want), f"another result after call {at} failed"
        assert failed > 0.9 * place.calls
        training.forget()
        assert same(training.step(), want)
    del place, want
    assert training.left() == 0


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("where", ["forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"])
def test_an_exception_in_a_module_hook(where, error, packed):
    training = Training(packed=packed, schedule="eager")
    want = [x.clone() for x in training.step()]
    training.forget()

    def hook(*arguments):
        raise error("in a hook")

    handle = getattr(training.layer, f"register_{where}")(hook)
    with pytest.raises(error, match="in a hook"):
        training.step()
    assert where == "full_backward_hook" or all(p.grad is None for p in training.layer.parameters())
    handle.remove()
    training.forget()
    assert same(training.step(), want)
    assert training.left() == 0


@pytest.mark.parametrize("at", ["pack", "unpack"])
def test_an_exception_where_tensors_are_saved_and_taken_back(at):
    training = Training(schedule="eager")
    want = [x.clone() for x in training.step()]
    training.forget()

    def fails(x):
        raise KeyboardInterrupt

    def passes(x):
        return x

    hooks = (fails, passes) if at == "pack" else (passes, fails)
    with torch.autograd.graph.saved_tensors_hooks(*hooks), pytest.raises(KeyboardInterrupt):
        training.step()
    assert all(p.grad is None for p in training.layer.parameters())
    assert same(training.step(), want)
    assert training.left() == 0


def expires(kernel, grid, args, constexprs, **options):
    numbers(kernel, grid, args, constexprs)
    args["host_ptr"].fill_(args["number"])


def dies(kernel, grid, args, constexprs, **options):
    raise RuntimeError("Triton Error [CUDA]: unspecified launch failure")


@pytest.mark.parametrize("passes", [0, 1], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("starter", "error"), [(expires, KernelTimeout), (dies, RuntimeError)], ids=["expires", "device died"]
)
@pytest.mark.parametrize("schedule", ["walking", "persistent"])
def test_a_kernel_that_expires_and_a_device_that_died(schedule, starter, error, passes):
    """In forward or backward; the next call is right, and nothing of the failed one is left."""
    launches = 0

    def once(*arguments, **options):
        nonlocal launches
        launches += 1
        (starter if launches == passes + 1 else numbers)(*arguments, **options)

    training = Training(schedule=schedule, dtype=torch.bfloat16)
    with launch.using(numbers):
        want = [x.clone() for x in training.step()]
    training.forget(7.0)
    with launch.using(once):
        with pytest.raises(error, match="gave up waiting" if starter is expires else "unspecified launch failure"):
            training.step()
        assert training.untouched(7.0)
        training.forget()
        assert same(training.step(), want)
    assert training.left() == 0


def test_a_table_on_disk_is_whole_or_as_it_was(tmp_path):
    """Writing fails at each operation in turn: what is there is the old table or the new one."""
    path, layer, x = tmp_path / "tuned.json", trigru.GRU(3, 4), torch.randn(20, 2, 3)
    trigru.tune(layer, x, out=path, seconds=0.001)
    entries = dict(measured.TABLE)
    whole = path.read_bytes()
    for at in (None, *range(1000)):
        with contextlib.suppress(OSError), failing(at, OSError, ("",)) as place:
            measured.store(path, dict(list(entries.items())[:1]))
        assert path.read_bytes() == whole, f"call {at}"
        if at is not None and at >= place.calls:
            break
    assert at > 30


def test_eight_threads():
    """Each its own inputs, all one layer, from the first call on."""
    layer, wrong = trigru.GRU(3, 8, num_layers=2, bidirectional=True), []
    inputs = [torch.randn(12 + i, 2, 3) for i in range(8)]

    def step(x):
        leaf = x.clone().requires_grad_()
        output, _ = layer(leaf)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), [leaf, *layer.parameters()])]

    found = [[] for _ in inputs]
    together = threading.Barrier(len(inputs))

    def work(i):
        try:
            together.wait()
            for _ in range(8):
                found[i].append(step(inputs[i]))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for x, runs in zip(inputs, found, strict=True):
        want = step(x)
        assert len(runs) == 8
        assert all(same(run, want) for run in runs)


def test_torch_func_in_some_threads_beside_plain_calls_in_others():
    """Transforms belong to a thread, but the level of forward mode to all: `jvp` in one turns it on in the others."""
    layer, x, wrong = trigru.GRU(3, 4), torch.randn(9, 2, 3), []
    many = torch.randn(3, 9, 2, 3)

    def plain():
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(layer(leaf)[0].sum(), [leaf])

    work = {
        "jvp": lambda: torch.func.jvp(lambda x: layer(x)[0], (x,), (x,)),
        "vmap": lambda: [torch.func.vmap(lambda x: layer(x)[0])(many)],
        "grad": lambda: [torch.func.grad(lambda x: layer(x)[0].sum())(x)],
        "plain": plain,
    }
    want = {name: run() for name, run in work.items()}
    with forward_ad.dual_level():  # as beside a jvp that takes long
        assert same(work["vmap"](), want["vmap"])
    over = threading.Event()

    def repeat(name):
        try:
            while not over.is_set():
                assert same(work[name](), want[name]), name
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=repeat, args=(name,)) for name in [*work, "vmap", "plain"]]
    for thread in threads:
        thread.start()
    threads[0].join(1.0)
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_tangent_goes_through_a_vmap():
    layer, x, t = trigru.GRU(3, 4), torch.randn(3, 9, 2, 3), torch.randn(3, 9, 2, 3)
    want = torch.stack([torch.func.jvp(lambda x: layer(x)[0], (a,), (b,))[1] for a, b in zip(x, t, strict=True)])
    with forward_ad.dual_level():
        output = torch.func.vmap(lambda x: layer(x)[0])(forward_ad.make_dual(x, t))
        torch.testing.assert_close(forward_ad.unpack_dual(output).tangent, want)


def _in_a_process(layer, x, queue):
    torch.set_num_threads(1)
    output, _ = layer(x)
    output.sum().backward()
    queue.put([output.detach().tolist(), layer.weight_hh_l0.grad.tolist()])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_of_its_own_after_use(method):
    layer, x = trigru.GRU(3, 4), torch.randn(9, 2, 3)
    output, _ = layer(x)
    output.sum().backward()
    want = [output.detach().tolist(), layer.weight_hh_l0.grad.tolist()]
    layer.zero_grad()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_in_a_process, args=(layer, x, queue))
    process.start()
    assert queue.get(timeout=120) == want
    process.join()
    assert process.exitcode == 0


SHUTDOWN = """
import atexit, threading, torch, trigru
layer, x = trigru.GRU(3, 4), torch.randn(9, 2, 3)
def step():
    layer(x)[0].sum().backward()
def some():
    for _ in range(20):
        step()
atexit.register(step)
step()
loop = layer, layer(x)  # a graph that is still there
threading.Thread(target=some).start()
"""


def test_the_interpreter_ends_while_calls_run():
    run = subprocess.run([sys.executable, "-c", SHUTDOWN], env=os.environ, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
