"""Every cheat of this folder: how to name it, what it does wrong, and its honest twin.

`spec` is what `attnbench.methods.registry.parse` reads. A detector must flag the cheats and none of
the twins, and may know neither list.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tests.evil.changes import WHATS

HERE = "tests.evil."


class Trace(StrEnum):
    """Where the trick shows, in a bench that times steps over a table of inputs."""

    OUTPUT = "what decode returns is not what it declares, at the moment it returns"
    LATER = "what decode returns is unfinished, and right when one looks later"
    KIND = "what decode returns is no plain tensor with the result in it"
    WORK = "outputs are right; the work is done ahead, elsewhere or for known inputs only"
    INPUTS = "it changes what it was given or what it can reach"
    PROCESS = "it leaves the process changed: names, flags, modes, threads"
    CLOCK = "it changes what its caller measured"
    STATE = "it keeps K and V that it does not declare"
    WITNESS = "what it says of itself is false"
    RARE = "outputs are right; work that recurs is in few timed steps, or in none"


@dataclass(frozen=True)
class Cheat:
    """One way to fool the bench. `own_process`: what it does cannot be taken back."""

    spec: str
    way: str
    twin: str
    trace: Trace
    needs_cuda: bool = False
    own_process: bool = False


def of(module: str, way: str, *rows: tuple[str, str, Trace], cuda: bool = False) -> list[Cheat]:
    """Cheats of one module, as (class, twin, trace); a twin of another module names it."""
    return [
        Cheat(
            spec=f"{HERE}{module}:{name}",
            way=way,
            twin=HERE + (twin if ":" in twin else f"{module}:{twin}"),
            trace=trace,
            needs_cuda=cuda,
            own_process=name.endswith("niceness"),
        )
        for name, twin, trace in rows
    ]


T = Trace
# Where the same for the length of a call would not be honest, or could not be taken back.
OTHER_TWINS = {
    "niceness": "NicesAThread",
    **dict.fromkeys(("matmul_precision", "new_precision"), "SetsHighest"),
}

CHEATS: tuple[Cheat, ...] = (
    *of(
        "left_running",
        "work left on another stream or thread when the clock stops",
        ("ThreadLeft", "ThreadJoined", T.LATER),
        ("RawThreadLeft", "ThreadJoined", T.LATER),
        ("OneBehind", "PoolJoined", T.OUTPUT),
        ("ChildLeft", "ChildAwaited", T.LATER),
    ),
    *of(
        "not_a_tensor",
        "outputs that are lazy, subclassed or not materialised",
        ("Promise", "SubclassInside", T.KIND),
        ("Disguised", "SubclassInside", T.KIND),
        ("OwnMethods", "StridedOutput", T.KIND),
        ("Broadcast", "StridedOutput", T.OUTPUT),
    ),
    *of(
        "cached",
        "a result cached by pointer, version or last call",
        ("ByPointer", "KeepsWorkspace", T.OUTPUT),
        ("ByVersion", "KeepsViews", T.OUTPUT),
        ("ByValue", "ChecksBeforeReuse", T.WORK),
        ("LastCall", "ChecksBeforeReuse", T.OUTPUT),
        ("SimilarQuery", "ChecksBeforeReuse", T.OUTPUT),
    ),
    *of(
        "constant",
        "constant or stale output",
        ("Constant", "FreshClone", T.OUTPUT),
        ("Noise", "FreshClone", T.OUTPUT),
        ("FirstOutput", "OwnBuffer", T.OUTPUT),
        ("ValueMean", "DeclaredMean", T.OUTPUT),
    ),
    *of(
        "only_when_watched",
        "computing only when checked",
        ("FirstCalls", "WarmsUp", T.OUTPUT),
        ("EveryEighthCall", "CountsCalls", T.OUTPUT),
        ("Sometimes", "CountsCalls", T.OUTPUT),
        ("AfterPause", "CountsCalls", T.OUTPUT),
        ("OutsideTheTimer", "in_place:LooksAround", T.OUTPUT),
        ("WhenJudged", "in_place:LooksAround", T.OUTPUT),
        ("WithGradients", "TurnsGradientsOff", T.OUTPUT),
        ("SpareRows", "BranchesOnLength", T.OUTPUT),
        ("WhileObserved", "TurnsGradientsOff", T.OUTPUT),
        ("WhenKept", "CountsCalls", T.OUTPUT),
    ),
    *of(
        "skips_context",
        "part of the context silently skipped",
        ("FarMiddle", "GoesByBlocks", T.OUTPUT),
        ("SmallMass", "SkipsUnderflow", T.OUTPUT),
        ("EverySecondToken", "GoesByBlocks", T.OUTPUT),
        ("OddLayers", "GoesByBlocks", T.OUTPUT),
        ("UncheckedLayers", "GoesByBlocks", T.OUTPUT),
        ("LastHeads", "amortised:HeadsTogether", T.OUTPUT),
        ("SecondSteps", "only_when_watched:CountsCalls", T.OUTPUT),
        ("OtherSequences", "amortised:HeadsTogether", T.OUTPUT),
        ("FewerChannels", "GoesByBlocks", T.OUTPUT),
        ("HalfWindow", "DeclaredWindow", T.OUTPUT),
    ),
    *of(
        "false_witness",
        "dense attention behind a sparse name (no witness)",
        ("DenseCalledSparse", "DenseSaysDense", T.WITNESS),
        ("SilentFallback", "FallsBackAndSays", T.WITNESS),
        ("NoWitness", "TopTokens", T.WITNESS),
        ("ReadsNothing", "skips_context:DeclaredWindow", T.WITNESS),
    ),
    *of(
        "knows_probes",
        "a count of influence that is recognised, or that merged tokens excuse",
        ("KnowsPlanted", "ValueAware", T.WITNESS),
        ("KnowsAlike", "ValueAware", T.WITNESS),
        ("MergesAndKeeps", "Merged", T.WITNESS),
        ("MergesForShow", "Merged", T.WITNESS),
    ),
    *of(
        "by_data",
        "true of the data at one step, false at another",
        ("FewBytesTimed", "NearBest", T.WITNESS),
        ("FewBytesProbed", "NearBest", T.WITNESS),
        ("NothingTimed", "NearBest", T.WITNESS),
    ),
    *of(
        "low_precision",
        "lower precision than declared",
        ("NarrowCopy", "NarrowDeclared", T.OUTPUT),
        ("NarrowKeys", "NarrowDeclared", T.OUTPUT),
        ("NarrowFar", "NarrowDeclared", T.OUTPUT),
        ("Int8Inside", "Int8Declared", T.OUTPUT),
        ("AutocastInside", "WideInside", T.OUTPUT),
    ),
    *of(
        "in_place",
        "inputs changed in place",
        ("ScalesQuery", "ScalesACopy", T.INPUTS),
        ("ScalesAndUnscales", "WorksInItsBuffer", T.INPUTS),
        ("RoundsCache", "low_precision:Int8Declared", T.INPUTS),
        ("ReordersCache", "OwnLayout", T.INPUTS),
        ("FreezesTheTable", "LooksAround", T.INPUTS),
        ("SilencesTheProjection", "LooksAround", T.INPUTS),
        ("SkipsTheMlp", "LooksAround", T.INPUTS),
    ),
    *of(
        "patched",
        "patched timers, statistics or SDPA",
        ("HidesItsTime", "ReadsTheClock", T.PROCESS),
        ("ThreadTime", "left_running:ThreadJoined", T.PROCESS),
        ("HalfElapsed", "ReadsTheClock", T.PROCESS),
        ("SmallMedian", "UsesStatistics", T.PROCESS),
        ("AlwaysEqual", "QuietWarnings", T.PROCESS),
        ("RewritesReference", "constant:DeclaredMean", T.PROCESS),
    ),
    *of(
        "bribed",
        "numbers of the judge changed, and names that hide those it computes with",
        ("WideBounds", "ReadsTheBounds", T.PROCESS),
        ("LowWeights", "ReadsTheBounds", T.PROCESS),
        ("EasyDefaults", "ReadsTheBounds", T.PROCESS),
        ("FrozenNumbers", "ReadsTheBounds", T.PROCESS),
        ("HidesClamp", "OwnTensorClass", T.PROCESS),
        ("OwnFloat", "OwnTensorClass", T.PROCESS),
    ),
    *of(
        "patched_sdpa",
        "patched timers, statistics or SDPA",
        ("SlowSdpa", "patched:QuietWarnings", T.PROCESS),
        ("SlowSdpaBelow", "OwnOperator", T.PROCESS),
        ("SlowKernelsBelow", "OwnCustomOperator", T.PROCESS),
    ),
    *of(
        "patched_model",
        "an arm that slows the baseline",
        ("SlowRotary", "BorrowsRotary", T.PROCESS),
        ("SlowLinear", "BorrowsRotary", T.PROCESS),
    ),
    *of(
        "hidden_state",
        "K and V kept outside tensors(), or on the host",
        ("KeepsElsewhere,where=module", "KeepsAndSays,where=module", T.STATE),
        ("KeepsElsewhere,where=closure", "KeepsAndSays,where=closure", T.STATE),
        ("KeepsElsewhere,where=numpy", "KeepsAPageTable", T.STATE),
        ("KeepsElsewhere,where=ctypes", "KeepsAPageTable", T.STATE),
        ("KeepsElsewhere,where=length", "KeepsAndSays,where=sketch", T.STATE),
        ("KeepsElsewhere,where=sketch", "KeepsAndSays,where=sketch", T.STATE),
        ("KeepsElsewhere,where=generator", "KeepsAndSays,where=generator", T.STATE),
        ("BorrowsTheCache", "low_precision:Int8Declared", T.STATE),
    ),
    *of(
        "moved_cost",
        "cost moved into prefill, append or an untimed step",
        ("PrecomputesTheTable", "block_index:KeepsBlockIndex", T.WORK),
        ("IntoReset", "SummarisesEveryFourth", T.WORK),
        ("FixesUpAtReset", "SummarisesEveryFourth", T.OUTPUT),
        ("SelectsEvery64", "false_witness:TopTokens", T.WORK),
        ("TaylorAtPrefill", "block_index:KeepsBlockIndex", T.OUTPUT),
    ),
    *of(
        "rare_upkeep",
        "upkeep that recurs so rarely that few visits hold it, or none",
        ("CompactsRarely", "CompactsInTime,every=16", T.RARE),
        ("CompactsRarely,every=4096", "CompactsInTime,every=16", T.RARE),
        ("CompactsFullPages", "CompactsInTime,every=16,by=length", T.RARE),
        ("CompactsOnPaper,every=16", "CompactsInTime,every=16,by=length", T.RARE),
    ),
    *of(
        "amortised",
        "several steps amortised into one capture",
        ("AnswersLater", "HeadsTogether", T.OUTPUT),
        ("LooksAhead", "HeadsTogether", T.WORK),
        ("AllLayersAtOnce", "left_running:PoolJoined", T.WORK),
    ),
    *of(
        "self_reported",
        "self-reported speed",
        ("Boasts", "SaysMore", T.OUTPUT),
        ("EditsTheMarks", "patched:ReadsTheClock", T.CLOCK),
        ("WrapsTheClock", "patched:ReadsTheClock", T.CLOCK),
    ),
    *of(
        "fools_the_baseline",
        "an arm that slows the baseline",
        *(
            (f"Leaves,what={what}", OTHER_TWINS.get(what, f"Restores,what={what}"), T.PROCESS)
            for what in WHATS
        ),
        ("Leaves,what=sdp_backends,when=reset", "Restores,what=sdp_backends", T.PROCESS),
        ("Leaves,what=mode,when=reset", "Restores,what=mode", T.PROCESS),
        ("Leaves,what=burner,when=reset", "Restores,what=burner", T.PROCESS),
    ),
    *of(
        "cuda_only",
        "work left on another stream or thread when the clock stops",
        ("SideStreamLeft", "SideStreamJoined", T.LATER),
        ("JoinsTheStepBefore", "SideStreamJoined", T.LATER),
        cuda=True,
    ),
    *of(
        "cuda_graphs",
        "a graph replayed on old pointers",
        ("OldPointers", "OwnGraph", T.OUTPUT),
        cuda=True,
    ),
    *of(
        "cuda_graphs",
        "computing only when checked",
        ("SkipsInCapture", "BranchesInCapture", T.OUTPUT),
        cuda=True,
    ),
    *of(
        "cuda_graphs",
        "several steps amortised into one capture",
        ("SeveralStepsACapture", "BranchesInCapture", T.OUTPUT),
        ("TableInTheGraph", "block_index:KeepsBlockIndex", T.WORK),
        cuda=True,
    ),
    *of(
        "cuda_only",
        "K and V kept outside tensors(), or on the host",
        ("OnTheHost", "hidden_state:KeepsAndSays,where=closure", T.STATE),
        cuda=True,
    ),
    *of(
        "cuda_only",
        "lower precision than declared",
        ("Tf32Inside", "fools_the_baseline:SetsHighest", T.OUTPUT),
        cuda=True,
    ),
    *of(
        "cuda_only",
        "an arm that slows the baseline",
        ("StreamChanged", "SideStreamJoined", T.PROCESS),
        ("BusyStream", "SideStreamJoined", T.PROCESS),
        cuda=True,
    ),
)

HONEST: tuple[str, ...] = tuple(sorted({cheat.twin for cheat in CHEATS}))
