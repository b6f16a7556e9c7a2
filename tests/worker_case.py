"""What tests of `Worker` share."""

import threading

ENDS = ("finished", "failed", "cancelled", "missed")


class Gate:
    """A network that waits until it is let through, so many times."""

    def __init__(self):
        self._passes, self.entered, self.seen = threading.Semaphore(0), threading.Semaphore(0), []

    def __call__(self, numbers):
        self.seen.append(list(numbers))
        self.entered.release()
        assert self._passes.acquire(timeout=60)

    def let(self, rows=2000):
        self._passes.release(rows)

    def wait(self, rows=1):
        """Until it was called so often."""
        for _ in range(rows):
            assert self.entered.acquire(timeout=60)


def value(ticket):
    return ticket.result(timeout=60).samples.flatten().tolist()
