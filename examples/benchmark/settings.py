"""The settings of ``python -m benchmark``: its options and the fields of its ``--config`` file."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmark.cells import CellSettings, DataSource
from benchmark.plan.planner import PlanOptions
from cramer_peft.recsys.requests.sources import read_weights


@dataclass(frozen=True)
class BenchmarkSettings:
    """Settings of a run; the matrix fills in those that are left empty.

    Attributes:
        matrix: Name of the matrix.
        data: Names of data sets, or folders of atomic files.
        protocols: leave-one-out, temporal.
        backbones: sasrec, bert4rec, gru4rec, replay-sasrec.
        methods: Methods.
        variants: Ablations and hold-outs of ours; hold-outs of every method (stated); changes to CRAMER (paper).
        seeds: Seeds.
        steps: Steps of each generator's training.
        epochs: Most epochs of each backbone's training.
        max_users: Most test users measured, drawn by the seed.
        encoder: Registered name of the request encoder, or a folder with a model of transformers, such as BERT.
        requests: The weights of the sources of training requests, such as "stated=2,attributes", for all methods.
        probe: Attribute whose share of the lists is measured under fixed sentences, of stated and paper.
        language_model: Causal language model of the reranker: a folder, or a name in the local cache.
        stage: validation or test, of the matrices real-language, transfer, stated and paper.
        dialogues: File of film dialogues, of the matrix real-language.
        target: The other data set or folder, of the matrix transfer.
        full_training: Whether to compare with all steps on the target alone, of the matrix transfer.
        title_column: Column of the .item file with titles.
        attribute_column: Column of the .item file with attributes.
        attribute_separator: Text between two attributes of an item.
        workers: Processes, one core each.
        budget_minutes: Minutes by the clock that the run may take; None: no limit.
    """

    matrix: str = "full"
    data: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    steps: int | None = field(default=None, metadata={"least": 1})
    epochs: int | None = field(default=None, metadata={"least": 1})
    max_users: int | None = field(default=None, metadata={"least": 2})
    encoder: str | None = None
    requests: str | None = None
    probe: str | None = None
    language_model: str | None = None
    stage: str | None = None
    dialogues: str | None = None
    target: str | None = None
    full_training: bool = False
    title_column: str | None = None
    attribute_column: str | None = None
    attribute_separator: str | None = None
    workers: int = field(default=2, metadata={"least": 1})
    budget_minutes: float | None = field(default=None, metadata={"least": 0})

    def plan_options(self) -> PlanOptions:
        """Return the options of the plan."""
        columns = self.title_column, self.attribute_column, self.attribute_separator
        return PlanOptions(
            matrix=self.matrix,
            sources=tuple(DataSource(name, *columns) for name in self.data),
            protocols=self.protocols,
            backbones=self.backbones,
            methods=self.methods,
            variants=self.variants,
            seeds=self.seeds,
            steps=self.steps,
            epochs=self.epochs,
            settings=CellSettings(
                encoder=self.encoder,
                max_users=self.max_users,
                language_model=self.language_model,
                requests=None if self.requests is None else read_weights(self.requests),
            ),
            probe=self.probe,
            dialogues=self.dialogues,
            target=None if self.target is None else DataSource(self.target),
            full_training=self.full_training,
            stage=self.stage,
        )
