"""YAML that nobody vouches for: no code, no key twice, no aliases, and one kind of error whatever is wrong."""

from __future__ import annotations

from typing import Any

import yaml


class BadYaml(ValueError):
    """Text that is not taken, in one line."""


class _Strict(yaml.SafeLoader):
    """Refuses a key that stands twice, and aliases, with which a few lines unfold into gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The node, if it is written out."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise BadYaml(f"line {mark.line + 1} has an alias (*name): write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, if its keys differ."""
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise BadYaml(f"key {name!r} stands twice (line {key.start_mark.line + 1}): keep one of them")
            seen.add(name)
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """The value of a document.

    Raises:
        BadYaml: If it is not valid, names a key twice, or has an alias.
    """
    try:
        return yaml.load(text, _Strict)
    except BadYaml:
        raise
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        told = " ".join(f"{error.problem or error.context}".split())
        raise BadYaml(f"line {line} is not valid YAML: {told}") from None
    except Exception as error:  # values with a tag that they do not fit raise anything: KeyError, AttributeError, ...
        told = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadYaml(f"not valid YAML: {told}") from None
