"""The flags of ``search`` and ``plan``: a table that says which field of a search each one sets.

Every flag is one field of the mapping that `autopeft.spec.parse.parse_search` reads, so the values are checked in one
place for the command line, for files and for Python; here is only the way there and, for errors, the way back.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from autopeft.cli.further import further_problems
from autopeft.errors import InputError, Problem

if TYPE_CHECKING:
    from autopeft.spec import SearchSpec

Reading = Literal["text", "texts", "number", "switch"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.

    Attributes:
        name: With its dashes.
        field: Dotted path in the mapping of a search.
        group: Heading in the help.
        help: One line.
        metavar: What stands for the value in the help; empty for a switch.
        reading: ``text`` as given, ``texts`` may be repeated, ``number`` where it reads as one, ``switch`` for true.
    """

    name: str
    field: str
    group: str
    help: str
    metavar: str = ""
    reading: Reading = "text"

    @property
    def key(self) -> str:
        """Attribute of the parsed arguments."""
        return self.name.lstrip("-").replace("-", "_")


TASK, LIMITS, SEARCH, RUN = "task", "limits (none given: none kept)", "search", "run"

FLAGS: tuple[Flag, ...] = (
    Flag("--model", "task.model", TASK, "base model: a folder, a .gguf file or a hub id", "ID_OR_DIR"),
    Flag("--data", "task.data", TASK, "labelled data: a folder, a file or a hub id", "DIR_OR_FILE"),
    Flag("--kind", "task.kind", TASK, "sequence_classification, regression or causal_lm (inferred)", "KIND"),
    Flag(
        "--text-column",
        "task.text_columns",
        TASK,
        "text column; twice for sentence pairs (inferred)",
        "COLUMN",
        "texts",
    ),
    Flag("--label-column", "task.label_column", TASK, "class or target column (inferred)", "COLUMN"),
    Flag("--prompt-column", "task.prompt_column", TASK, "causal_lm: the column that is given (inferred)", "COLUMN"),
    Flag(
        "--response-column", "task.response_column", TASK, "causal_lm: the column to be produced (inferred)", "COLUMN"
    ),
    Flag("--metric", "task.metric", TASK, "what decides (the kind's first metric)", "METRIC"),
    Flag("--max-length", "task.max_length", TASK, "longest row in tokens", "TOKENS", "number"),
    Flag("--revision", "task.revision", TASK, "revision of a hub model", "REVISION"),
    Flag("--head", "task.head", TASK, "layers on top: auto, stock, cls or mean (auto)", "HEAD"),
    Flag("--name", "task.name", TASK, "label of the search in tracking", "NAME"),
    Flag("--max-params", "budget.max_adapter_params", LIMITS, "adapter parameters: 0.5%% of the base, or 100000", "N"),
    Flag("--max-memory", "budget.max_memory", LIMITS, "memory of one training run: 2GiB", "BYTES"),
    Flag("--max-time", "budget.max_time", LIMITS, "wall clock from start to result: 5m", "TIME"),
    Flag("--max-compute", "budget.max_compute", LIMITS, "busy time summed over workers: 20m", "TIME"),
    Flag("--max-trials", "budget.max_trials", LIMITS, "trials that may start", "N", "number"),
    Flag("--max-size", "budget.max_adapter_size", LIMITS, "adapter on disk: 5MiB", "BYTES"),
    Flag(
        "--max-latency",
        "budget.max_latency_overhead",
        LIMITS,
        "forward pass against the bare base: 1.1",
        "RATIO",
        "number",
    ),
    Flag("--target", "budget.target", LIMITS, "what must load the winner: any, peft, merged or vllm (any)", "TARGET"),
    Flag(
        "--space", "space", SEARCH, "what may vary: a name of `autopeft ls spaces`, or a file (hybrid)", "NAME_OR_FILE"
    ),
    Flag(
        "--strategy",
        "strategy",
        SEARCH,
        "how it is explored: `autopeft ls strategies`, or a file (tpe-asha)",
        "NAME_OR_FILE",
    ),
    Flag("--preset", "preset", SEARCH, "a published pair of space and strategy", "NAME"),
    Flag("--incumbent", "incumbent", SEARCH, "adapter in use today, to compare with", "DIR"),
    Flag(
        "--eval-set",
        "eval_sets",
        SEARCH,
        "further labelled rows that are scored in the end and decide nothing; may be repeated",
        "NAME=FILE",
        "texts",
    ),
    Flag("--evidence", "evidence", SEARCH, "fresh seeds per finalist: quick 2, standard 3, strict 5", "LEVEL"),
    Flag("--until", "until", SEARCH, "`decided` ends the search once the verdict is settled", "WHEN"),
    Flag(
        "--within",
        "within",
        SEARCH,
        "the cheapest adapter shown to be no worse than tuned LoRA by more than so many points, instead of the best",
        "POINTS",
        "number",
    ),
    Flag("--cost", "cost", SEARCH, "what ties and --within go by: params, memory or latency (params)", "WHAT"),
    Flag(
        "--objective",
        "objective",
        SEARCH,
        "best: one adapter; pareto: also those that are worth their size, memory or time (best)",
        "WHAT",
    ),
    Flag("--seed", "seed", SEARCH, "seed of all that is random (0)", "N", "number"),
    Flag("--workers", "workers", RUN, "trials at a time (auto: one per GPU, or one per core)", "N", "number"),
    Flag("--max-workers", "max_workers", RUN, "on a cluster that grows: ask for so many", "N", "number"),
    Flag("--gpus-per-trial", "gpus_per_trial", RUN, "fraction of a GPU per trial", "F", "number"),
    Flag("--pack", "pack", RUN, "trials that a worker trains together: auto, off or a number (auto)", "N"),
    Flag("--executor", "executor", RUN, "ray, tune or inprocess (ray)", "NAME"),
    Flag("--ray-address", "ray_address", RUN, "address of a running Ray cluster", "ADDRESS"),
    Flag(
        "--cache-bytes",
        "cache_bytes",
        RUN,
        "hidden states of frozen blocks kept on disk while the search runs (a quarter of the memory); 0 keeps none",
        "BYTES",
    ),
    Flag("--out", "out", RUN, "run folder (one is made under runs/)", "DIR"),
    Flag("--overwrite", "overwrite", RUN, "replace what lies in the run folder", reading="switch"),
    Flag("--resume", "resume", RUN, "go on with the search in --out; what no flag says is as it was", reading="switch"),
    Flag(
        "--tracking-uri",
        "tracking_uri",
        RUN,
        "MLflow store (mlflow.db beside the run folder); `none` writes nothing",
        "URI",
    ),
    Flag("--precision", "precision", RUN, "of the frozen base: float32 or bfloat16 (what is fastest here)", "DTYPE"),
    Flag("--attention", "attention", RUN, "of the base: eager or sdpa (what is fastest here)", "NAME"),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags of a search, under their headings."""
    parser.add_argument("file", nargs="?", metavar="TASK.yaml", help="the same as a file; flags go over it")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for flag in FLAGS:
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        group = groups[flag.group]
        if flag.reading == "switch":
            group.add_argument(flag.name, action="store_true", default=None, help=flag.help)
        elif flag.reading == "texts":
            group.add_argument(flag.name, action="append", metavar=flag.metavar, help=flag.help)
        else:
            group.add_argument(flag.name, metavar=flag.metavar, help=flag.help)
    groups[SEARCH].add_argument(
        "--set",
        action="append",
        metavar="FIELD=VALUE",
        help="any field of task, budget, space or strategy: space.dropout=[0]",
    )
    groups[RUN].add_argument("--json", action="store_true", help="one JSON document on stdout, the rest on stderr")


def parse_flags(args: argparse.Namespace, known: Sequence[Problem] = ()) -> SearchSpec:
    """The search that the flags describe: the file, under the flags, under ``--set``.

    With ``--resume`` all of it goes over the search that the run folder holds. Where a flag cannot be used, data, space
    and strategy are looked at for more that cannot.

    Args:
        args: The parsed arguments.
        known: Problems of other flags, told with those that are found here.

    Raises:
        InputError: With every problem, each under the name of its flag.
    """
    from autopeft.spec.parse import load_task_file, parse_search

    problems: list[Problem] = list(known)
    values: dict[str, Any] = {}
    if args.file is not None:
        try:
            values = dict(load_task_file(args.file))
        except InputError as error:
            # Without the file, all that it holds would be told as missing.
            raise with_flag_names(error, args) from error
    for flag in FLAGS:
        given = getattr(args, flag.key)
        if given is not None:
            _put(values, flag.field, _read_number(given) if flag.reading == "number" else given)
    if args.set:
        pairs = _pairs(values.get("set"))
        for text in args.set:
            field, equals, value = text.partition("=")
            if equals:
                pairs.append((field.strip(), value))
            else:
                problems.append(
                    Problem("--set", text, "must be FIELD=VALUE", "Write for example --set space.batch=[16].")
                )
        values["set"] = pairs
    optional: tuple[str, ...] = ()
    if values.get("resume") is True:
        try:
            values = _over_stored(values)
        except InputError as error:
            problems += error.problems
            # What the run folder would have said is not missing.
            optional = ("task.model", "task.data")
    spec = None
    try:
        spec = parse_search(values)
    except InputError as error:
        wrong = [problem for problem in error.problems if problem.field not in optional or problem.value is not None]
        told = {problem.field for problem in wrong}
        problems = [*wrong, *(problem for problem in problems if problem.field not in told)]
    if spec is None or problems:
        problems += further_problems(values, problems)
        raise with_flag_names(InputError(problems), args)
    return spec


def _over_stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, over the search in the run folder under the budget of its latest session.

    Raises:
        InputError: There is no run folder or no search in it, or its data was in memory and none is given.
    """
    from autopeft.journal import SearchLog, read_journal
    from autopeft.spec.fields import read_text
    from autopeft.spec.stored import in_memory, lay_over, stored_values

    out = values.get("out")
    if out is None:
        raise InputError.one("out", None, "is required to resume", "Name the run folder.")
    try:
        folder = read_text(out)
    except ValueError as error:
        raise InputError.one("out", out, str(error), "Name the run folder.") from error
    log = SearchLog.fold(read_journal(folder))
    stored = log.header.get("spec")
    if stored is None:
        # The process died before its first record: what is resumed is a search that never began.
        return dict(values)
    # Those that a later session has added are not in the first record.
    added = {name: known["source"] for name, known in log.eval_sets.items()}
    stored = {**stored, "eval_sets": {**(stored.get("eval_sets") or {}), **added}}
    merged = lay_over(stored_values(stored, log.plan.get("budget")), values)
    task = merged["task"]
    if isinstance(task, Mapping) and in_memory(task.get("data")):
        raise InputError.one(
            "task.data",
            task["data"],
            "was in the memory of the process that began this search, and is not in the run folder",
            "Resume from Python with the same data, or give it as files: task.data.",
        )
    return merged


def with_flag_names(error: InputError, args: argparse.Namespace) -> InputError:
    """The same error, its fields named by the flags that set them.

    A field that came from a file keeps its dotted name; without a file, a field that nobody gave gets its flag's name
    too, since that is how to give it.
    """
    flags = {flag.field: flag for flag in FLAGS}
    set_fields = {text.split("=", 1)[0].strip() for text in args.set or ()}

    def renamed(problem: Problem) -> Problem:
        # The journal does not know by which field its folder was given.
        field = "out" if problem.field == "run folder" else problem.field.removeprefix("set.")
        if field in set_fields:
            return replace(problem, field=f"--set {field}")
        if field == "task_file":
            return replace(problem, field="TASK.yaml")
        if field.startswith("eval_sets.") and args.eval_set is not None:
            return replace(problem, field=field.replace("eval_sets.", "--eval-set ", 1))
        flag = flags.get(field)
        if flag is None or (args.file is not None and getattr(args, flag.key) is None):
            return problem
        # Only the dotted name is replaced: a bare one is an English word as well.
        step = problem.next_step.replace(flag.field, flag.name) if "." in flag.field else problem.next_step
        return replace(problem, field=flag.name, next_step=step)

    return type(error)([renamed(problem) for problem in error.problems])


def _put(values: dict[str, Any], field: str, value: Any) -> None:
    *path, last = field.split(".")
    for step in path:
        inner = values.get(step)
        # A file with `task: 3` is told so by the parser; it must not break here.
        values[step] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[step]
    values[last] = value


def _pairs(changes: Any) -> list[Any]:
    """The ``set`` of a file as a list; what is no list of pairs goes on to the parser, which says so."""
    if isinstance(changes, Mapping):
        return list(changes.items())
    return list(changes) if isinstance(changes, list | tuple) else [] if changes is None else [changes]


def _read_number(text: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
