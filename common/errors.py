"""Every refusal of Fedward, by name.

A refusal is an expected answer to bad input or to a rule, not a bug: it says in one sentence what is
wrong and what to do. Commands print it as ``Name: sentence`` on standard error and exit with code 1.
Its class name is its public name: it may travel in messages and logs, so it never carries private data.
"""


class Refusal(Exception):
    """Base of all refusals; raise a subclass with one sentence that says what is wrong and what to do."""

    @property
    def name(self) -> str:
        """The refusal's public name."""
        return type(self).__name__


class DatasetRefused(Refusal):
    """A data set cannot be read, or does not have MedMNIST's layout."""


class UnknownName(Refusal):
    """A data set, student, partition, codec or engine that does not exist; the sentence lists what does."""


class SettingRefused(Refusal):
    """A study setting is out of range or contradicts another."""


class PayloadRefused(Refusal):
    """A packed update or model is truncated, malformed, too large, or of another shape."""


class UpdateRefused(Refusal):
    """A hospital's reply fails screening: not finite, too large, wrong study, round or sender."""


class RequestRefused(Refusal):
    """A coordinator's request that this hospital does not answer."""


class ReplicaUnknown(RequestRefused):
    """A model came as the difference to one that this hospital does not hold: it is asked for in full."""


class PolicyRefused(RequestRefused):
    """A rule of the hospital's site policy forbids what was asked; the sentence names the rule."""


class ApprovalMissing(PolicyRefused):
    """A new study waits for the hospital's administrator, or asks for other settings than were approved."""


class QuorumMissed(Refusal):
    """Fewer hospitals replied usably than the study's quorum asks for."""


class CheckpointRefused(Refusal):
    """A checkpoint is missing, damaged, or of another study."""


class BudgetRefused(Refusal):
    """The privacy budget does not cover what was asked."""


class LedgerRefused(Refusal):
    """A ledger does not verify."""


class OutputRefused(Refusal):
    """The output folder cannot be used: not writable, full, or holding another run."""


class TrustRefused(Refusal):
    """The trust file or the signing keys are missing, damaged, or not what is asked for."""


class EnvelopeRefused(Refusal):
    """A message's envelope is malformed, changed, cut, too large, or does not open."""


class SenderRefused(EnvelopeRefused):
    """A message signed with a key that is unknown here, rotated out, or another sender's."""


class EnvelopeMisdirected(EnvelopeRefused):
    """A message for another receiver, study, round or kind than the one expected."""


class EnvelopeExpired(EnvelopeRefused):
    """A message past its expiry, or one that asks to be believed for too long."""


class EnvelopeReplayed(EnvelopeRefused):
    """A message whose number came before, or that came after a later one."""


class BundleRefused(Refusal):
    """A release bundle is incomplete, malformed, expired, or holds what it must not."""


class SignatureRefused(BundleRefused):
    """A release bundle's signatures do not verify against the trust file."""


class GoldenRefused(BundleRefused):
    """A verified model does not reproduce its golden outputs on this machine."""


class ImageRefused(Refusal):
    """An image cannot be read, or cannot be shown to this student."""


class TeacherRefused(Refusal):
    """The public teacher is not installed, or its weights are not the known ones."""


class StartRefused(Refusal):
    """A file to start a study from is damaged, was changed, or is of another student."""


class EngineFailed(Refusal):
    """A simulation engine that Fedward starts (Flower, Ray) did not start or did not finish."""


class EgressRefused(Refusal):
    """A message holds a field that has no class, or private data without a charge; nothing was sent."""


class EnrolmentRefused(Refusal):
    """A request to join, an answer to one, or a federation's own records are not what they must be."""


class RoleRefused(Refusal):
    """This person does not have the role that a command asks for."""


class GatewayFailed(Refusal):
    """nginx is missing, does not accept its configuration, or does not start or stop."""
