"""Checks messages against the rules in the .proto files. Knows nothing about what a message is for."""

from google.protobuf.message import Message

from crosscope_proto.rules import broken
from crosscope_server.errors import InvalidRequest, Violation


def check(message: Message) -> None:
    """Raises InvalidRequest, which names the fields that break a rule, their values and the rules."""
    if found := broken(message):
        raise InvalidRequest([Violation(field, sentence) for field, sentence in found])
