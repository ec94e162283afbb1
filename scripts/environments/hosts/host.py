"""A Python program that has the library inside (ctypes) and handlers of its own.

usage: host.py LIBRARY.so PATH
"""

import ctypes
import os
import signal
import sys
import threading

signal.alarm(60)  # a wait that never ends
mine = [s for s in signal.valid_signals()
        if s not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGALRM, signal.SIGSEGV, signal.SIGBUS,
                     signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS)]
came = {}


def handler(number, frame):
    came[number] = came.get(number, 0) + 1


def handlers():
    for s in mine:
        signal.signal(s, handler)


handlers()
library = ctypes.CDLL(sys.argv[1])
failed = False


def waiter(way):
    global failed
    late = library.flockctx_wait(sys.argv[2].encode(), way, 200)
    if late > 3000 or late in (-1, -3) or (late == -2 and way != 1):
        print(f"way {way}: {late}")
        failed = True


def wait_all(when):
    threads = [threading.Thread(target=waiter, args=(way,)) for way in (0, 1, 2, 0, 1, 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    print(when, {int(s): n for s, n in came.items()} or "")


wait_all("handlers set before the library")
handlers()
wait_all("handlers set after the library")
came.clear()
for s in mine:
    if s in (signal.SIGPIPE, signal.SIGPROF):
        continue
    os.kill(os.getpid(), s)
for _ in range(100):
    if len(came) >= len(mine) - 2:
        break
    threading.Event().wait(0.01)
lost = [int(s) for s in mine if s not in came and s not in (signal.SIGPIPE, signal.SIGPROF)]
if lost:
    print("signals that the host did not get:", lost)
    failed = True
print("FAIL" if failed else "ok")
sys.exit(failed)
