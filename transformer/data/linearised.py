"""Trees as sequences of symbols, and back.

The symbols of a tree, from left to right: open a constituent, shift the next word, close the constituent. In the form
"brackets" (Vinyals et al. 2015) a closing bracket names its constituent. Words and tags are not in the sequence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from transformer.config import SPECIALS, UserError
from transformer.data.trees import Tree

FILE = "symbols.json"


@dataclass(frozen=True)
class Symbols:
    """The labels of constituents and the tags of words that a parser knows, and the ids of its symbols.

    The ids are those of `config.SPECIALS`, then `shift`, then what closes a constituent, then what opens one of each
    label.
    """

    form: str
    """'transitions' or 'brackets', as `TreebankConfig.form`."""
    labels: tuple[str, ...]
    tags: tuple[str, ...]

    shift = len(SPECIALS)

    @property
    def closing(self) -> range:
        """The ids that close a constituent: one, or one for each label."""
        return range(self.shift + 1, self.shift + 1 + (len(self.labels) if self.form == "brackets" else 1))

    @property
    def opening(self) -> range:
        """The ids that open a constituent, by label."""
        return range(self.closing.stop, self.closing.stop + len(self.labels))

    @property
    def size(self) -> int:
        """Number of ids, special ids included."""
        return self.opening.stop

    @cached_property
    def _label_ids(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.labels)}

    @cached_property
    def tag_ids(self) -> dict[str, int]:
        """The index of each tag."""
        return {tag: i for i, tag in enumerate(self.tags)}

    @property
    def file(self) -> tuple[str, bytes]:
        """(name, content) of the file that `read` reads."""
        return FILE, (json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n").encode()

    def encode(self, tree: Tree) -> list[int] | None:
        """The ids of a tree. None if one of its labels is unknown."""
        ids: list[int] = []
        waiting: list[Tree | int] = [tree]
        while waiting:
            node = waiting.pop()
            if isinstance(node, int):
                ids.append(node)
            elif node.word is not None:
                ids.append(self.shift)
            elif (label := self._label_ids.get(node.label)) is None:
                return None
            else:
                ids.append(self.opening[label])
                waiting += [self.closing[label if self.form == "brackets" else 0], *reversed(node.children)]
        return ids

    def decode(self, ids: Sequence[int], words: Sequence[str], tags: Sequence[str]) -> Tree:
        """The tree of a sequence over these words. Raises ValueError if it is no tree over exactly these words."""
        opened: list[tuple[str, list[Tree]]] = [("", [])]
        count = 0
        for id in ids:
            if id in self.opening and not opened[0][1]:
                opened.append((self.labels[id - self.opening.start], []))
            elif id == self.shift and len(opened) > 1 and count < len(words):
                opened[-1][1].append(Tree(tags[count], [], words[count]))
                count += 1
            elif id in self.closing and len(opened) > 1 and opened[-1][1]:
                label, children = opened.pop()
                if self.form == "brackets" and self.labels[id - self.closing.start] != label:
                    raise ValueError(f"a bracket closes {self.labels[id - self.closing.start]}, but {label} is open")
                opened[-1][1].append(Tree(label, children))
            else:
                raise ValueError(f"symbol {id} cannot stand here")
        if len(opened) != 1 or count != len(words) or len(opened[0][1]) != 1:
            raise ValueError(f"{count} of {len(words)} words, {len(opened) - 1} constituents left open")
        return opened[0][1][0]


def learn(trees: Sequence[Tree], form: str) -> Symbols:
    """The symbols of these trees."""
    labels = {node.label for tree in trees for node, _, _ in tree.spans() if node.word is None}
    tags = {word.label for tree in trees for word in tree.words()}
    return Symbols(form, tuple(sorted(labels)), tuple(sorted(tags)))


def read(content: bytes, where: str) -> Symbols:
    """The symbols in a file of a workdir. Raises `UserError` if it is damaged."""
    try:
        values = json.loads(content)
        symbols = Symbols(values["form"], tuple(values["labels"]), tuple(values["tags"]))
        names = [*symbols.labels, *symbols.tags]
        if symbols.form not in ("transitions", "brackets") or not all(isinstance(name, str) for name in names):
            raise ValueError("names are no strings, or the form is unknown")
        if not symbols.labels or not symbols.tags:
            raise ValueError("no labels or no tags")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: not the symbols of a parser ({error}); restore a copy") from None
    return symbols
