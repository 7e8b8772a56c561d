"""A tree of OmegaConf from a dataclass, and the dataclass from a tree."""

from dataclasses import is_dataclass
from typing import Any, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf


def open_tree(schema: type[Any]) -> DictConfig:
    """Return the tree of a dataclass, open to overrides: OmegaConf would lock the frozen dataclasses in it."""
    tree = OmegaConf.structured(schema)
    nodes: list[Any] = [tree]

    # Every node, from the root down: the list grows while it is walked.
    for node in nodes:
        OmegaConf.set_readonly(node, None)
        if node._metadata.element_type is float:
            OmegaConf.set_struct(node, False)  # a table such as lr_milestones may be given whole
        keys = node.keys() if isinstance(node, DictConfig) else range(len(node))
        nodes += [node[key] for key in keys if OmegaConf.is_config(node[key])]
    return tree


def to_dataclass(node: Any, hint: Any = None) -> Any:
    """Return the dataclasses of a tree. A list becomes a tuple where the dataclass that holds it says so."""
    # OmegaConf knows lists only.
    if isinstance(node, ListConfig):
        items = [to_dataclass(item) for item in node]
        return tuple(items) if get_origin(hint) is tuple else items

    # A dataclass, and everything else: numbers, text, dictionaries of arguments.
    if isinstance(node, DictConfig) and is_dataclass(schema := OmegaConf.get_type(node)):
        hints = get_type_hints(schema)
        return schema(**{str(key): to_dataclass(node[key], hints[str(key)]) for key in node})
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
