"""Words of the contract that the SDK's results use: classes and verdicts of latents, roles of tokens."""

from crosscope_proto.artefacts import ExampleGroup as ExampleGroup
from crosscope_proto.artefacts import LatentClass as LatentClass
from crosscope_proto.roles import BASE as BASE
from crosscope_proto.roles import CHAT as CHAT
from crosscope_proto.roles import LeftOut as LeftOut
from crosscope_proto.roles import TokenRole as TokenRole
from crosscope_proto.verdict import Judgement as Judgement
from crosscope_proto.verdict import SpecificTo as SpecificTo
from crosscope_proto.verdict import Verdict as Verdict
