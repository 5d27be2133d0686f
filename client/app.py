"""The hospital's Flower ClientApp: bytes in, bytes out; refusals leave by name, exceptions never as text.

In a simulation the node's state folder is ``<study folder>/hospitals/<partition-id>``.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedward.client.hospital import Hospital, open_hospital
from fedward.common.errors import BudgetRefused, PayloadRefused, Refusal, RequestRefused, SettingRefused
from fedward.common.files import canonical_json
from fedward.common.messages import CONFIG, TrainRequest, refusal_reply

STUDY_FOLDER = "study-folder"
_log = logging.getLogger(__name__)
# The refusals whose sentences are about the request and the budget only, and so may leave.
_PUBLIC = (BudgetRefused, PayloadRefused, RequestRefused, SettingRefused)

app = ClientApp()


def _folder(context: Context) -> Path:
    return (
        Path(str(context.run_config[STUDY_FOLDER])) / "hospitals" / str(context.node_config["partition-id"])
    )


def _answer(message: Message, context: Context, content: Callable[[Hospital], RecordDict]) -> Message:
    try:
        return Message(content(open_hospital(_folder(context))), reply_to=message)
    except Refusal as refusal:
        if isinstance(refusal, _PUBLIC) and str(context.run_config[STUDY_FOLDER]) not in str(refusal):
            return refusal_reply(refusal, message)
        # Its sentence may name a file, or what stands in one; its name alone is public.
        _log.error("%s: %s", refusal.name, refusal)
        return refusal_reply(type(refusal)("The hospital cannot answer; see its own log."), message)
    except Exception:
        # The text of an unexpected exception may hold private values: it stays in the local log.
        _log.exception("a round failed")
        return refusal_reply(
            RequestRefused("The hospital's round failed; see the hospital's own log."), message
        )


@app.query()
def enrol(message: Message, context: Context) -> Message:
    """Reply with the hospital's public name and declared count."""

    def content(hospital: Hospital) -> RecordDict:
        public = {"name": hospital.profile.name, "num_examples": hospital.profile.num_examples}
        return RecordDict({CONFIG: ConfigRecord({"profile": canonical_json(public)})})

    return _answer(message, context, content)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one round."""

    def content(hospital: Hospital) -> RecordDict:
        return hospital.answer(TrainRequest.from_records(message.content)).to_records()

    return _answer(message, context, content)
