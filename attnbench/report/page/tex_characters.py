"""How TeX prints a character, with pdfLaTeX and its default fonts (OT1) and with any other engine.

Letters of Latin alphabets stand for themselves where OT1 can print them. What is neither in these
tables nor such a letter is printed as its code point (U+2713), since a document that does not
compile and a character that is silently missing are both worse.
"""

from __future__ import annotations

import re

_MARKS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_\allowbreak{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedblright{}",
    "`": r"\textasciigrave{}",
    "'": "'{}",
    "‘": "`{}",
    "’": "'{}",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "‐": "-",
    "‑": "-",
    "…": r"\ldots{}",
    "·": r"$\cdot$",
    "•": r"\textbullet{}",
    "°": r"\textdegree{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "©": r"\textcopyright{}",
    "®": r"\textregistered{}",
    "™": r"\texttrademark{}",
    "€": r"\texteuro{}",
    "£": r"\pounds{}",
    "\N{NO-BREAK SPACE}": "~",
    "\N{REPLACEMENT CHARACTER}": "?",
}  # fmt: skip

_IN_MATHS = {
    "×": r"\times", "÷": r"\div", "±": r"\pm", "∓": r"\mp", "−": "-", "√": r"\surd",
    "≤": r"\leq", "≥": r"\geq", "≪": r"\ll", "≫": r"\gg", "≠": r"\neq", "≈": r"\approx",
    "≡": r"\equiv", "∼": r"\sim", "≃": r"\simeq", "∝": r"\propto", "∞": r"\infty",
    "∈": r"\in", "∉": r"\notin", "⊂": r"\subset", "⊆": r"\subseteq", "∩": r"\cap", "∪": r"\cup",
    "∅": r"\emptyset", "∀": r"\forall", "∃": r"\exists", "¬": r"\neg", "∧": r"\wedge",
    "∨": r"\vee", "∑": r"\sum", "∏": r"\prod", "∫": r"\int", "∂": r"\partial", "∇": r"\nabla",
    "∘": r"\circ", "⊙": r"\odot", "⊗": r"\otimes", "⊕": r"\oplus", "⋅": r"\cdot", "∗": r"\ast",
    "‖": r"\Vert", "∥": r"\Vert", "⟨": r"\langle", "⟩": r"\rangle", "⌈": r"\lceil",
    "⌉": r"\rceil", "⌊": r"\lfloor", "⌋": r"\rfloor", "→": r"\to", "←": r"\leftarrow",
    "↔": r"\leftrightarrow", "⇒": r"\Rightarrow", "⇔": r"\Leftrightarrow", "↑": r"\uparrow",
    "↓": r"\downarrow", "′": "'", "″": "''", "ℓ": r"\ell", "µ": r"\mu",
    "½": r"{}^1\!/_2", "¼": r"{}^1\!/_4", "¾": r"{}^3\!/_4",
    # Greek letters that look like Latin ones have no command of their own.
    "Α": r"\mathrm{A}", "Β": r"\mathrm{B}", "Ε": r"\mathrm{E}", "Ζ": r"\mathrm{Z}",
    "Η": r"\mathrm{H}", "Ι": r"\mathrm{I}", "Κ": r"\mathrm{K}", "Μ": r"\mathrm{M}",
    "Ν": r"\mathrm{N}", "Ο": r"\mathrm{O}", "Ρ": r"\mathrm{P}", "Τ": r"\mathrm{T}",
    "Χ": r"\mathrm{X}", "ο": "o",
    "Γ": r"\Gamma", "Δ": r"\Delta", "Θ": r"\Theta", "Λ": r"\Lambda", "Ξ": r"\Xi", "Π": r"\Pi",
    "Σ": r"\Sigma", "Υ": r"\Upsilon", "Φ": r"\Phi", "Ψ": r"\Psi", "Ω": r"\Omega",
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon",
    "ϵ": r"\epsilon", "ζ": r"\zeta", "η": r"\eta", "θ": r"\theta", "ϑ": r"\vartheta",
    "ι": r"\iota", "κ": r"\kappa", "λ": r"\lambda", "μ": r"\mu", "ν": r"\nu", "ξ": r"\xi",
    "π": r"\pi", "ρ": r"\rho", "σ": r"\sigma", "ς": r"\varsigma", "τ": r"\tau",
    "υ": r"\upsilon", "φ": r"\varphi", "ϕ": r"\phi", "χ": r"\chi", "ψ": r"\psi", "ω": r"\omega",
}  # fmt: skip

_RAISED = zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni", strict=True)
_LOWERED = zip("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-", strict=True)
_IN_MATHS |= {sign: f"{{}}^{plain}" for sign, plain in _RAISED}
_IN_MATHS |= {sign: f"{{}}_{plain}" for sign, plain in _LOWERED}

KNOWN = _MARKS | {sign: f"${command}$" for sign, command in _IN_MATHS.items()}
_NOT_IN_OT1 = frozenset("ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ")


_BREAK = "\x1f"  # text on its way to TeX has no such character
_BREAKABLE = re.compile(r"(?<=[,/→])(?=\S)|(?<=[0-9]{8})(?=[0-9]{4})")


def printed(text: str) -> str:
    """TeX that prints this line as it is; a line may be broken after a comma, a stroke, an arrow
    and an underscore, and within a long number."""
    parted = _BREAKABLE.sub(_BREAK, text.replace(_BREAK, ""))
    return re.sub(r"(?<=-)-", "{}-", "".join(map(_printed, parted)))


def _printed(character: str) -> str:
    if character == _BREAK:
        return r"\allowbreak{}"
    if character in KNOWN:
        return KNOWN[character]
    if character.isascii() or ("À" <= character <= "ž" and character not in _NOT_IN_OT1):
        return character
    return f"U+{ord(character):04X}"
