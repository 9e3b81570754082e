"""Words of the contract that the SDK's results use: classes and roles of latents and tokens."""

from crosscope_proto.artefacts import ExampleGroup as ExampleGroup
from crosscope_proto.artefacts import LatentClass as LatentClass
from crosscope_proto.roles import BASE as BASE
from crosscope_proto.roles import CHAT as CHAT
from crosscope_proto.roles import LeftOut as LeftOut
from crosscope_proto.roles import TokenRole as TokenRole
