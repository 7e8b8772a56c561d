"""Text in LaTeX."""


def escape_latex(text: str) -> str:
    """Escape what LaTeX would read as a command in a text of ours; commands that style a number are kept."""
    replacements = {"–": "--", "±": r"$\pm$", "<": "$<$", "↓": r"$\downarrow$", "↑": r"$\uparrow$"}
    for character in "_%&#":
        replacements[character] = f"\\{character}"
    return "".join(replacements.get(character, character) for character in text)
