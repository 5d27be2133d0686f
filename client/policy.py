"""What a hospital allows whoever asks: its own rules, which no coordinator can change.

Each rule is a field of `Policy` and a key of ``hospital.toml`` (`fedward.client.policy_file`). A request that
a rule forbids is refused with the rule's name and limit, before anything is computed or charged. A rule that
is left out forbids nothing; the budget, and what the hospital's data are, bind beside the policy.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from fedward.client.charging import Request
from fedward.client.egress_fields import CONSENTED, FIELDS, MEASURE, TRAIN
from fedward.client.hours import Hours
from fedward.common.codec import CODECS
from fedward.common.config import LocalSettings
from fedward.common.digests import is_digest
from fedward.common.errors import ApprovalMissing, PolicyRefused
from fedward.common.files import canonical_json
from fedward.common.measurement import measurements
from fedward.common.mechanisms import Mechanism
from fedward.common.messages import TrainRequest
from fedward.common.models import STUDENTS
from fedward.common.privacy import within

CONSENTABLE = tuple(sorted(name for (_, name), (kind, _) in FIELDS.items() if kind == CONSENTED))
# rule -> (least, most) that it may be set to
_RANGES: dict[str, tuple[float, float]] = {
    "max_round_epsilon": (1e-6, 1e3),
    "max_study_epsilon": (1e-6, 1e3),
    "max_delta": (1e-12, 1e-2),
    "min_noise_multiplier": (1e-6, 1e6),
    "max_noise_multiplier": (1e-6, 1e6),
    "max_rounds": (1, 100_000),
    "max_local_steps": (1, 1000),
    "max_studies": (1, 1000),
}
_CHOICES = {"students": STUDENTS, "codecs": tuple(CODECS), "consented_fields": CONSENTABLE}


@dataclass(frozen=True)
class Policy:
    """A hospital's rules; None allows whatever else binds.

    Attributes:
        max_round_epsilon: the most that one round may cost alone, at the study's delta.
        max_study_epsilon: the most that all rounds of a study may cost together, at its delta.
        max_delta: a larger delta makes any epsilon look small.
        min_noise_multiplier: the least sigma.
        max_noise_multiplier: the most: at a huge sigma a study costs no budget and only burns time.
        max_rounds, max_local_steps: of one study.
        max_studies: so many that have begun and not ended.
        students, codecs: that may be trained, and asked for in either direction.
        hours: when a round may begin; one that has begun ends.
        time_zone: of `hours`, an IANA name; None is this machine's own.
        approval: whether a new study waits for `fedward hospital approve STUDY`.
        bundles: SHA-256 of the app bundles that may be run for, in hex.
        consented_fields: names of fields of the class ``consented`` that may leave.
    """

    max_round_epsilon: float | None = None
    max_study_epsilon: float | None = None
    max_delta: float | None = None
    min_noise_multiplier: float | None = None
    max_noise_multiplier: float | None = None
    max_rounds: int | None = None
    max_local_steps: int | None = None
    max_studies: int | None = None
    students: tuple[str, ...] | None = None
    codecs: tuple[str, ...] | None = None
    hours: tuple[Hours, ...] | None = None
    time_zone: str | None = None
    approval: bool = False
    bundles: tuple[str, ...] | None = None
    consented_fields: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            PolicyRefused: a value is out of range, unknown, contradicts another, or forbids everything.
        """
        for rule in _RANGES:
            _require_range(rule, getattr(self, rule))
        for rule in ("students", "codecs", "hours", "bundles", "consented_fields"):
            if getattr(self, rule) == ():
                raise PolicyRefused(
                    f"The policy's {rule} is empty and so forbids everything: name what is allowed, or leave "
                    "the rule out to allow all."
                )
        for rule, choices in _CHOICES.items():
            _require_known(rule, getattr(self, rule), choices)
        if not all(map(is_digest, self.bundles or ())):
            raise PolicyRefused("The policy's bundles are SHA-256 digests in 64 hexadecimal digits each.")
        if (self.min_noise_multiplier or 0.0) > (self.max_noise_multiplier or 1e6):
            raise PolicyRefused(
                "The policy's min_noise_multiplier is above its max_noise_multiplier, which forbids "
                "everything: raise the one or lower the other."
            )

    def check(
        self,
        request: Request,
        now: datetime,
        *,
        open_studies: Collection[str] = (),
        approved: Mapping[str, str] | None = None,
    ) -> None:
        """Refuse what a rule forbids; nothing is written and no private value read.

        Args:
            request: of a round that was not answered yet.
            now: with its time zone.
            open_studies: names of studies that have begun here and not ended.
            approved: digest of the approved settings (`settings_digest`) by study.

        Raises:
            PolicyRefused: naming the first rule that forbids it.
            ApprovalMissing: that rule is `approval`.
            ValueError: `now` has no time zone.
        """
        self._check_limits(request.settings)
        self._check_choices(request)
        self.require_fields(TRAIN if isinstance(request, TrainRequest) else MEASURE)
        self._check_epsilon(request.settings)
        self._check_open(request.study, open_studies)
        self._check_approval(request, approved or {})
        self._check_hours(now)

    def require_fields(self, kind: str) -> None:
        """Refuse a kind of message that has a field to which the site did not consent.

        Raises:
            PolicyRefused: naming the field.
        """
        needed = [
            name for (message, name), (how, _) in FIELDS.items() if message == kind and how == CONSENTED
        ]
        missing = sorted(
            set(needed) - set(needed if self.consented_fields is None else self.consented_fields)
        )
        if missing:
            raise _forbidden("consented_fields", f"does not let {', '.join(missing)} leave")

    def require_bundle(self, sha256: str) -> None:
        """Refuse an app bundle that the site did not approve.

        Raises:
            PolicyRefused: it is not listed.
        """
        if self.bundles is not None and sha256 not in self.bundles:
            raise _forbidden("bundles", f"does not list the bundle {sha256[:64]}")

    def _check_limits(self, settings: LocalSettings) -> None:
        least, most = self.min_noise_multiplier, self.max_noise_multiplier
        measured = [mechanism.noise_multiplier for mechanism in measurements(settings).values()]
        if least is not None and (lowest := min([settings.noise_multiplier, *measured])) < least:
            raise _forbidden("min_noise_multiplier", f"is {least:g}; the study asks for {lowest:g}")
        limits = {
            "max_noise_multiplier": (max([settings.noise_multiplier, *measured]), most),
            "max_delta": (settings.target_delta, self.max_delta),
            "max_rounds": (settings.rounds, self.max_rounds),
            "max_local_steps": (settings.local_steps, self.max_local_steps),
        }
        for rule, (asked, limit) in limits.items():
            if limit is not None and asked > limit:
                raise _forbidden(rule, f"is {limit:g}; the study asks for {asked:g}")

    def _check_choices(self, request: Request) -> None:
        codecs = request.codec if isinstance(request, TrainRequest) else ()
        asked = {"students": (request.settings.student,), "codecs": codecs}
        for rule, names in asked.items():
            allowed = getattr(self, rule)
            if allowed is not None and not set(names) <= set(allowed):
                raise _forbidden(rule, f"allows {', '.join(allowed)}; the study asks for {', '.join(names)}")

    def _check_epsilon(self, settings: LocalSettings) -> None:
        steps, behind = settings.local_steps, tuple(measurements(settings).values())
        spans = (
            ("max_round_epsilon", self.max_round_epsilon, (steps, ()), "one round"),
            ("max_round_epsilon", self.max_round_epsilon, (0, behind), "its measurement"),
            ("max_study_epsilon", self.max_study_epsilon, (steps * settings.rounds, behind), "all of it"),
        )
        for rule, limit, spent, what in spans:
            if limit is not None and not _costs_within(settings, *spent, limit):
                raise _forbidden(
                    rule, f"is {limit:g} at delta {settings.target_delta:g}; {what} would cost more"
                )

    def _check_open(self, study: str, open_studies: Collection[str]) -> None:
        if (
            self.max_studies is not None
            and study not in open_studies
            and len(open_studies) >= self.max_studies
        ):
            raise _forbidden(
                "max_studies",
                f"is {self.max_studies}, and as many are going on: ask again when one has ended",
            )

    def _check_hours(self, now: datetime) -> None:
        if now.tzinfo is None:
            raise ValueError("the time has no time zone")
        if self.hours is None:
            return
        local = now.astimezone(None if self.time_zone is None else ZoneInfo(self.time_zone))
        if not any(window.hold(local) for window in self.hours):
            raise _forbidden(
                "hours",
                f"is {'; '.join(window.text for window in self.hours)} "
                f"({self.time_zone or 'local time'}): ask again then",
            )

    def _check_approval(self, request: Request, approved: Mapping[str, str]) -> None:
        if not self.approval or approved.get(request.study) == settings_digest(request):
            return
        if request.study in approved and not isinstance(request, TrainRequest):
            return  # what it may ask was approved with the rounds, and the plan holds it to that
        if request.study in approved:
            why = "was followed for this study with other settings: ask as before, or wait for it again"
        else:
            why = "makes a new study wait for the hospital's administrator: ask again later"
        raise ApprovalMissing(f"This hospital's rule approval {why}.")


def settings_digest(request: Request) -> str:
    """SHA-256, in hex, of all that a study does not change from round to round: what is approved."""
    fixed = {
        "study": request.study,
        "settings": request.settings.to_dict(),
        "codec": list(request.codec) if isinstance(request, TrainRequest) else [],
    }
    return hashlib.sha256(canonical_json(fixed)).hexdigest()


def _costs_within(settings: LocalSettings, steps: int, others: tuple[Mechanism, ...], limit: float) -> bool:
    if settings.noise_multiplier == 0.0:
        return False
    mechanism = Mechanism(settings.noise_multiplier, settings.sample_rate, steps)
    return within([mechanism, *others], settings.target_delta, limit)


def _forbidden(rule: str, why: str) -> PolicyRefused:
    return PolicyRefused(f"This hospital's rule {rule} {why}.")


def _require_range(rule: str, value: float | None) -> None:
    low, high = _RANGES[rule]
    if value is not None and not low <= value <= high:
        raise PolicyRefused(f"The policy's {rule} must be from {low:g} to {high:g}, not {value:g}.")


def _require_known(rule: str, names: tuple[str, ...] | None, choices: tuple[str, ...]) -> None:
    if unknown := sorted(set(names or ()) - set(choices)):
        raise PolicyRefused(
            f"The policy's {rule} names {unknown[0][:40]!r}, which does not exist; there are "
            f"{', '.join(choices)}."
        )
