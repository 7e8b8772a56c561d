"""Constructor arguments in the configuration, such as `model.unet.dropout`, checked before any network is imported.

The arguments of a class are read from its source code: importing diffusers or open_clip takes seconds.
"""

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffrestorer.config.degradations import nearest

CLASSES: dict[str, tuple[str, ...]] = {
    "model.vae": ("diffusers/models/autoencoders/autoencoder_kl.py:AutoencoderKL",),
    "model.image_encoder": ("diffrestorer/models/*.py:{image_encoder_class}",),
    "model.image_encoder.vision_cfg": ("open_clip/model.py:CLIPVisionCfg",),
    "model.prompt_processor": ("diffrestorer/models/*.py:PromptProcessor",),
    "model.unet": ("diffusers/models/unets/unet_2d_condition.py:UNet2DConditionModel",),
    "model.control_encoder": ("diffrestorer/models/*.py:{control_encoder_class}",),
    "model.decoder": ("diffrestorer/models/*.py:{decoder_class}",),
    "model.scheduler": (
        "diffusers/schedulers/scheduling_ddpm.py:DDPMScheduler",
        "diffusers/schedulers/scheduling_unipc_multistep.py:UniPCMultistepScheduler",
    ),
    "network": ("diffrestorer/baselines/**/*.py:{method}",),
}
"""Key of a dictionary -> the classes that are constructed from it, each with the files that may define it.

What stands in braces is the value of that key, of the run or of its model. A compared method's class has the name of
its `method`, without underscores, in any case.
"""

Arguments = Mapping[str, ast.expr | None]
"""Argument -> its type as the source states it."""

TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "dict": (dict,),
    "Dict": (dict,),
    "Mapping": (dict,),
}
LISTS = ("list", "List", "tuple", "Tuple", "Sequence")


def constructor_arguments(values: Mapping[str, Any]) -> dict[str, tuple[str, Arguments]]:
    """Return the arguments that each dictionary of a configuration may hold.

    Args:
        values: the configuration.

    Returns:
        Key of the dictionary -> class name and arguments. Dictionaries of unknown classes are left out.
    """
    found: dict[str, tuple[str, Arguments]] = {}
    for key, paths in CLASSES.items():
        names = [_class_name(path, values) for path in paths]
        read = [_read_arguments(path, name) for path, name in zip(paths, names, strict=True)]

        # Of several classes, each gets the whole dictionary: only what all of them take is possible.
        shared = dict(read[0])
        for arguments in read[1:]:
            shared = {argument: hint for argument, hint in shared.items() if argument in arguments}

        # Nothing is known of a class whose source cannot be read: building it refuses what is wrong.
        if all(read):
            found[key] = names[0], shared
    return found


def check_arguments(values: Mapping[str, Any]) -> None:
    """Refuse constructor arguments that their class does not have, and values of the wrong type.

    Args:
        values: the configuration.

    Raises:
        ValueError: names the key and the nearest argument, or the type.
    """
    for key, (name, arguments) in constructor_arguments(values).items():
        for argument, value in _select(values, key).items():
            full_key = f"{key}.{argument}"

            # The name first, compared with whole keys: that is what users type.
            if argument not in arguments:
                known = [f"{key}.{one}" for one in arguments]
                raise ValueError(
                    f"unknown key {full_key!r}{nearest(full_key, known)}; {name} has no argument of that name"
                )

            # Then the type, where the class states one.
            hint = arguments[argument]
            if hint is not None and not _fits(value, hint):
                kind = ast.unparse(hint)
                raise ValueError(f"{full_key}={value} is not possible: {name} takes {kind} here")


def _select(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the dictionary at a key; an empty one where there is none."""
    node: Any = values
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _class_name(path: str, values: Mapping[str, Any]) -> str:
    named = defaultdict(str, _select(values, "model"))
    named["method"] = str(values.get("method", "")).replace("_", "")
    return path.split(":")[1].format_map(named)


@functools.cache
def _read_arguments(path: str, name: str) -> Arguments:
    """Return the constructor arguments of a class; none where its source cannot be found or read."""
    # The package is found, not imported.
    package, pattern = path.split(":", maxsplit=1)[0].split("/", 1)
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(spec.submodule_search_locations[0])

    # Every class that the files define.
    classes: dict[str, ast.ClassDef] = {}
    for file in sorted(folder.glob(pattern)):
        classes |= {node.name.lower(): node for node in _class_nodes(file)}

    # A constructor that a class inherits is looked up in its bases, as far as these files define them.
    node = classes.get(name.lower())
    while node is not None:
        arguments = _arguments_of(node)
        if arguments:
            return arguments
        bases = [base.id.lower() for base in node.bases if isinstance(base, ast.Name)]
        node = next((classes[base] for base in bases if base in classes), None)
    return {}


def _class_nodes(file: Path) -> Iterator[ast.ClassDef]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node


def _arguments_of(node: ast.ClassDef) -> Arguments:
    """Return the arguments of a class's own `__init__`, or of the one that a dataclass gets."""
    functions = [statement for statement in node.body if isinstance(statement, ast.FunctionDef)]
    constructor = next((function.args for function in functions if function.name == "__init__"), None)

    # A constructor that hands on whatever it gets: its base class knows the arguments.
    if constructor is not None and (constructor.vararg or constructor.kwarg):
        return {}

    # The syntax tree keeps the defaults apart from the arguments, those of the last ones only.
    if constructor is not None:
        without_default = len(constructor.args) - len(constructor.defaults)
        defaults = [*[None] * without_default, *constructor.defaults, *constructor.kw_defaults]
        named = [*constructor.args, *constructor.kwonlyargs]
        pairs = list(zip(named, defaults, strict=True))[1:]
        return {
            argument.arg: _with_default(argument.annotation, default) for argument, default in pairs
        }

    # The fields of a dataclass, each with its type.
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        stated = [line for line in node.body if isinstance(line, ast.AnnAssign)]
        return {ast.unparse(line.target): _with_default(line.annotation, line.value) for line in stated}
    return {}


def _with_default(hint: ast.expr | None, default: ast.expr | None) -> ast.expr | None:
    """Return a type that admits None where the default is None, whatever the source states."""
    if hint is not None and isinstance(default, ast.Constant) and default.value is None:
        return ast.BinOp(hint, ast.BitOr(), default)
    return hint


def _fits(value: Any, hint: ast.expr) -> bool:
    """Tell whether a value is of a type, as far as the type is made of the usual ones; any other admits everything."""
    match hint:
        case ast.Constant(value=None):
            return value is None
        case ast.BinOp(left=left, right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Subscript(value=ast.Name(id="Optional" | "Union" as kind)):
            return (kind == "Optional" and value is None) or any(
                _fits(value, inner) for inner in _inner(hint)
            )
        case ast.Subscript(value=ast.Name(id="Literal")):
            return value in [ast.literal_eval(inner) for inner in _inner(hint)]
        case ast.Subscript(value=ast.Name(id=kind)) if kind in LISTS:
            inner = _inner(hint)
            return isinstance(value, list) and all(
                any(_fits(item, one) for one in inner) for item in value
            )
        case ast.Name(id=kind) if kind in LISTS:
            return isinstance(value, list)
        case ast.Name(id=kind) | ast.Subscript(value=ast.Name(id=kind)) if kind in TYPES:
            return isinstance(value, TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
        case _:
            return True


def _inner(hint: ast.Subscript) -> list[ast.expr]:
    """Return what stands between the brackets of a type, without the dots of `tuple[int, ...]`."""
    inner = hint.slice.elts if isinstance(hint.slice, ast.Tuple) else [hint.slice]
    return [one for one in inner if not (isinstance(one, ast.Constant) and one.value is ...)]
