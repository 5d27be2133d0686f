"""Every field that a hospital can send, and its class: the one place where these are declared.

- ``public``: known to the coordinator before, or telling nothing of any record to anybody;
- ``dp``: the output of a mechanism that was charged, named with its charge;
- ``consented``: leaves because the site agreed to it, for example by enrolling.
"""

from fedward.client.spending import DP_SGD
from fedward.common.letters import ENVELOPE
from fedward.common.measurement import FISHER, METRIC

PUBLIC, DP, CONSENTED = "public", "dp", "consented"
ENROL, TRAIN, MEASURE, REFUSAL, JOIN = "enrol", "train", "measure", "refusal", "join"

_NAME = "the name that the hospital chose for the study"
_SEAL = "a seal on the budget's ledger, which only this hospital can read: to others it is random digits"
_COUNT = "the number of images that the hospital declared: rounded up to tens, and frozen"
_ENVELOPE = (
    "the envelope: who writes to whom about which study and round, under which number and until when, with "
    "this site's signatures, and random digits"
)

# (kind of message, field) -> (class, why it may leave, in words for a data protection officer)
FIELDS: dict[tuple[str, str], tuple[str, str]] = {
    (ENROL, "profile.name"): (CONSENTED, _NAME),
    (ENROL, "profile.num_examples"): (CONSENTED, _COUNT),
    (TRAIN, "reply.study"): (PUBLIC, "the study's name, as the coordinator asked"),
    (TRAIN, "reply.round"): (PUBLIC, "the round's number, as the coordinator asked"),
    (TRAIN, "reply.codec"): (PUBLIC, "the format of the update, as the coordinator asked"),
    (TRAIN, "reply.hospital"): (CONSENTED, _NAME),
    (TRAIN, "reply.num_examples"): (CONSENTED, _COUNT),
    (TRAIN, "reply.anchor"): (PUBLIC, _SEAL),
    (TRAIN, "reply.replica"): (PUBLIC, "the fingerprint of the model that the coordinator sent"),
    (TRAIN, "update.latents"): (DP, "the model's change, with noise that hides any one image"),
    (MEASURE, "reply.study"): (PUBLIC, "the study's name, as the coordinator asked"),
    (MEASURE, "reply.round"): (PUBLIC, "the number behind the last round's, as the coordinator asked"),
    (MEASURE, "reply.hospital"): (CONSENTED, _NAME),
    (MEASURE, "reply.num_examples"): (CONSENTED, _COUNT),
    (MEASURE, "reply.anchor"): (PUBLIC, _SEAL),
    (MEASURE, "measured.metric"): (
        DP,
        "how often the finished model was right on the hospital's images: counts, with noise that hides any "
        "one image",
    ),
    (MEASURE, "measured.fisher"): (
        DP,
        "how much each part of the finished model matters on the hospital's images, with noise that hides "
        "any one image",
    ),
    (JOIN, "request.schema"): (PUBLIC, "the format of a request to join a federation"),
    (JOIN, "request.site"): (PUBLIC, "the name that the coordinator gave this site, once it had joined"),
    (JOIN, "request.name"): (CONSENTED, _NAME),
    (JOIN, "request.num_examples"): (CONSENTED, _COUNT),
    (JOIN, "request.made"): (CONSENTED, "when somebody asked to join or to renew"),
    (JOIN, "request.tls"): (PUBLIC, "a public key, for which a certificate is asked"),
    (JOIN, "request.node"): (PUBLIC, "a public key, of Flower's process here"),
    (JOIN, "request.signing"): (PUBLIC, "public keys, by which this site's signatures are known"),
    (REFUSAL, "error.code"): (PUBLIC, "that the hospital refused"),
    (REFUSAL, "error.reason"): (
        PUBLIC,
        "the refusal's name and a sentence about the request, the budget or the site's policy",
    ),
    **{(kind, ENVELOPE): (PUBLIC, _ENVELOPE) for kind in (ENROL, TRAIN, MEASURE, REFUSAL)},
}
# (kind of message, field of class ``dp``) -> the kind of the charge that pays for it
PAID_BY = {
    (TRAIN, "update.latents"): DP_SGD,
    (MEASURE, "measured.metric"): METRIC,
    (MEASURE, "measured.fisher"): FISHER,
}
WAIVED = "without noise: a simulation without privacy, on public data"
SEEDED = "the model's change, with noise from a seed: a simulation or a test, which protects nobody"
SEEDED_MEASUREMENT = "a measurement, with noise from a seed: a simulation or a test, which protects nobody"
