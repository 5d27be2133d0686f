"""A hospital's data sets and their budgets, in one folder.

    registry.jsonl          a ledger: which data sets there are, and that their images changed
    image.key               the site's key, by which images are known (0600)
    <folder>/ledger.jsonl
    <folder>/images-<sha256>.bin     sorted digests of every image that ever belonged to the data set

The same name, or exactly the same images, is the same data set; its images are the union of all imports,
for what was spent on an image is not undone by taking it out. Any other overlap is found image by image,
and `Budget` composes what was spent on either side.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from fedward.client.budget import Budget, Cell, terms_body
from fedward.client.identity import DataIdentity, pack, unpack
from fedward.common.chain import Head
from fedward.common.errors import BudgetRefused, DatasetRefused, LedgerRefused, UnknownName
from fedward.common.files import make_folder, refused_output, write_atomically
from fedward.common.ledger import Ledger

_REGISTRY, _KEY, _LEDGER = "registry.jsonl", "image.key", "ledger.jsonl"


class Registry:
    """The budgets of one hospital. ``with registry:`` holds its lock over several calls."""

    def __init__(self, folder: Path, wait_seconds: float = 30.0) -> None:
        """Open the folder, or start it.

        Raises:
            LedgerRefused: busy, or something in it does not verify or is missing.
            OutputRefused: it cannot be written.
        """
        self.folder = folder
        self._wait_seconds = wait_seconds
        self._log = _opened_log(folder, wait_seconds)
        self._loaded: Head | None = None
        self._budgets: dict[str, Budget] = {}
        self._images: dict[str, frozenset[bytes]] = {}
        self._cells: dict[str, Sequence[Cell]] = {}
        self._registered: dict[str, str] = {}  # folder -> ledger id
        with self:
            self.identity = self._identity()

    def __enter__(self) -> "Registry":
        """Take the lock, and read again if another process imported something."""
        self._log.__enter__()
        try:
            if self._loaded != self._log.head:
                self._load()
        except BaseException:
            self._log.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Give the lock back."""
        self._log.__exit__(kind, error, trace)

    def import_dataset(
        self, name: str, digests: Iterable[bytes], *, total_epsilon: float, delta: float, unit: str = "image"
    ) -> Budget:
        """The budget of a data set: the one it has, under whatever name, or a new one.

        Args:
            name: under which the hospital knows it.
            digests: of its images, by `identity`.
            total_epsilon: the limit over all studies.
            delta: at which it is stated.
            unit: the privacy unit.

        Raises:
            BudgetRefused: the data set has a budget on other terms; `Budget.set_total` changes them.
            DatasetRefused: no images, or a name that is empty or too long.
            LedgerRefused: as above.
        """
        if not 0 < len(name) <= 200 or not name.isprintable():
            raise DatasetRefused("A data set's name has 1 to 200 printable characters.")
        images = frozenset(digests)
        pack(images)
        terms = terms_body(total_epsilon, delta, unit)
        with self:
            budget = self._known(name, images)
            if budget is None:
                budget = self._created(terms)
            elif vars(budget.terms) != terms:
                raise BudgetRefused(
                    f"{name!r} has a budget of epsilon {budget.terms.total_epsilon:g} at delta "
                    f"{budget.terms.delta:g} by {budget.terms.unit}: import it on these terms, "
                    "or change them first."
                )
            self._admit(budget, name, images)
            return budget

    def budget(self, name: str) -> Budget:
        """The budget of the data set of that name.

        Raises:
            UnknownName: there is none; the sentence lists what there is.
        """
        with self:
            found = self._by_name(name)
            if found is None:
                names = sorted(known for budget in self._budgets.values() for known in budget.state.names)
                raise UnknownName(f"There is no data set {name!r}; there are {', '.join(names) or 'none'}.")
            return found

    def require_registered(self, name: str, digests: Iterable[bytes]) -> None:
        """Accept only images that belong to the data set `name`, so that what is spent on each is counted.

        Fewer than are registered are accepted, for images may be withdrawn; what was spent on those stays.

        Raises:
            DatasetRefused: an image is not registered.
            UnknownName: there is no such data set.
        """
        with self:
            known = self._images[self.budget(name).folder]
        found = frozenset(digests)
        if strange := len(found - known):
            raise DatasetRefused(
                f"{strange} of {len(found)} images are not those that the budget of {name!r} was registered "
                "for, so what is spent on them would not be counted: put the imported file back, or import "
                "these images first."
            )

    def budgets(self) -> tuple[Budget, ...]:
        """All budgets, by first name."""
        with self:
            return tuple(sorted(self._budgets.values(), key=lambda budget: budget.state.names))

    def cells(self, name: str) -> Sequence[Cell]:
        """See `fedward.client.budget.Site`; `name` is a ledger's folder. Computed once for each import."""
        if name not in self._cells:
            groups = _largest_groups(name, self._images)
            self._cells[name] = [tuple(self._budgets[member] for member in group) for group in groups]
        return self._cells[name]

    def _identity(self) -> DataIdentity:
        path = self.folder / _KEY
        # A new key would make every image unknown, and so mint every budget again.
        if path.exists() or self._budgets:
            return DataIdentity.open(path)
        return DataIdentity.create(path)

    def _load(self) -> None:
        self._registered = {
            str(entry.body["folder"]): str(entry.body["ledger"])
            for entry in self._log.entries
            if entry.kind == "dataset"
        }
        # A folder without an entry: a crash between the two, or an older copy of the registry.
        found = sorted(path.parent.name for path in self.folder.glob(f"*/{_LEDGER}"))
        for name in dict.fromkeys([*self._registered, *found]):
            self._load_one(name)
        self._cells = {}
        self._loaded = self._log.head

    def _load_one(self, name: str) -> None:
        budget = self._budgets.get(name) or self._opened(name)
        with budget.ledger:
            state = budget.state
        if self._registered.get(name, budget.ledger.id) != budget.ledger.id:
            raise LedgerRefused(
                f"{budget.ledger.path} is another data set's ledger: put back its newest copy."
            )
        if state.terms is not None and state.images_sha256:
            self._budgets[name] = budget
            self._images[name] = unpack(self._images_path(name, state.images_sha256), state.images_sha256)
        elif name in self._registered:
            raise LedgerRefused(f"{budget.ledger.path} is incomplete: put back its newest copy.")

    def _opened(self, name: str) -> Budget:
        return Budget(Ledger.open(self.folder / name / _LEDGER, self._wait_seconds), self)

    def _known(self, name: str, images: frozenset[bytes]) -> Budget | None:
        same = (self._budgets[folder] for folder, known in self._images.items() if known == images)
        return self._by_name(name) or next(same, None)

    def _by_name(self, name: str) -> Budget | None:
        return next((budget for budget in self._budgets.values() if name in budget.state.names), None)

    def _created(self, terms: dict[str, object]) -> Budget:
        """A new ledger, which counts for nothing until `_admit` has given it images."""
        folder = self.folder / hashlib.sha256(repr(self._log.head).encode()).hexdigest()[:32]
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise refused_output(folder, error) from error
        path = folder / _LEDGER
        # The folder is there already where a crash cut off this very import.
        ledger = (
            Ledger.open(path, self._wait_seconds)
            if path.exists()
            else Ledger.create(path, "budget", self._wait_seconds)
        )
        ledger.append("terms", terms)
        return Budget(ledger, self)

    def _admit(self, budget: Budget, name: str, images: frozenset[bytes]) -> None:
        """Let the budget's images be those it has and `images`, and its names those it has and `name`."""
        union = images | self._images.get(budget.folder, frozenset())
        data = pack(union)
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._images_path(budget.folder, sha256)
        if budget.state.images_sha256 != sha256 or name not in budget.state.names:
            write_atomically(path, data, 0o600)
            budget.ledger.append("images", {"name": name, "count": len(union), "sha256": sha256})
        elif budget.folder in self._registered:
            return
        entry = {"folder": budget.folder, "ledger": budget.ledger.id, "sha256": sha256}
        self._budgets[budget.folder] = budget
        self._log.append("dataset", entry)
        self._load()
        for stale in set(path.parent.glob("images-*.bin")) - {path}:
            stale.unlink(missing_ok=True)

    def _images_path(self, name: str, sha256: str) -> Path:
        return self.folder / name / f"images-{sha256}.bin"


def _opened_log(folder: Path, wait_seconds: float) -> Ledger:
    path = folder / _REGISTRY
    make_folder(folder, 0o700)
    if not path.exists():
        try:
            return Ledger.create(path, "registry", wait_seconds)
        except LedgerRefused:
            # Another process was first; if it was not that, opening says what is wrong.
            return Ledger.open(path, wait_seconds)
    return Ledger.open(path, wait_seconds)


def _largest_groups(name: str, images: dict[str, frozenset[bytes]]) -> list[tuple[str, ...]]:
    """The sets of data sets that some image of `name` belongs to at once, without those inside another.

    What is spent on an image grows with the data sets that it is in, so only the largest sets bind.
    """
    holders: dict[bytes, set[str]] = {}
    for other, known in images.items():
        for digest in images[name] & known if other != name else ():
            holders.setdefault(digest, {name}).add(other)
    groups = {frozenset(group) for group in holders.values()} or {frozenset([name])}
    return sorted(tuple(sorted(group)) for group in groups if not any(group < larger for larger in groups))
