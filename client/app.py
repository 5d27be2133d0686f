"""The hospital's Flower ClientApp: bytes in, bytes out, and every byte out through the gate.

The hospital's daemon names its state folder in the node's configuration, which is the hospital's own; in a
simulation the folder is ``<study folder>/hospitals/<partition-id>``.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedward.client.egress import open_gate, unlogged
from fedward.client.egress_fields import ENROL, MEASURE, TRAIN
from fedward.client.hospital import Hospital, open_hospital
from fedward.client.letters import Letter, open_letter
from fedward.client.spending import Charge
from fedward.common.errors import Refusal, RequestRefused
from fedward.common.files import canonical_json
from fedward.common.measure_messages import MeasureRequest
from fedward.common.messages import CONFIG, TrainRequest
from fedward.common.thin_app import STUDY_FOLDER

STATE_FOLDER = "state-folder"
_log = logging.getLogger(__name__)

Req = TypeVar("Req", TrainRequest, MeasureRequest)
Answered = tuple[RecordDict, tuple[Charge, ...]]
Answer = Callable[[Hospital, RecordDict, Letter | None], Answered]

app = ClientApp()


def _folder(context: Context) -> Path:
    if STATE_FOLDER in context.node_config:
        return Path(str(context.node_config[STATE_FOLDER]))
    return (
        Path(str(context.run_config[STUDY_FOLDER])) / "hospitals" / str(context.node_config["partition-id"])
    )


def _answer(kind: str, message: Message, context: Context, answer: Answer) -> Message:
    try:
        folder = _folder(context)
        gate = open_gate(folder)
    except Exception:
        _log.exception("the record of what leaves cannot be opened")
        return unlogged(message)
    letter = None
    try:
        letter = open_letter(folder, message)
        hospital = open_hospital(folder)
        question = message.content if letter is None else letter.content
        content, charges = answer(hospital, question, letter)
        return gate.release(kind, content, message, charges, hospital.remark, letter)
    except Refusal as refusal:
        private = (str(folder), str(context.run_config.get(STUDY_FOLDER, folder)))
        return gate.refuse(refusal, message, private, letter)
    except Exception:
        # The text of an unexpected exception may hold private values: it stays in the local log.
        _log.exception("a round failed")
        failed = RequestRefused("The hospital's round failed; see the hospital's own log.")
        return gate.refuse(failed, message, letter=letter)


def _as_enclosed(request: Req, letter: Letter | None) -> Req:
    """The request, which is about what its envelope says, if it has one."""
    if letter is not None:
        letter.require(request.study, request.server_round)
    return request


def _profile(hospital: Hospital, question: RecordDict, letter: Letter | None) -> Answered:
    return RecordDict({CONFIG: ConfigRecord({"profile": canonical_json(hospital.enrolment)})}), ()


def _update(hospital: Hospital, question: RecordDict, letter: Letter | None) -> Answered:
    reply = hospital.answer(_as_enclosed(TrainRequest.from_records(question), letter))
    return reply.to_records(), hospital.charges_of(reply)


def _measurement(hospital: Hospital, question: RecordDict, letter: Letter | None) -> Answered:
    reply = hospital.measure(_as_enclosed(MeasureRequest.from_records(question), letter))
    return reply.to_records(), hospital.charges_of(reply)


@app.query()
def enrol(message: Message, context: Context) -> Message:
    """Reply with the hospital's public name and declared count."""
    return _answer(ENROL, message, context, _profile)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one round."""
    return _answer(TRAIN, message, context, _update)


@app.query("measure")
def measure(message: Message, context: Context) -> Message:
    """Answer the measurement behind the last round."""
    return _answer(MEASURE, message, context, _measurement)
