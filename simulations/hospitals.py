"""A synthetic federation of hospitals: shared disease mechanisms, and hospitals that differ as real ones do.

The structural model, for person p at hospital i (age A in years, sex S = 1 for a man, a = (A - 62) / 14;
every u is standard normal, once a person; z are severities in population standard deviations):

    metabolic     M = 0.30 a + 0.95 u_M
    inflammatory  I = u_I
    renal         R = 0.30 a + 0.20 M + 0.91 u_R
    cardiac       C = 0.25 a + 0.20 (S - 1/2) + 0.20 M + 0.15 R + 0.90 u_C
    at a second visit     z <- 0.8 z + 0.6 u
    measurement j         y_j = base_j + sum_m effect_jm g_j(z_m) + age_j a + sex_j (S - 1/2) + noise_j e_j
    at the bedside        y'_j = base_j + gain_ij (y_j - base_j) + offset_ij noise_j,   x_j = y'_j or exp y'_j
    diagnosis             D ~ Bernoulli(sigmoid(b_i + signal w_i.z / |w_i|))
                          w_im = mix_im - differential (1 - mix_im) / 3,   mix_i ~ Dirichlet(1 / case_mix)

g(z) is z, or log(1 + e^z) where an organ has a reserve and the value moves only when the disease is severe.
The equations of people and measurements (`MEASUREMENTS`) are the same everywhere. Hospitals differ in
the case mix: which mechanisms make the diagnosis that this hospital asks about, while the others, as in a
differential diagnosis, explain the patient's state and so speak against it; in the prevalence, by b_i; in
their people's age and sex; in the devices' gain and offset; in the coding: a laboratory that reports in
another unit, sex or the dyspnoea class counted the other way round; and in what is missing: at random, but
the sicker are measured more, and some tests are not done here at all.

The effects are of the size that a clinician would call plausible; they are not fitted to any patients.
Nothing learned here says anything about medicine.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from clinimeta.common.rng import derive_seed
from clinimeta.common.tasks.table import Records

MECHANISMS = ("cardiac", "renal", "inflammatory", "metabolic")
MEAN_AGE_YEARS, AGE_DEVIATION_YEARS, AGE_LIMITS_YEARS = 62.0, 14.0, (18.0, 95.0)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured column and its equation, in `unit`, or (but for `base`) its natural logarithm with `log`.

    `effects` are per severity of each of `MECHANISMS`, then per 14 years of age, then man minus woman;
    `noise` is a standard deviation. With `reserve` the value moves only when a disease is severe. `other`
    is the unit that some laboratories report, and what they divide by to get there.
    """

    name: str
    unit: str
    base: float
    effects: tuple[float, float, float, float, float, float]
    noise: float
    limits: tuple[float, float]
    decimals: int = 0
    log: bool = False
    reserve: bool = False
    other: tuple[str, float] | None = None


BEDSIDE = (
    Measurement("heart_rate", "1/min", 78, (4, 0, 7, 1, 0, 0), 9, (30, 220)),
    Measurement("systolic_pressure", "mmHg", 133, (-5, 5, -5, 8, 3, 0), 12, (60, 250)),
    Measurement("temperature", "degC", 36.4, (0, 0, 0.6, 0, 0, 0), 0.3, (34, 42), 1, reserve=True),
    Measurement("oxygen_saturation", "%", 98.5, (-1.5, 0, -1, 0, 0, 0), 1.2, (60, 100), reserve=True),
    # The New York Heart Association's class, 1 (no dyspnoea) to 4 (at rest), is its equation rounded.
    Measurement("dyspnoea_class", "NYHA", 2, (0.7, 0, 0.25, 0, 0.1, 0), 0.5, (1, 4)),
)
LABORATORY = (
    Measurement(
        name="creatinine",
        unit="umol/L",
        base=60,
        effects=(0, 0.4, 0, 0, 0, 0.2),
        noise=0.16,
        limits=(20, 1500),
        log=True,
        reserve=True,
        other=("mg/dL", 88.42),
    ),
    Measurement("urea", "mmol/L", 5.8, (0.1, 0.3, 0.05, 0, 0.05, 0), 0.22, (1, 80), 1, log=True),
    Measurement("potassium", "mmol/L", 4.2, (0, 0.22, 0, 0.04, 0, 0), 0.3, (2, 8), 1),
    Measurement("haemoglobin", "g/L", 135, (0, -7, -5, 0, -2, 12), 9, (40, 220), other=("g/dL", 10)),
    Measurement(
        "c_reactive_protein",
        "mg/L",
        7,
        (0, 0, 0.9, 0.15, 0, 0),
        0.5,
        (0.3, 350),
        1,
        True,
        other=("mg/dL", 10),
    ),
    Measurement(
        "glucose", "mg/dL", 108, (0, 0, 0.05, 0.22, 0, 0), 0.13, (40, 800), log=True, other=("mmol/L", 18.016)
    ),
    Measurement(
        "nt_probnp",
        "pg/mL",
        230,
        (0.8, 0.3, 0, 0, 0.3, 0),
        0.5,
        (5, 20000),
        log=True,
        other=("pmol/L", 8.457),
    ),
)
"""Where there is another unit, its numbers are the smaller ones: an export that forgot to convert shrinks
a column, as real ones do, but no value leaves the study's scale by an order of magnitude."""

MEASUREMENTS = BEDSIDE + LABORATORY
TARGET, PATIENT = "diagnosis", "patient_id"
COLUMNS = ("age", "sex", *(m.name for m in MEASUREMENTS))
"""The input columns, in order; `TARGET` ("0" or "1") and `PATIENT` stand beside them."""


@dataclass(frozen=True, slots=True)
class FederationSettings:
    """Every parameter of the generator; the six knobs at zero make all hospitals exchangeable.

    The knobs: `case_mix` is 1 / the Dirichlet's concentration (0: every mechanism counts the same everywhere;
    1: any mix is as likely as any other; 4: mostly one mechanism a hospital). `prevalence_spread` is the
    standard deviation between hospitals of the prevalence's logit. `population` is the standard deviation
    between hospitals of the mean age, in units of 6 years, and of the logit of the share of men, in
    units of 0.3. `shift` is the standard deviation of a device's offset, in units of the measurement's
    noise; a quarter of it is that of the logarithm of its gain. `coding` is the chance of each coding
    difference at a hospital (0 to 1). `missing` is the mean share of cells missing at random, and also the
    chance that a laboratory test is not done at a hospital (0 to 0.5).

    The rest: `differential` (0 to below 1) is how strongly the mechanisms that a hospital does not ask about
    speak against its diagnosis (0: not at all, so that whoever is sicker is likelier to have it anywhere).
    A hospital has a log-normal number of rows: `rows_median`, `rows_deviation` of the logarithm, cut to
    `rows_limits`. `revisits` is the share of people with two rows; `prevalence` that of the diagnosis at
    the typical hospital; `signal` is in logits per severity; `sicker_measured` in logits that the sum of a
    person's severities, halved, adds to the chance that a cell is filled.
    """

    sites: int = 32
    case_mix: float = 2.0
    prevalence_spread: float = 0.4
    population: float = 1.0
    shift: float = 0.5
    coding: float = 0.15
    missing: float = 0.08
    rows_median: float = 180.0
    rows_deviation: float = 0.4
    rows_limits: tuple[int, int] = (80, 400)
    revisits: float = 0.08
    prevalence: float = 0.35
    differential: float = 0.5
    signal: float = 2.5
    sicker_measured: float = 0.4

    def __post_init__(self) -> None:
        knobs = (self.case_mix, self.prevalence_spread, self.population, self.shift)
        shares = 0 <= self.coding <= 1 and 0 <= self.missing <= 0.5 and 0 <= self.differential < 1
        if self.sites < 1 or min(knobs) < 0 or not shares:
            raise ValueError(f"a parameter of the federation is out of its range: {self}")


@dataclass(frozen=True, slots=True)
class Traits:
    """What sets one hospital apart; `weights` are w_i / |w_i|, `offset` and `gain` are one a measurement."""

    rows: int
    weights: Float[np.ndarray, " mechanisms"]
    prevalence: float
    mean_age_years: float
    share_of_men: float
    offset: Float[np.ndarray, " measurements"]
    gain: Float[np.ndarray, " measurements"]
    recoded: frozenset[str]
    missing_share: float
    not_done: frozenset[str]


@dataclass(frozen=True, slots=True)
class Federation(Mapping[str, Records]):
    """The hospitals by name, each made when it is asked for and not kept."""

    settings: FederationSettings
    seed: int

    def __getitem__(self, name: str) -> Records:
        number = name.removeprefix("hospital-")
        index = int(number) - 1 if number.isdecimal() else -1
        if not 0 <= index < len(self) or name != self._name(index):
            raise KeyError(name)
        return hospital(self.settings, self.seed, index, name)

    def __iter__(self) -> Iterator[str]:
        return (self._name(index) for index in range(len(self)))

    def __len__(self) -> int:
        return self.settings.sites

    def _name(self, index: int) -> str:
        return f"hospital-{index + 1:0{max(2, len(str(len(self))))}d}"


def federation(settings: FederationSettings, seed: int) -> Mapping[str, Records]:
    """The federation of that seed: "hospital-01", ... -> its records, a function of (seed, number) only."""
    return Federation(settings, seed)


def traits(settings: FederationSettings, seed: int, index: int) -> Traits:
    """What sets hospital `index` (from 0) apart; each trait has its own stream, so a knob moves one alone."""

    def rng(purpose: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed("synthetic hospital", seed, index, purpose))

    count = len(MEASUREMENTS)
    mix = np.full(len(MECHANISMS), 1 / len(MECHANISMS))
    if settings.case_mix > 0:
        mix = rng("case mix").dirichlet(np.ones_like(mix) / settings.case_mix)
    weights = mix - settings.differential * (1 - mix) / (len(mix) - 1)
    rows = settings.rows_median * math.exp(settings.rows_deviation * rng("rows").standard_normal())
    logit = math.log(settings.prevalence / (1 - settings.prevalence))
    age, men = settings.population * rng("population").standard_normal(2)
    offset, gain = settings.shift * rng("devices").standard_normal((2, count))
    recodable = ("sex", "dyspnoea_class", *(m.name for m in MEASUREMENTS if m.other))
    recoded = rng("coding").random(len(recodable)) < settings.coding
    absent = rng("missing").random(1 + len(LABORATORY))
    return Traits(
        rows=int(np.clip(rows, *settings.rows_limits)),
        weights=weights / np.linalg.norm(weights),
        prevalence=float(_sigmoid(logit + settings.prevalence_spread * rng("prevalence").standard_normal())),
        mean_age_years=MEAN_AGE_YEARS + 6 * age,
        share_of_men=float(_sigmoid(0.3 * men)),
        offset=offset,
        gain=np.exp(gain / 4),
        recoded=frozenset(name for name, is_so in zip(recodable, recoded, strict=True) if is_so),
        missing_share=2 * settings.missing * float(absent[0]),
        not_done=frozenset(
            m.name for m, draw in zip(LABORATORY, absent[1:], strict=True) if draw < settings.missing
        ),
    )


def hospital(settings: FederationSettings, seed: int, index: int, name: str = "") -> Records:
    """The records of hospital `index` (from 0), whatever the number of hospitals."""
    here = traits(settings, seed, index)
    rng = np.random.default_rng(derive_seed("synthetic patients", seed, index))
    people = max(1, round(here.rows / (1 + settings.revisits)))
    person = np.concatenate([np.arange(people), np.arange(here.rows - people) % people])  # second visits
    age, sex, severity = _people(here, person, people, rng)
    standard_age = (age - MEAN_AGE_YEARS) / AGE_DEVIATION_YEARS
    measured = _measure(here, severity, standard_age, sex, rng)
    sick = _diagnose(settings, here, severity, rng)
    present = _present(settings, here, severity, rng)
    order = rng.permutation(here.rows)
    cells = {
        PATIENT: [f"P{p + 1:04d}" for p in person[order]],
        "age": [f"{value:.0f}" for value in age[order]],
        "sex": [f"{int(s) ^ ('sex' in here.recoded)}" for s in sex[order]],
    }
    for j, measurement in enumerate(MEASUREMENTS):
        values, decimals = _written(measurement, measured[:, j], measurement.name in here.recoded)
        cells[measurement.name] = [f"{values[r]:.{decimals}f}" if present[r, j] else "" for r in order]
    cells[TARGET] = [f"{int(d)}" for d in sick[order]]
    return Records(where=name or f"synthetic hospital {index + 1}", cells=cells)


def _people(
    here: Traits, person: Int[np.ndarray, " rows"], people: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " rows"], Bool[np.ndarray, " rows"], Float[np.ndarray, "rows mechanisms"]]:
    """Age in years, sex (True: a man) and severities; rows beyond the first of a person are later visits."""
    drawn = here.mean_age_years + AGE_DEVIATION_YEARS * rng.standard_normal(people)
    age = np.clip(np.round(drawn), *AGE_LIMITS_YEARS)
    sex = rng.random(people) < here.share_of_men
    a, u = (age - MEAN_AGE_YEARS) / AGE_DEVIATION_YEARS, rng.standard_normal((4, people))
    metabolic = 0.30 * a + 0.95 * u[0]
    inflammatory = u[1]
    renal = 0.30 * a + 0.20 * metabolic + 0.91 * u[2]
    cardiac = 0.25 * a + 0.20 * (sex - 0.5) + 0.20 * metabolic + 0.15 * renal + 0.90 * u[3]
    severity = np.stack([cardiac, renal, inflammatory, metabolic], axis=1)[person]
    later = np.arange(len(person)) >= people
    change = rng.standard_normal(severity.shape)
    severity = np.where(later[:, None], 0.8 * severity + 0.6 * change, severity)
    return age[person], sex[person], severity


def _measure(
    here: Traits,
    severity: Float[np.ndarray, "rows mechanisms"],
    standard_age: Float[np.ndarray, " rows"],
    sex: Bool[np.ndarray, " rows"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "rows measurements"]:
    """What this hospital's devices show, in each measurement's own unit."""
    columns = []
    for j, m in enumerate(MEASUREMENTS):
        disease = np.logaddexp(0, severity) if m.reserve else severity
        causes = np.column_stack([disease, standard_age, sex - 0.5])
        deviation = causes @ np.array(m.effects) + m.noise * rng.standard_normal(len(sex))
        base = math.log(m.base) if m.log else m.base
        shown = base + here.gain[j] * deviation + here.offset[j] * m.noise
        columns.append(np.clip(np.exp(shown) if m.log else shown, *m.limits))
    return np.stack(columns, axis=1)


def _diagnose(
    settings: FederationSettings,
    here: Traits,
    severity: Float[np.ndarray, "rows mechanisms"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, " rows"]:
    """Who has the diagnosis; b_i is where the mean chance over the rows is the hospital's prevalence."""
    logits = settings.signal * severity @ here.weights
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _sigmoid(logits + middle).mean() > here.prevalence else (middle, high)
    return rng.random(len(logits)) < _sigmoid(logits + low)


def _present(
    settings: FederationSettings,
    here: Traits,
    severity: Float[np.ndarray, "rows mechanisms"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, "rows measurements"]:
    """Which cells are filled: the sum of a person's severities, halved, raises the odds."""
    draws = rng.random((len(severity), len(MEASUREMENTS)))
    if settings.missing == 0:
        return np.ones_like(draws, dtype=bool)
    share = np.clip(here.missing_share, 1e-6, 1 - 1e-6)
    logits = np.log((1 - share) / share) + settings.sicker_measured * severity.sum(axis=1) / 2
    done = np.array([m.name not in here.not_done for m in MEASUREMENTS])
    present: Bool[np.ndarray, "rows measurements"] = (draws < _sigmoid(logits)[:, None]) & done
    return present


def _written(
    measurement: Measurement, values: Float[np.ndarray, " rows"], recoded: bool
) -> tuple[Float[np.ndarray, " rows"], int]:
    """Values and decimal places as this hospital writes them."""
    if not recoded:
        return values, measurement.decimals
    if measurement.other is None:  # the dyspnoea class, counted from "at rest" to "none"
        return sum(measurement.limits) - np.round(values), measurement.decimals
    _, divisor = measurement.other
    return values / divisor, measurement.decimals + round(math.log10(divisor))


def _sigmoid(logits: Float[np.ndarray, "..."] | float) -> Float[np.ndarray, "..."]:
    return np.asarray(1 / (1 + np.exp(np.negative(logits))))
