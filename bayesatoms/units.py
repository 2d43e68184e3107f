"""Physical constants and the conversion of couplings from kT to energies.

Couplings are in units of kT at the temperature at which the configuration froze in; only when
that temperature is known can they be turned into energies.
"""

from __future__ import annotations

from .errors import InputError

BOLTZMANN_EV = 8.617333e-5  # eV / K
BOLTZMANN_KJ_MOL = 8.314463e-3  # kJ / (mol K)

_PER_KELVIN = {"K": 1.0, "eV": BOLTZMANN_EV, "meV": 1e3 * BOLTZMANN_EV, "kJ/mol": BOLTZMANN_KJ_MOL}


def to_energy(coupling: float, temperature: float, unit: str = "eV") -> float:
    """Convert a coupling in kT to an energy at a formation temperature.

    Parameters
    ----------
    coupling : float
        Coupling in units of kT.
    temperature : float
        Formation temperature in K, > 0.
    unit : {"eV", "meV", "kJ/mol", "K"}
        Unit of the result.

    Returns
    -------
    float
        The energy per occurrence of the term.

    Raises
    ------
    InputError
        If the temperature is not positive or the unit is unknown.

    Examples
    --------
    >>> round(to_energy(1.0, 1000.0, "eV"), 6)
    0.086173
    >>> round(to_energy(0.198, 1000.0, "kJ/mol"), 2)
    1.65
    """
    if unit not in _PER_KELVIN:
        raise InputError(f"unit {unit!r} is unknown; expected one of {', '.join(_PER_KELVIN)}")
    if not temperature > 0:
        raise InputError(f"temperature is {temperature} K; expected a number above 0")
    return coupling * temperature * _PER_KELVIN[unit]
