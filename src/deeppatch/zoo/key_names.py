"""Match the names of tensors in a checkpoint with a network's: prefixes of wrappers, and names of other versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from deeppatch.zoo.published_names import RENAMINGS, Renaming

# what DataParallel, torch.compile, Lightning and people's own classes put in front of a network's names
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "network.")
# what wrappers of parts of a network put into the middle
MIDDLE = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# parts of names that other versions of the same networks have, and those of the zoo
RENAMED = {"shortcut": "downsample", "linear": "fc"}
DEPTH = 16
COUNTER = "num_batches_tracked"

Names = dict[str, str]


class Shaped(Protocol):
    """A tensor, or what stands for one in a file."""

    @property
    def ndim(self) -> int:
        """The number of dimensions."""


@dataclass(frozen=True)
class Match:
    """A network's names for tensors of a checkpoint, with the names there, and how well they fit.

    `missing` are names of the network without a tensor, `surplus` tensors without a place. `ignored` are tensors that
    lie beside those of the network. Where nothing is missing or surplus the match is exact.
    """

    names: Names
    missing: list[str]
    surplus: list[str]
    ignored: list[str]

    @property
    def exact(self) -> bool:
        """Whether every tensor of the network is there, and no other."""
        return not self.missing and not self.surplus


def match(state: Mapping[str, Shaped], own: Mapping[str, Shaped]) -> list[Match]:
    """Return the exact matches of a checkpoint's names with a network's, the plainest first, or else the closest one.

    Prefixes of wrappers are stripped, in any order and number, and names of other versions and of published checkpoints
    are replaced, where the rest then fits exactly. Batch counters may be missing; numbers without a dimension may lie
    beside the network's tensors.

    Args:
        state: The tensors of the checkpoint by name.
        own: The state dict of the network.
    """
    found = [_compare(names, state, own) for names in _readings({name: name for name in state})]
    exact = [each for each in found if each.exact]
    if not exact:
        return [min(found, key=lambda each: len(each.missing) + len(each.surplus))]
    fewest = sorted(exact, key=lambda each: len(each.ignored))
    return [each for index, each in enumerate(fewest) if each.names not in [other.names for other in fewest[:index]]]


def _compare(names: Names, state: Mapping[str, Shaped], own: Mapping[str, Shaped]) -> Match:
    known = {new: old for new, old in names.items() if new in own}
    missing = [name for name in own if name not in names and not name.endswith(COUNTER)]
    surplus = [new for new, old in names.items() if new not in own and state[old].ndim]
    taken = set(names.values())
    beside = [old for old in state if old not in taken and state[old].ndim]
    # a tensor that the network's own name would find, too, is not beside the network
    return Match(known, missing, surplus + [old for old in beside if old in own], [o for o in beside if o not in own])


def _readings(names: Names) -> Iterator[Names]:
    for outer in _unwrapped(names, DEPTH):
        for inner in (outer, _without_middle(outer)):
            yield inner
            yield _with_parts_renamed(inner)
            published = (_as_published(inner, renaming) for renaming in RENAMINGS.values())
            yield from (names for names in published if names != inner)


def _unwrapped(names: Names, depth: int) -> Iterator[Names]:
    """Yield the names as they are, and those behind every sequence of prefixes."""
    yield names
    for prefix in PREFIXES:
        inner = {name.removeprefix(prefix): old for name, old in names.items() if name.startswith(prefix)}
        if inner and depth:
            yield from _unwrapped(inner, depth - 1)


def _without_middle(names: Names) -> Names:
    return _distinct({old: ".".join(p for p in new.split(".") if p not in MIDDLE) for new, old in names.items()}, names)


def _with_parts_renamed(names: Names) -> Names:
    return _distinct({old: ".".join(RENAMED.get(p, p) for p in new.split(".")) for new, old in names.items()}, names)


def _as_published(names: Names, renaming: Renaming) -> Names:
    renamed = {old: new for name, old in names.items() if (new := renaming.apply(name)) is not None}
    return _distinct(renamed, names)


def _distinct(renamed: Names, before: Names) -> Names:
    """Return new names by old ones the other way round, or the names before where two become one."""
    turned = {new: old for old, new in renamed.items()}
    return turned if len(turned) == len(renamed) else before
