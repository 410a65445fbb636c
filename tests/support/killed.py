"""Processes that are killed after a system call of theirs: each one in turn, or some.

The child is traced by ptrace(2): it stops as it enters a call and as it leaves it, and is killed
there.  So a rename has been done while nothing behind it has, which no audit hook can say.
"""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator

_TRACEME, _SYSCALL, _SETOPTIONS = 0, 24, 0x4200
_EXIT_KILL = 0x100000
LAST = 24  # calls at the end, which rename and clear up; each is tried

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def after_calls(
    prepare: Callable[[], object], work: Callable[[], object], step: int = 1
) -> Iterator[int]:
    """Run `work` in children that are killed after a call, `prepare` before each; yield its number.

    Every `step`-th call is tried, and each of the last ones.
    """
    prepare()
    total = _run(work, None)
    for number in sorted({*range(1, total, step), *range(max(1, total - LAST), total)}):
        prepare()
        if _run(work, number) == number:
            yield number


def _run(work: Callable[[], object], number: int | None) -> int:
    """How many calls the child made; it was killed if these are `number`."""
    child = os.fork()
    if not child:
        _child(work)
    os.waitpid(child, 0)
    _trace(_SETOPTIONS, child, _EXIT_KILL)
    calls = 0
    while calls != number:
        if not (_next_stop(child) and _next_stop(child)):
            return calls
        calls += 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return calls


def _child(work: Callable[[], object]) -> None:
    code = 1
    try:
        _trace(_TRACEME, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        code = 0
    finally:
        os._exit(code)


def _next_stop(child: int) -> bool:
    """Go on until the child enters or leaves a call; False once it has ended well."""
    _trace(_SYSCALL, child, 0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSTOPPED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def _trace(request: int, child: int, data: int) -> None:
    if _libc.ptrace(request, child, None, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace: {os.strerror(ctypes.get_errno())}")
