import os
import signal
import subprocess
import sys
import time

import pytest

from brats_lightning.runtime import signals


@pytest.fixture
def listening():
    with signals.listening():
        yield


def send(signum=signal.SIGTERM):
    os.kill(os.getpid(), signum)


def test_a_signal_is_noted_and_acted_on_where_asked(listening, capfd):
    signals.check()
    send()
    assert signals.received() == signal.SIGTERM
    with pytest.raises(signals.Interrupted) as caught:
        signals.check()
    assert caught.value.signum == signal.SIGTERM
    assert "SIGTERM: stopping after this step" in capfd.readouterr().err


def test_the_same_request_twice_is_one_and_a_later_one_ends_at_once(listening, monkeypatch):
    send(signal.SIGINT)
    send(signal.SIGTERM)  # a launcher repeats to each what was sent to the group
    now = time.monotonic()
    monkeypatch.setattr(signals.time, "monotonic", lambda: now + 10)
    with pytest.raises(signals.Interrupted):
        send(signal.SIGINT)


def test_waiting_ends_at_once_before_and_after_the_signal(listening):
    def wait():
        with signals.waiting():
            send()
            time.sleep(60)

    with pytest.raises(signals.Interrupted):
        wait()
    with pytest.raises(signals.Interrupted), signals.waiting():
        pass


def test_waiting_goes_on_while_an_end_would_lose_something(listening):
    signals.hold(True)
    with signals.waiting():
        send()
        done = True
    assert done
    assert signals.received()


def test_slurms_notice_outweighs_another_signal(monkeypatch):
    monkeypatch.setattr(signals, "_SIGNALS", (*signals._SIGNALS, signal.SIGUSR2))
    with signals.listening():
        send(signal.SIGTERM)
        send(signal.SIGUSR2)
        assert signals.received() == signal.SIGUSR2
        send(signal.SIGTERM)
        assert signals.received() == signal.SIGUSR2


def test_nothing_interrupts_the_handler_of_a_notice_or_its_command():
    told = []

    def requeue(signum, frame):
        told.append("begins")
        send(signum)
        send(signal.SIGTERM)
        told.append(subprocess.run(["sh", "-c", "kill -TERM $$; echo done"], capture_output=True, text=True).stdout)

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR2)}
    signal.signal(signal.SIGUSR2, requeue)
    try:
        signals.take_notices_once()
        send(signal.SIGUSR2)
        send(signal.SIGUSR2)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert told == ["begins", "done\n"]


def test_only_a_notice_is_passed_on_and_only_to_a_handler(monkeypatch):
    told = []
    for signum in (signal.SIGTERM, signal.SIGUSR2):
        before = signal.signal(signum, lambda *given: told.append(given[0]))
        try:
            assert signals.pass_on(signum) is (signum == signal.SIGUSR2)
        finally:
            signal.signal(signum, before)
    assert told == [signal.SIGUSR2]
    assert not signals.pass_on(signal.SIGUSR2)


def test_handlers_are_restored():
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with signals.listening():
        assert signal.getsignal(signal.SIGTERM) is signals._note
        send()
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before
    assert signals.received() is None


def test_a_worker_outlives_the_groups_signals_for_a_while():
    code = (
        "import signal, sys, time\n"
        "from brats_lightning.runtime.signals import leave_signals_to_parent\n"
        "leave_signals_to_parent(grace=1)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline(); print('alive', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as worker:
        assert worker.stdout.readline() == "ready\n"
        for signum in (signal.SIGINT, signal.SIGUSR2, signal.SIGTERM):
            worker.send_signal(signum)
        worker.stdin.write("\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "alive\n"
        assert worker.wait(timeout=30) == -signal.SIGALRM
