"""The sequence S20(n) = sum over k of C(n,k)^4 C(n+k,k), of which CY-Sieve's bias is the logarithm.

Its sibling S15 has the power 3 in place of 4. Source: xaviercallens/Mirror-Map-Sieve,
src/picard_fuchs/minimal_operator.json (the recurrence of S20); that of S15 is this project's own,
the only one of order 4 and degree 8 that its first 55 terms satisfy.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

# P_0 … P_4, coefficients ascending in n: sum over j of P_j(n) S20(n+j) = 0.
RECURRENCE: tuple[tuple[int, ...], ...] = (
    (
        -698827503360, -5502678799776, -19619444428416, -41922089292606, -59879592361155,
        -60369478755963, -44200247537106, -23801121795594, -9429707675712, -2716089324540,
        -553159064958, -75479057160, -6188917293, -230462361,
    ),
    (
        -846052269753600, -5532868382941920, -16556660879488928, -30012007177436894,
        -36761444179589385, -32126707298278818, -20606199948403839, -9820711443781882,
        -3477557072410390, -903613284556839, -167468366956203, -20963891132894, -1588819660695,
        -55063432993,
    ),
    (
        -277519882765920, -1681997842192584, -4659741954049164, -7814133099256906,
        -8851419391630559, -7153495812783439, -4244605360330637, -1872743330919213,
        -614551146955742, -148183325103510, -25526125026989, -2975530787671, -210426023069,
        -6819978757,
    ),
    (
        -14057086114080, -81905050745208, -217809479434476, -350049834345042, -379362007344115,
        -292792263556554, -165592275100561, -69496360052718, -21647606574318, -4944072722465,
        -804934364533, -88489060870, -5889093357, -179248503,
    ),
    (
        1144108892160, 6511533444096, 16866663351808, 26326886451328, 27628043650752,
        20586194968172, 11206331875618, 4513136788110, 1344957413815, 292994917119, 45364205464,
        4728561612, 297504303, 8535643,
    ),
)  # fmt: skip
ORDER = len(RECURRENCE) - 1
RECURRENCE_OF_S15: tuple[tuple[int, ...], ...] = (
    (
        16197568, 79397552, 164219952, 186916060, 128043764, 54137748, 13828668, 1956240, 117648,
    ),
    (
        -3877589056, -15134122800, -25489417240, -24186882348, -14138806222, -5213058102,
        -1183886292, -151422552, -8353008,
    ),
    (
        -3116435176, -11099435178, -17029441376, -14715627332, -7841655446, -2641270728,
        -549637656, -64657152, -3294144,
    ),
    (
        -735380568, -2485250406, -3608934608, -2943503056, -1475953964, -466276074, -90705516,
        -9942624, -470592,
    ),
    (
        68411328, 224197136, 314044644, 245731995, 117560213, 35238921, 6468819, 665532, 29412,
    ),
)  # fmt: skip


def recurrence_of(power: int) -> tuple[tuple[int, ...], ...]:
    """That of S20 (power 4) or S15 (power 3)."""
    return RECURRENCE if power == 4 else RECURRENCE_OF_S15


@cache
def direct(n: int, power: int = 4) -> int:
    """S20(n), or S15(n) with the power 3, by its definition."""
    return sum(math.comb(n, k) ** power * math.comb(n + k, k) for k in range(n + 1))


def polynomial(coefficients: tuple[int, ...], n: int) -> int:
    """Its value at n; coefficients ascend."""
    total = 0
    for coefficient in reversed(coefficients):
        total = total * n + coefficient
    return total


def by_recurrence(count: int, power: int = 4) -> list[int]:
    """S(0) … S(count - 1) in whole numbers; a step that leaves a rest is rounded down."""
    recurrence = recurrence_of(power)
    values = [direct(n, power) for n in range(ORDER)]
    for n in range(count - ORDER):
        known = sum(polynomial(recurrence[j], n) * values[n + j] for j in range(ORDER))
        values.append(-known // polynomial(recurrence[ORDER], n))
    return values[:count]


def log_growth_by_polynomial(power: int = 4) -> float:
    """The logarithm of the largest root of the recurrence's leading coefficients."""
    roots = np.roots([coefficients[-1] for coefficients in reversed(recurrence_of(power))])
    return math.log(max(abs(root) for root in roots))


def saddle(power: int = 4) -> float:
    """Where a term C(n,k)^power C(n+k,k) is greatest as n grows, k = x n: by bisection."""
    low, high = 1e-9, 1 - 1e-9
    for _ in range(200):
        middle = (low + high) / 2
        slope = power * math.log((1 - middle) / middle) + math.log((1 + middle) / middle)
        low, high = (middle, high) if slope > 0 else (low, middle)
    return (low + high) / 2


def log_growth_by_saddle(power: int = 4) -> float:
    """The largest exponent of a term C(n,k)^power C(n+k,k) as n grows."""
    x = saddle(power)
    entropy = -x * math.log(x) - (1 - x) * math.log(1 - x)
    return power * entropy + (1 + x) * math.log(1 + x) - x * math.log(x)


def modulo(count: int, modulus: int, power: int = 4) -> npt.NDArray[np.int64]:
    """S(0) … S(count - 1) modulo a number, by Pascal's rows; [count]."""
    pascal = np.zeros((2 * count, count), dtype=np.int64)
    pascal[:, 0] = 1 % modulus
    for n in range(1, 2 * count):
        pascal[n, 1:] = (pascal[n - 1, 1:] + pascal[n - 1, :-1]) % modulus
    raised = np.ones_like(pascal[:count])
    for _ in range(power):
        raised = raised * pascal[:count] % modulus
    found = np.zeros(count, dtype=np.int64)
    for n in range(count):
        k = np.arange(n + 1)
        found[n] = np.sum(raised[n, : n + 1] * pascal[n + k, k] % modulus) % modulus
    return found
