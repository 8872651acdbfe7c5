"""The result files of the benchmarks: the machine, the settings, every raw time, and what follows from them.

The models below are the files' shape, key for key; ``benchmark`` says which of them a file is. Seconds are wall time,
shares are between 0 and 1, bytes are of the resident set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from eval.result_files import read_json


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Entry):
    """Where it was measured.

    Attributes:
        processor: The CPU's model.
        cores: Of them this process may use.
        threads: Of torch; None where torch was not used.
        instructions: The CPU's widest that PyTorch uses, such as ``AVX512``; None where it was not asked.
        device: ``cpu``, or the name of the GPU.
        python: Version of the interpreter.
        versions: Of the packages.
        commit: Of the source tree.
    """

    processor: str
    cores: int
    threads: int | None
    instructions: str | None = None
    device: str
    python: str
    versions: dict[str, str]
    commit: str | None


class Ratio(_Entry):
    """How many times as fast as the reference: over the pairs of all rounds."""

    median: float
    lowest: float
    lower_quartile: float
    upper_quartile: float
    highest: float


class EncodeSettings(_Entry):
    """Options of ``encode``.

    Attributes:
        systems: Names in ``encoders.ENCODERS``.
        reference: The one that ratios and cosines are against.
        count: Texts of each set.
        rounds: How often each system encodes each set, after a call that warms up.
        threads: Of torch.
        device: None: a GPU where there is one.
        max_length: Tokens a text is cut to; None: as the model says.
        seed: Of texts that are made up.
        memory: Whether peak memory is measured, in a process for each system and set.
    """

    systems: list[str]
    reference: str
    count: int
    rounds: int
    threads: int
    device: str | None
    max_length: int | None
    seed: int
    memory: bool


class EncodedBy(_Entry):
    """What one system made of one set of texts.

    Attributes:
        seconds: Of each round.
        speedup: Against the reference, round by round.
        texts_per_second: In the median round, like the next one.
        tokens_per_second: Padding not counted.
        padding: Share of the computed tokens that are padding; None where the system's forward pass cannot be watched.
        min_cosine: The lowest cosine of a vector with the reference's of the same text.
        ceiling_share: Of the rate at which this machine multiplies large matrices of the same type, how much goes into
            the encoder's useful multiplications; the median over rounds.
        batch_size: Of the calls; None: left to the system.
        peak_bytes: The highest resident set of a fresh process that opens the system and encodes the texts.
    """

    seconds: list[float]
    speedup: Ratio
    texts_per_second: float
    tokens_per_second: float
    padding: float | None
    min_cosine: float
    ceiling_share: float
    batch_size: int | None
    peak_bytes: int | None


class EncodedSet(_Entry):
    """One set of texts.

    Attributes:
        name: As the command line has it.
        source: The recipe, if it is one, and the name of the file.
        texts: Different texts.
        tokens: Of all of them, special ones included, each text cut to the model's length.
        longest: Tokens of the longest.
        flops: Of the encoder's multiplications for these tokens, padding not counted.
        ceiling: Floating-point operations a second of a large matrix product, by type, of each round.
        systems: By name.
    """

    name: str
    source: str
    texts: int
    tokens: int
    longest: int
    flops: float
    ceiling: dict[str, list[float]]
    systems: dict[str, EncodedBy]


class EncodeResult(_Entry):
    """``encode``: systems by their speed on sets of texts.

    Attributes:
        machine: Where it was measured.
        model: A name; of a directory the last part of its path.
        settings: The options.
        left_out: Systems that this machine cannot run, and why.
        stsb: Spearman x100 on STS-B test by system; None if no folder was given.
        sets: In the order of the command line.
    """

    benchmark: Literal["encode"] = "encode"
    machine: Machine
    model: str
    settings: EncodeSettings
    left_out: dict[str, str]
    stsb: dict[str, float | None] | None
    sets: list[EncodedSet]


class TrainedBy(_Entry):
    """What one system made of the steps.

    Attributes:
        seconds_per_step: The mean within each block of steps but the first of a seed, which warms up.
        speedup: Against the reference, block by block.
        tokens_per_second: In the median block.
        ceiling_share: As in ``EncodedBy``.
        losses: Of every step, by seed.
    """

    seconds_per_step: list[float]
    speedup: Ratio
    tokens_per_second: float
    ceiling_share: float
    losses: dict[int, list[float]]


class TrainSettings(_Entry):
    """Options of ``train``.

    Attributes:
        systems: Names in ``trainers.TRAINERS``.
        reference: The one that ratios are against.
        seeds: Each has an order of the texts, a head and dropout masks of its own.
        steps: Of each system and seed.
        block: Steps until it is the next system's turn.
        batch_size: Texts a step.
        max_length: Tokens a text is cut to.
        lr: The learning rate, which stays as it is.
        dropout: Rate of every dropout; None: the model's own.
        threads: Of torch.
    """

    systems: list[str]
    reference: str
    seeds: list[int]
    steps: int
    block: int
    batch_size: int
    max_length: int
    lr: float
    dropout: float | None
    threads: int


class TrainResult(_Entry):
    """``train``: systems by the speed of their training steps.

    Attributes:
        machine: Where it was measured.
        model: A name; of a directory the last part of its path.
        text: The name of the file.
        settings: The options.
        left_out: Systems that this machine cannot run, and why.
        ceiling: As in ``EncodedSet``, one figure for each timed block.
        tokens: Of both views, a step, of each timed block; padding not counted.
        flops: Of the same, the backward pass counted twice the forward one.
        systems: By name.
    """

    benchmark: Literal["train"] = "train"
    machine: Machine
    model: str
    text: str
    settings: TrainSettings
    left_out: dict[str, str]
    ceiling: dict[str, list[float]]
    tokens: list[float]
    flops: list[float]
    systems: dict[str, TrainedBy]


class TrainingMemory(_Entry):
    """The memory of training steps in a fresh process.

    Attributes:
        batch_size: Rows a step.
        chunk_size: Rows encoded at a time; None: the whole batch.
        opened_bytes: The highest resident set before the first step; None where the process did not live to say.
        peak_bytes: The highest at the end; None where the process was killed, for want of memory.
        seconds: Of each step.
    """

    batch_size: int
    chunk_size: int | None
    opened_bytes: int | None
    peak_bytes: int | None
    seconds: list[float]


class MemorySettings(_Entry):
    """Options of ``memory``: steps of each run, tokens a text is cut to, precision, threads of torch."""

    steps: int
    max_length: int
    precision: Literal["fp32", "bf16"]
    threads: int


class MemoryResult(_Entry):
    """``memory``: the memory that training takes, by batch and chunk size; ``text`` is the name of the file."""

    benchmark: Literal["memory"] = "memory"
    machine: Machine
    model: str
    text: str
    settings: MemorySettings
    runs: list[TrainingMemory]


class CommandStart(_Entry):
    """``COMMAND --help``: the seconds of each call, their median, and whether torch was imported."""

    seconds: list[float]
    median: float
    imports_torch: bool


class ImportResult(_Entry):
    """``import``: how soon the commands are there, by name."""

    benchmark: Literal["import"] = "import"
    machine: Machine
    commands: dict[str, CommandStart]


Result = EncodeResult | TrainResult | MemoryResult | ImportResult
_FILE: TypeAdapter[Result] = TypeAdapter(Annotated[Result, Field(discriminator="benchmark")])


def read_result(path: Path) -> Result:
    """Read a result file.

    Raises:
        UserError: If it is not one.
    """
    return read_json(path, _FILE, "eval.bench")
