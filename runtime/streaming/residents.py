"""Which streams have a row, and how one comes by it: the others lie in a store.

A stream that waits for a row takes that of the one that was stepped longest ago and has no input;
where all have, that of one which had its share of calls.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence

from intaglio.errors import StateError
from intaglio.runtime.carried_states import CarriedStates
from intaglio.runtime.session_state import Snapshot, State

from .bank import Bank
from .feeds import Record
from .store import Store

SHARE = 16  # calls after which a stream gives its row to one that waits


class Residents:
    """Rows of banks, and who has them; one thread at a time may use it.

    Attributes:
        store: where streams lie that have no row.
        saved: how often one was saved.
        restored: how often one was brought back.
    """

    def __init__(self, banks: Sequence[Bank], scratch: State, store: Store) -> None:
        """Give out the rows of `banks`; save and restore with `scratch`, of the same graph."""
        self.store = store
        self.saved = self.restored = 0
        self._banks, self._scratch = banks, scratch
        self._order: OrderedDict[Record, None] = OrderedDict()  # stepped longest ago first

    def __len__(self) -> int:
        return len(self._order)

    def row_for(self, record: Record) -> tuple[Bank | None, list[Record]]:
        """The bank of a stream, or one where it may have a row, and who leaves that first."""
        if record.bank is not None:
            return record.bank, []
        bank = next((bank for bank in self._banks if bank.free), None)
        if bank is not None:
            return bank, []
        victim = next((each for each in self._order if not each.feeds), None)
        if victim is None:
            victim = next((each for each in self._order if each.served >= SHARE), None)
        return (None, []) if victim is None else (victim.bank, [victim])

    def idle(self, bank: Bank, but: Collection[Record]) -> list[Record]:
        """Streams with rows of a bank and no input, the one first that was stepped longest ago."""
        return [
            each for each in self._order if each.bank is bank and not each.feeds and each not in but
        ]

    def served(self, record: Record) -> None:
        """Note that a stream was stepped."""
        record.served += 1
        self._order.move_to_end(record)

    def admit(self, record: Record, bank: Bank) -> None:
        """Give a stream a row, with its saved state if it has one.

        Raises:
            StateError: if it cannot be brought back.
            MemoryError: if there is none for it.
        """
        part = None
        if record.saved is not None:
            self._scratch.restore(self.store.take(record.name))
            part = self._scratch.carried
            if part.batch != 1 or int(part.past_length[0]) != record.past:
                raise StateError(
                    f"its saved state has {part.batch} rows of {part.past_length.tolist()} tokens, "
                    f"not one of {record.past}."
                )
            record.condition(part.conditions)
        bank.admit(record, part)
        self.restored += part is not None
        record.bank, record.served = bank, 0
        self._order[record] = None

    def park(self, record: Record) -> None:
        """Save a stream and take its row.

        Raises:
            StateError: if it cannot be saved; it has its row then.
        """
        self.save(record)
        self.release(record)

    def save(self, record: Record) -> None:
        """Put the state of a stream into the store, if it is not there as it is.

        Raises:
            StateError: if it cannot be saved.
        """
        if record.bank is None and record.saved is not None:
            return
        self.store.put(record.name, self.snapshot(record))
        record.saved = record.past
        self.saved += 1

    def release(self, record: Record) -> None:
        """Take the row of a stream, if it has one."""
        if record.bank is not None:
            record.bank.release(record)
            record.bank = None
            del self._order[record]

    def snapshot(self, record: Record) -> Snapshot:
        """A copy of the state of a stream.

        Raises:
            StateError: if it could not be brought back.
        """
        if record.fault is not None:
            raise StateError(record.fault)
        if record.bank is not None:
            part = record.bank.part(record)
            part.conditions = record.conditions
        elif record.saved is not None:
            snapshot = self.store.take(record.name)
            if self.store.folder is None:
                self.store.put(record.name, snapshot)
            return snapshot
        else:
            part = CarriedStates(self._scratch.settings, 1, conditions=record.conditions)
        self._scratch.carried = part
        return self._scratch.save()
