"""What the labels that people have say of a model's classes: indices, names, 0/255 masks, one mask per class, a table.

A truth is a class index (softmax: classes exclude each other), or 0/1 per class on its first axis (sigmoid: each class
stands alone, and regions may overlap). What matches no class is an error that says what was found, and never dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from equipoise_core.contract import Activation, Contract, Task
from numpy.typing import NDArray

from ..errors import InvalidInput

NOTHING = "none"
"""In a table: labels of none of the classes (the background where it has no class of its own)."""
_YES, _NO = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})
_NEGATIVE = frozenset({"none", "normal", "negative", "no finding", "healthy"})
_WHITE = 255  # how pictures store "yes"
_TO = ".."
_SEVERAL = re.compile(r"[;|]")


@dataclass(frozen=True)
class LabelTable:
    """Which labels, as they are found, make each class; a label may count for several classes.

    Attributes:
        labels: by class or `NOTHING`: names, numbers, or ranges of whole numbers such as `1..500`.
    """

    labels: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, text: str) -> LabelTable:
        """`wt=1,2,3; tc=1,3; et=3` or `normal=NORMAL; pneumonia=BACTERIA,VIRUS`."""
        entries = [entry.partition("=") for entry in text.split(";") if entry.strip()]
        if not entries or not all(middle and name.strip() and found.strip() for name, middle, found in entries):
            raise InvalidInput(f"label values {text!r}: expected CLASS=LABEL,… separated by ;, such as wt=1,2,3; et=3")
        return cls.of({name.strip(): found.split(",") for name, _, found in entries})

    @classmethod
    def of(cls, labels: Mapping[str, Sequence[str | int]]) -> LabelTable:
        """From names of classes and the labels that make them."""
        return cls(
            MappingProxyType({name: tuple(str(each).strip() for each in given) for name, given in labels.items()})
        )

    @classmethod
    def of_dataset(cls, path: Path) -> LabelTable:
        """`labels` of a `dataset.json` as nnU-Net (`{"wt": [1, 2, 3]}`) or Medical Decathlon (`{"1": "wt"}`) has it."""
        try:
            stated = json.loads(path.read_text(encoding="utf-8"))["labels"]
            if all(str(key).lstrip("-").isdigit() for key in stated):
                return cls.of({str(name): [key] for key, name in stated.items()})
            return cls.of({name: each if isinstance(each, list) else [each] for name, each in stated.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(
                f'{path}: expected "labels": {{"background": 0, "wt": [1, 2, 3]}} or {{"0": "background"}}'
            ) from error

    def checked(self, contract: Contract) -> LabelTable:
        """With the contract's own spelling. Raises InvalidInput for a class that it lacks, or that has no label."""
        known = {plain(name): name for name in contract.classes}
        if "background" not in known:
            known["background"] = NOTHING
        known[NOTHING] = NOTHING
        unknown = [name for name in self.labels if plain(name) not in known]
        own = {known[plain(name)]: found for name, found in self.labels.items() if plain(name) in known}
        first = contract.classes[0] if contract.task is Task.SEGMENTATION and _exclusive(contract) else None
        missing = [name for name in contract.classes if name not in own and name != first]
        if unknown or missing:
            raise InvalidInput(
                f"label values are stated for {', '.join(self.labels)}; {contract.name} knows "
                f"{', '.join(contract.classes)}" + (f"; none for {', '.join(missing)}" if missing else "")
            )
        if first is not None and first not in own:
            own[first] = own.pop(NOTHING, ("0",))
        return LabelTable(MappingProxyType(own))

    def classes_of(self, label: str) -> list[str] | None:
        """Classes that a label makes; [] for `NOTHING`, None where the table does not know it."""
        found = [name for name, labels in self.labels.items() if any(_holds(each, label) for each in labels)]
        return [name for name in found if name != NOTHING] if found else None


def _holds(stated: str, label: str) -> bool:
    low, to, high = stated.partition(_TO)
    if to:
        try:
            return int(low) <= int(label) <= int(high)
        except ValueError:
            return False
    return plain(stated) == plain(label)


def plain(name: str) -> str:
    """Without case, and with one space for each run of spaces, `_` and `-` within: how names are compared."""
    words = re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", name.strip().casefold())
    return words[:-2] if re.fullmatch(r"-?\d+\.0", words) else words  # spreadsheets make 1.0 of 1


def _exclusive(contract: Contract) -> bool:
    return contract.activation is Activation.SOFTMAX


def expected(contract: Contract) -> str:
    """The labels that need no table, in words."""
    if contract.task is Task.SEGMENTATION:
        first = 0 if _exclusive(contract) else 1
        meanings = ", ".join(f"{index} {name}" for index, name in enumerate(contract.classes, first))
        return f"{'' if _exclusive(contract) else '0 nothing, '}{meanings}"
    named = ", ".join(contract.classes)
    if _exclusive(contract):
        return f"{named}, or 0 to {len(contract.classes) - 1}"
    return f"{named}, or {'0 or 1' if len(contract.classes) == 1 else 'several separated by ;'}; normal for none"


def _remedy(contract: Contract) -> str:
    example = f"{contract.classes[-1]}=1,2" if contract.task is Task.SEGMENTATION else f"{contract.classes[0]}=NAME"
    return f'state which labels make each class: --label-values "{example}; …" ({NOTHING}=… for none of them)'


def truth_of_label(label: str, contract: Contract, table: LabelTable | None) -> NDArray[np.uint8]:
    """Classification: `[]`, the class (softmax), or `[K]` 0/1 (sigmoid), of a name, an index or several names.

    Raises InvalidInput for what is no class.
    """
    found = _named(label, contract, table)
    if found is None or (_exclusive(contract) and len(found) != 1):
        raise InvalidInput(f"label {label!r}; {contract.name} expects {expected(contract)}; {_remedy(contract)}")
    if _exclusive(contract):
        return np.array(contract.classes.index(found[0]), dtype=np.uint8)
    return np.array([name in found for name in contract.classes], dtype=np.uint8)


def _named(label: str, contract: Contract, table: LabelTable | None) -> list[str] | None:
    if table is not None:
        made = [table.classes_of(part) for part in _parts(label, contract)]
        return None if any(each is None for each in made) else [name for each in made for name in each or ()]
    known = {plain(name): name for name in contract.classes}
    if plain(label) in known:
        return [known[plain(label)]]
    parts = [plain(part) for part in _SEVERAL.split(label)]
    if len(parts) == len(contract.classes) and (len(parts) > 1 or not _exclusive(contract)) and {*parts} <= _YES | _NO:
        return [name for name, part in zip(contract.classes, parts, strict=True) if part in _YES]
    if _exclusive(contract):
        index = plain(label)
        return [contract.classes[int(index)]] if index.isdigit() and int(index) < len(contract.classes) else None
    found: list[str] = []
    for part in parts:
        if part in known:
            found.append(known[part])
        elif part not in _NEGATIVE and part not in {f"{no} {name}" for no in ("no", "not", "non") for name in known}:
            return None
    return found


def _parts(label: str, contract: Contract) -> list[str]:
    return [label] if _exclusive(contract) else _SEVERAL.split(label)


def truth_of_labels(stored: NDArray[Any], contract: Contract, table: LabelTable | None) -> NDArray[np.uint8]:
    """Classification: of one entry of an archive: a name or number `[]` or `[1]`, or 0/1 per class `[K]`.

    Raises InvalidInput for what is no class.
    """
    if stored.size == 1:
        return truth_of_label(_word(stored.reshape(())[()]), contract, table)
    if stored.shape != (len(contract.classes),) or stored.dtype.kind not in "biuf":
        raise InvalidInput(
            f"a label has shape {list(stored.shape)}; expected one class, or {len(contract.classes)} numbers 0 or 1 "
            f"for {', '.join(contract.classes)}"
        )
    return _of_masks(stored, contract)


def _word(value: Any) -> str:
    number = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value)) if number or isinstance(value, (bool, np.bool_)) else str(value)


def truth_of_map(values: NDArray[Any], contract: Contract, table: LabelTable | None) -> NDArray[np.uint8]:
    """Segmentation: label values `[*S]` → `[*S]`, class indices (softmax), or `[K, *S]` 0/1 (sigmoid).

    Without a table the values are indices; sigmoid: 0 for nothing, then the classes; of one structure 255 is a 1.
    Raises InvalidInput for values that are no class.
    """
    whole = np.rint(values)  # a scale factor in the file leaves 0.996 of a 1
    if whole.size and not np.abs(values - whole).max() <= 0.05:
        raise InvalidInput(f"a label holds what is no index of a class; expected whole numbers: {expected(contract)}")
    found = [int(value) for value in np.unique(whole)]
    first, classes = (0 if _exclusive(contract) else 1), contract.classes
    if table is not None:
        meanings = {value: table.classes_of(str(value)) for value in found}
        if 0 in meanings and not _exclusive(contract):
            meanings[0] = meanings[0] or []
    else:
        indices = {value: value - first for value in found}
        if len(classes) + first == 2 and set(found) <= {0, _WHITE}:
            indices[_WHITE] = len(classes) - 1
        meanings = {
            value: [classes[index]] if 0 <= index < len(classes) else [] if value == 0 else None
            for value, index in indices.items()
        }
    unknown = [str(value) for value, meaning in meanings.items() if meaning is None and value in found]
    if unknown:
        raise InvalidInput(
            f"the label holds {_some(unknown)}; {contract.name} expects {expected(contract)}; {_remedy(contract)}"
        )
    masks = [np.isin(whole, [v for v in found if name in (meanings[v] or ())]) for name in classes]
    return _of_masks(np.stack(masks), contract)


def truth_of_masks(masks: NDArray[Any], contract: Contract) -> NDArray[np.uint8]:
    """Segmentation: one mask per class `[K, *S]`, 0 and 1 or 0 and 255 → as `truth_of_map`.

    Where classes exclude each other the first one's, the background's, may be left out.
    """
    if _exclusive(contract) and len(masks) == len(contract.classes) - 1:
        masks = np.concatenate([(masks == 0).all(axis=0, keepdims=True) * masks.max(initial=1), masks])
    return _of_masks(np.where(masks == _WHITE, 1, masks) if not (masks == 1).any() else masks, contract)


def _of_masks(masks: NDArray[Any], contract: Contract) -> NDArray[np.uint8]:
    """0/1 `[K, …]` → as it is (sigmoid), or the index of the one that is 1 (softmax)."""
    found = np.unique(masks)
    if not np.isin(found, (0, 1)).all():
        raise InvalidInput(f"a mask of one class holds {_some([f'{each:g}' for each in found])}; expected 0 and 1")
    whole = masks.astype(np.uint8)
    if not _exclusive(contract):
        return whole
    if whole.size and not (whole.sum(axis=0) == 1).all():
        raise InvalidInput(
            f"exactly one of {', '.join(contract.classes)} must be true of each; here none is, or several"
        )
    return np.asarray(whole.argmax(axis=0), dtype=np.uint8)


def _some(found: Sequence[str]) -> str:
    return ", ".join(found) if len(found) <= 6 else f"{', '.join(found[:5])}, … ({len(found)} values)"
