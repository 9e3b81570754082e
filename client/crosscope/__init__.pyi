"""The public names: the one list of them, which type checkers and `__init__` read."""

from ._annotations import Annotation as Annotation
from ._annotations import AnnotationExport as AnnotationExport
from ._annotations import AnnotationList as AnnotationList
from ._annotations import Change as Change
from ._annotations import History as History
from ._annotations import ImportReport as ImportReport
from ._annotations import LatentName as LatentName
from ._annotations import NamedList as NamedList
from ._annotations import SkippedWords as SkippedWords
from ._annotations import Words as Words
from ._answers import Answer as Answer
from ._answers import NewToken as NewToken
from ._arms import Arm as Arm
from ._async.annotations import AsyncAnnotations as AsyncAnnotations
from ._async.client import AsyncClient as AsyncClient
from ._async.columns import (
    AsyncColumn as AsyncColumn,
)
from ._async.columns import (
    AsyncColumns as AsyncColumns,
)
from ._async.crosscoder import (
    AsyncCrosscoder as AsyncCrosscoder,
)
from ._async.crosscoder import (
    AsyncLatent as AsyncLatent,
)
from ._async.crosscoder import (
    AsyncLatentList as AsyncLatentList,
)
from ._async.generation import AsyncGeneration as AsyncGeneration
from ._async.jobs import (
    AsyncJob as AsyncJob,
)
from ._async.jobs import (
    AsyncJobs as AsyncJobs,
)
from ._async.looks import AsyncLook as AsyncLook
from ._async.pair import AsyncPair as AsyncPair
from ._attribution import AttributedLatent as AttributedLatent
from ._attribution import Attribution as Attribution
from ._behaviours import BehaviourLatents as BehaviourLatents
from ._behaviours import BehaviourRates as BehaviourRates
from ._behaviours import Probe as Probe
from ._behaviours import Rate as Rate
from ._both import BothAttributions as BothAttributions
from ._both import LatentEffect as LatentEffect
from ._both import LatentInBoth as LatentInBoth
from ._capabilities import CallerStatus as CallerStatus
from ._capabilities import Capabilities as Capabilities
from ._capabilities import DeviceMemory as DeviceMemory
from ._capabilities import InferenceWorker as InferenceWorker
from ._capabilities import JobWorker as JobWorker
from ._capabilities import PartState as PartState
from ._capabilities import Problem as Problem
from ._capabilities import QueueStatus as QueueStatus
from ._capabilities import RequestLimits as RequestLimits
from ._capabilities import RunningJob as RunningJob
from ._capabilities import StoreStatus as StoreStatus
from ._capabilities import Traffic as Traffic
from ._comparison import Comparison as Comparison
from ._comparison import ModelPredictions as ModelPredictions
from ._comparison import NextToken as NextToken
from ._comparison import NextTokens as NextTokens
from ._connection import Tls as Tls
from ._contrast import Contrast as Contrast
from ._contrast import ContrastLatent as ContrastLatent
from ._contrast import ContrastPlace as ContrastPlace
from ._encoding import (
    Encoding as Encoding,
)
from ._encoding import (
    LatentActivation as LatentActivation,
)
from ._encoding import (
    TopLatent as TopLatent,
)
from ._encoding import (
    TopLatents as TopLatents,
)
from ._errors import (
    Busy as Busy,
)
from ._errors import (
    Conflict as Conflict,
)
from ._errors import (
    CrosscopeError as CrosscopeError,
)
from ._errors import (
    DeadlineExceeded as DeadlineExceeded,
)
from ._errors import (
    FieldViolation as FieldViolation,
)
from ._errors import (
    InvalidInput as InvalidInput,
)
from ._errors import (
    JobCancelled as JobCancelled,
)
from ._errors import (
    JobFailed as JobFailed,
)
from ._errors import (
    NotFound as NotFound,
)
from ._errors import (
    ServerError as ServerError,
)
from ._errors import (
    StaleWrite as StaleWrite,
)
from ._errors import (
    Unauthorized as Unauthorized,
)
from ._errors import (
    Unavailable as Unavailable,
)
from ._errors import (
    VersionGone as VersionGone,
)
from ._examples import (
    Example as Example,
)
from ._examples import (
    ExampleList as ExampleList,
)
from ._explained_looks import ExplainedFinding as ExplainedFinding
from ._explained_looks import ExplainedLook as ExplainedLook
from ._explanation import ExplainedLatent as ExplainedLatent
from ._explanation import Explanation as Explanation
from ._findings import Continuation as Continuation
from ._findings import Finding as Finding
from ._findings import FirstDifference as FirstDifference
from ._findings import LookGroup as LookGroup
from ._findings import LookLayer as LookLayer
from ._findings import LookText as LookText
from ._groups import LatentGroup as LatentGroup
from ._groups import LatentGroupList as LatentGroupList
from ._latents import LatentStatistics as LatentStatistics
from ._looks import LookInfo as LookInfo
from ._matches import LatentMatches as LatentMatches
from ._matches import MatchCount as MatchCount
from ._matches import MatchedSide as MatchedSide
from ._plan_types import DevicePlan as DevicePlan
from ._plan_types import DiskPlan as DiskPlan
from ._plan_types import Download as Download
from ._plan_types import JobLog as JobLog
from ._plan_types import LogLine as LogLine
from ._plan_types import Plan as Plan
from ._plan_types import PlanEntry as PlanEntry
from ._search import SearchCount as SearchCount
from ._search import SearchMatch as SearchMatch
from ._search import SearchPlace as SearchPlace
from ._search import SearchResult as SearchResult
from ._search import SearchResults as SearchResults
from ._steering import Steer as Steer
from ._sync.annotations import Annotations as Annotations
from ._sync.client import Client as Client
from ._sync.columns import (
    Column as Column,
)
from ._sync.columns import (
    Columns as Columns,
)
from ._sync.crosscoder import (
    Crosscoder as Crosscoder,
)
from ._sync.crosscoder import (
    Latent as Latent,
)
from ._sync.crosscoder import (
    LatentList as LatentList,
)
from ._sync.generation import Generation as Generation
from ._sync.jobs import (
    Job as Job,
)
from ._sync.jobs import (
    Jobs as Jobs,
)
from ._sync.looks import Look as Look
from ._sync.pair import Pair as Pair
from ._tagged import (
    TaggedSets as TaggedSets,
)
from ._tagged import (
    tagged_sets as tagged_sets,
)
from ._transcripts import Transcript as Transcript
from ._transcripts import turns_from_text as turns_from_text
from ._types import (
    CoActive as CoActive,
)
from ._types import (
    CrosscoderInfo as CrosscoderInfo,
)
from ._types import (
    Detector as Detector,
)
from ._types import (
    Estimate as Estimate,
)
from ._types import (
    JobEvent as JobEvent,
)
from ._types import (
    JobInfo as JobInfo,
)
from ._types import (
    JobState as JobState,
)
from ._types import (
    JobUpdate as JobUpdate,
)
from ._types import (
    LatentScaling as LatentScaling,
)
from ._types import (
    ModelEstimates as ModelEstimates,
)
from ._types import (
    Neighbour as Neighbour,
)
from ._types import (
    TokenCount as TokenCount,
)
from ._types import (
    Tokens as Tokens,
)
from ._types import (
    TrainingCurves as TrainingCurves,
)
from ._vocabulary import (
    BASE as BASE,
)
from ._vocabulary import (
    CHAT as CHAT,
)
from ._vocabulary import (
    ExampleGroup as ExampleGroup,
)
from ._vocabulary import (
    Judgement as Judgement,
)
from ._vocabulary import (
    LatentClass as LatentClass,
)
from ._vocabulary import (
    LeftOut as LeftOut,
)
from ._vocabulary import (
    SpecificTo as SpecificTo,
)
from ._vocabulary import (
    TokenRole as TokenRole,
)
from ._vocabulary import (
    Verdict as Verdict,
)

__version__: str
