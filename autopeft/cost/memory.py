"""Memory of training one configuration, known before anything is trained and without any weights.

The adapted model is built on the meta device, its tensors are replaced by fake CPU tensors, and one optimizer step,
the very code that training runs, is executed on them while `LiveBytes` counts storages.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autopeft.compose.adapt import AdaptedModel, adapt, can_checkpoint
from autopeft.compose.base import Carrier
from autopeft.compose.host import spare_casts
from autopeft.compose.pack import PackedModel
from autopeft.cost.live import LiveBytes, Peak, measure
from autopeft.cost.pack import packed_gradients
from autopeft.cost.reserved import reserved_bytes
from autopeft.cost.step import StepTensors, apply_gradients, build_optimizer, compute_gradients
from autopeft.cost.widened import Widened
from autopeft.errors import InputError
from autopeft.inspect import GroupedProducts
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.space.execution import PLAIN, Execution, executions
from autopeft.space.modules import ModuleMap

__all__ = ["Fit", "MemoryGate", "MemoryModel", "predict_bytes", "predict_step"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

REFERENCE_SIZE = 64
"""Size of the parts of the reference configurations that bound all smaller ones."""

ESTIMATE = 1.5
"""Caution for methods that cannot be predicted, over the dearest one that can."""

PEAKS_KEPT, REFERENCES_KEPT = 4096, 64
"""Predictions that are remembered, and how many of the first ones are never forgotten."""

STATE_BYTES = 16
"""Per trainable parameter: weight, gradient and two moments of AdamW, all float32."""


def predict_bytes(
    carrier_factory: Callable[[], Carrier],
    configuration: Configuration,
    modules: ModuleMap,
    *,
    rows: int,
    length: int,
    dtype: str,
    execution: Execution = PLAIN,
) -> int:
    """The peak of live tensor bytes while one configuration trains, base model included.

    Args:
        carrier_factory: Makes a carrier on the meta device (`autopeft.compose.base.meta_carrier`).
        configuration: What would be trained.
        modules: The module map of the carrier's model.
        rows: Rows of the largest batch.
        length: Its padded length in tokens.
        dtype: ``float32`` or ``bfloat16``: of the base model; bfloat16 also turns autocast on.
        execution: How the batch is computed.
    """
    model = MemoryModel(carrier_factory, modules, length=length, dtype=dtype)
    return model.predict(configuration, rows=rows, execution=execution).bytes


class MemoryModel:
    """Predicts the memory of configurations of one model at one longest batch.

    Predictions are kept by what matters for memory, so that configurations that differ in learning rates or scales
    cost nothing.

    Args:
        carrier_factory: Makes a carrier on the meta device; called once, at the first prediction.
        modules: The module map of its model.
        length: Padded length of the longest batch in tokens.
        dtype: ``float32`` or ``bfloat16``: of the base model; bfloat16 also turns autocast on.
        answers: For ``causal_lm``: share of the positions that are answers, in (0, 1].
        longest_answer: For ``causal_lm``: most answer tokens of a row, which bounds pieces of few rows; None for all.
        gpu: Whether a GPU trains: bytes are then what PyTorch reserves there (`autopeft.cost.reserved`); else live
            bytes, with the copies that processors' kernels make (`autopeft.cost.scratch`).

    Raises:
        InputError: The dtype is neither.
    """

    def __init__(
        self,
        carrier_factory: Callable[[], Carrier],
        modules: ModuleMap,
        *,
        length: int,
        dtype: str,
        answers: float = 1.0,
        longest_answer: int | None = None,
        gpu: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise InputError.one("dtype", dtype, "must be float32 or bfloat16", "Use one of them.")
        self._factory = carrier_factory
        self._modules = modules
        self._length = length
        self._dtype = DTYPES[dtype]
        self._answers = answers
        self._longest_answer = length - 1 if longest_answer is None else longest_answer
        self._gpu = gpu
        self._carrier: Carrier | None = None
        self._known: dict[Hashable, Peak] = {}

    @property
    def modules(self) -> ModuleMap:
        """The module map of the model."""
        return self._modules

    def predict(self, configuration: Configuration, *, rows: int | None = None, execution: Execution = PLAIN) -> Peak:
        """The peak of one optimizer step, and live bytes phase by phase (``forward``, ``backward``, ``optimizer``).

        Args:
            configuration: What would be trained.
            rows: Rows of the largest batch; None takes the configuration's batch size.
            execution: How the batch is computed.

        Raises:
            TrialFailure: The blocks of this architecture cannot be recomputed.
        """
        rows = rows or configuration.training.batch_size
        key = (rows, execution, memory_shape(configuration))
        if key not in self._known:
            peak = self._run(configuration, rows, execution)
            self._known[key] = replace(peak, bytes=self.needed(peak.bytes))
            if len(self._known) > PEAKS_KEPT:
                # The oldest but for the references of the ceilings, which came first of all.
                del self._known[next(islice(self._known, REFERENCES_KEPT, None))]
        return self._known[key]

    def needed(self, live: int) -> int:
        """What so many live bytes take on the device."""
        return reserved_bytes(live) if self._gpu else live

    def leanest(self, configuration: Configuration) -> Execution:
        """The way to compute its batches that takes the least memory, by construction."""
        return [*executions(configuration.training.batch_size, checkpoints=self.checkpoints(configuration))][-1]

    def checkpoints(self, configuration: Configuration) -> bool:
        """Whether the blocks can be recomputed with these parts in them."""
        return can_checkpoint(self.carrier().model) and all(METHODS[m].recomputable for m in configuration.methods)

    def choosing_bytes(self, configuration: Configuration) -> int:
        """What choosing weights by Fisher information needs beside a step of training: sums and gradients, float32."""
        chosen = [name for name, part in configuration.parts() if METHODS[part.method].chooses == "fisher"]
        return self.needed(sum(2 * 4 * self._modules[name].params for name in chosen)) - self.needed(0)

    def base_bytes(self) -> int:
        """Bytes of the frozen model alone."""
        model = self.carrier().model
        # A tied tensor has two names and one storage.
        sizes = {
            id(tensor): tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers())
        }
        return sum(sizes.values())

    def params(self) -> int:
        """Parameters of the frozen model, with its output layer where it has one."""
        return sum(parameter.numel() for parameter in self.carrier().model.parameters())

    def carrier(self) -> Carrier:
        """The carrier on the meta device, its parameters in the base's dtype.

        Raises:
            ValueError: The factory made a carrier with weights.
        """
        if self._carrier is None:
            carrier = self._factory()
            for parameter in carrier.model.parameters():
                if not parameter.is_meta:
                    raise ValueError("memory is predicted from a carrier on the meta device")
                parameter.data = parameter.data.to(self._dtype)
            self._carrier = carrier
        return self._carrier

    def _run(self, configuration: Configuration, rows: int, execution: Execution) -> Peak:
        if not all(METHODS[method].predictable for method in configuration.methods):
            return self._estimate(configuration, rows, execution)
        carrier = self.carrier()
        bare = all(METHODS[method].builds_on_meta for method in configuration.methods)
        # Parts that cannot be made on the meta device are made on the processor; peft then moves them to the base's.
        with torch.device("meta" if bare else "cpu"):
            adapted = adapt(carrier, configuration, self._modules, seed=0)
        adapted.train()
        if self._dtype == torch.bfloat16:
            spare_casts(adapted)
        if execution.checkpointing:
            adapted.checkpoint_blocks()
        at_once = min(execution.rows(rows), rows)
        share = self._answers * rows * (self._length - 1)
        return predict_step(
            adapted,
            configuration.training,
            rows=rows,
            at_once=at_once,
            length=self._length,
            kind=carrier.kind,
            autocast_dtype=torch.bfloat16 if self._dtype == torch.bfloat16 else None,
            token_types=getattr(carrier.model.config, "type_vocab_size", 0) > 1,
            answers=max(1, round(share if at_once == rows else min(share, at_once * self._longest_answer))),
            scratch=not self._gpu,
        )

    def predict_pack(self, configurations: Sequence[Configuration]) -> Peak | None:
        """The peak of one step of configurations trained together, each on its own longest batch.

        It is not the sum of what they take alone: above the lowest part of any member, activations of all rows are kept
        for the backward pass.

        Returns:
            None where a method's step needs values, so that nothing is predicted.
        """
        methods = {method for configuration in configurations for method in configuration.methods}
        if not all(METHODS[method].predictable and METHODS[method].builds_on_meta for method in methods):
            return None
        carrier = self.carrier()
        with torch.device("meta"):
            members = [adapt(carrier, configuration, self._modules, seed=0) for configuration in configurations]
            packed = PackedModel(members).train()
        types = getattr(carrier.model.config, "type_vocab_size", 0) > 1
        with FakeTensorMode(allow_non_fake_inputs=True):
            everything = nn.ModuleList([packed, *members])
            make_fake(everything)
            batches, optimizers = [], []
            for member, configuration in zip(members, configurations, strict=True):
                rows = configuration.training.batch_size
                answers = max(1, round(self._answers * rows * (self._length - 1)))
                batches.append(_fake_batch(rows, self._length, carrier.kind, types, answers))
                optimizers.append(build_optimizer(member.groups(), configuration.training))
                for parameter in member.trained().values():
                    parameter.grad = torch.empty_like(parameter)
                apply_gradients(optimizers[-1])
            autocast_dtype = torch.bfloat16 if self._dtype == torch.bfloat16 else None

            wide = Widened() if self._gpu and autocast_dtype is not None else nullcontext()

            def step(counter: LiveBytes) -> None:
                with wide:
                    packed_gradients(packed, batches, optimizers, carrier.kind, autocast_dtype)
                for optimizer in optimizers:
                    apply_gradients(optimizer)

            states = [state for optimizer in optimizers for state in optimizer.state.values()]
            moments = [value for state in states for value in state.values() if torch.is_tensor(value)]
            inputs = [tensor for batch in batches for tensor in batch.all()]
            held = [*everything.parameters(), *everything.buffers(), *moments, *inputs]
            peak = measure(step, held, scratch=not self._gpu)
        return replace(peak, bytes=self.needed(peak.bytes))

    def _estimate(self, configuration: Configuration, rows: int, execution: Execution) -> Peak:
        """For methods whose step needs values: half as much again as DoRA needs, on every linear module."""
        dora = METHODS["dora"]
        sites = {site.name: [Part.of("dora", dora.knobs(site, 1))] for site in self._modules.sites if dora.fits(site)}
        training = Training((("dora", 1e-3),), 1e-3, rows, configuration.training.dropout)
        like = self._run(Configuration.of(sites, training), rows, execution)
        own = STATE_BYTES * configuration.adapter_params(self._modules)
        return Peak(int(ESTIMATE * like.bytes) + own, like.phases, like.held + own, like.end + own)


def predict_step(
    adapted: AdaptedModel,
    training: Training,
    *,
    rows: int,
    length: int,
    kind: str,
    autocast_dtype: torch.dtype | None,
    at_once: int | None = None,
    token_types: bool = False,
    answers: int = 1,
    scratch: bool = True,
) -> Peak:
    """Counts one optimizer step of a model on the meta device; the optimizer's moments exist from the start.

    Args:
        adapted: Its tensors are replaced by fake ones, so it is used up.
        training: The hyperparameters.
        rows: Rows of the batch.
        length: Padded length in tokens.
        kind: The task kind.
        autocast_dtype: Dtype of autocast, or None.
        at_once: Rows that go through the model at once; None for all.
        token_types: Whether the tokenizer makes token types.
        answers: For ``causal_lm``: answer tokens among the rows that go through at once.
        scratch: Whether it stands for a step on a processor.
    """
    at_once = at_once or rows
    with FakeTensorMode(allow_non_fake_inputs=True), GroupedProducts():
        make_fake(adapted)
        pieces = [_fake_batch(at_once, length, kind, token_types, answers) for _ in range(-(-rows // at_once))]
        # From the second piece on the gradients are there during the forward pass; further ones need as much.
        batch, inputs = pieces[:2], [tensor for piece in pieces for tensor in piece.all()]
        optimizer = build_optimizer(adapted.groups(), training)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
        # From the second step on AdamW's moments are there during the forward pass, so they are made beforehand.
        apply_gradients(optimizer)

        wide = nullcontext() if scratch or autocast_dtype is None else Widened()

        def step(counter: LiveBytes) -> None:
            with wide:
                compute_gradients(adapted, batch, optimizer, kind, autocast_dtype, mark=counter.mark)
            apply_gradients(optimizer, mark=counter.mark)

        moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        return measure(step, [*adapted.parameters(), *adapted.buffers(), *moments, *inputs], scratch=scratch)


def make_fake(model: nn.Module) -> None:
    """Replaces every meta parameter and buffer by a fake CPU tensor; tied tensors stay tied.

    Must be called inside the `FakeTensorMode`.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                    if isinstance(tensor, nn.Parameter):
                        fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    # The original is kept beside it, so that its id is not given to another tensor.
                    made[id(tensor)] = (fake, tensor)
                table[name] = made[id(tensor)][0]  # type: ignore[assignment, unused-ignore]


def _fake_batch(rows: int, length: int, kind: str, token_types: bool, answers: int) -> StepTensors:
    def whole(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    ids, mask = whole(rows, length), whole(rows, length)
    types = whole(rows, length) if token_types and kind != "causal_lm" else None
    if kind == "causal_lm":
        return StepTensors(ids, mask, types, whole(answers), whole(answers))
    labels = torch.zeros(rows) if kind == "regression" else whole(rows)
    return StepTensors(ids, mask, types, labels)


def memory_shape(configuration: Configuration) -> Hashable:
    """What of a configuration matters for memory: where the parts sit, their sizes, whether there is dropout."""

    def shape(part: Part) -> Hashable:
        # A scale is one multiplication, whatever its value; only the neutral one might be left out by a layer.
        return part.method, tuple((k, v == 1.0 if k == "scale" else v) for k, v in part.knobs)

    sites = tuple((name, tuple(shape(part) for part in parts)) for name, parts in configuration.sites)
    return sites, configuration.training.dropout > 0


MARGIN = 1.001
"""Fake kernels keep the statistics of a norm in the dtype of its input, some real ones in float32: at most 0.04 %."""


BOUND_CAUTION = 1.5
"""Over DoRA, for the methods that the table says keep less."""

PACK_CAUTION = 2
"""So many times the ceilings' activations bound those of a pack: whoever keeps a part of an output keeps all of it."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What the gate says of a configuration.

    Attributes:
        execution: How its batches are to be computed; None where nothing fits.
        bytes: What says so: a floor, a ceiling or the exact prediction; None where there is no limit.
        exact: Whether these bytes are the exact prediction.
    """

    execution: Execution | None
    bytes: int | None = None
    exact: bool = False


class MemoryGate:
    """Answers whether a configuration fits a limit and how, as cheaply as the answer allows.

    A floor (weights and optimizer state) and a bound (what DoRA costs on all sites, at a large size and the largest
    batch, for each of its methods, if they all keep less) need two runs for a whole search. Where the limit lies
    between them, a ceiling (what each of its methods itself costs so) needs one more per method; where it lies below
    that, the exact prediction is made.

    Args:
        model: Predicts.
        limit: Bytes, as the model counts them, or None for no limit.
        rows: The largest batch that will be asked about, as far as it is known.
    """

    def __init__(self, model: MemoryModel, limit: int | None, *, rows: int = 0) -> None:
        self._model = model
        self._limit = limit
        self._ratio = MARGIN
        self._rows = rows

    def fits(self, configuration: Configuration) -> Fit:
        """Whether it fits, the cheapest way to compute it that does, and the bytes that say so.

        What does not fit as it is gets its batches cut into pieces whose gradients are added up, then its activations
        recomputed, then both.
        """
        if self._limit is None:
            return Fit(PLAIN)
        params = configuration.adapter_params(self._model.modules)
        floor = self._corrected(self._model.needed(self._model.base_bytes() + STATE_BYTES * params))
        if floor > self._limit:
            return Fit(None, floor)
        for above in (self._bound, self._ceiling):
            most = above(configuration)
            if most is not None and most <= self._limit:
                return Fit(PLAIN, most)
        return self._leaner(configuration, self._limit)

    def least(self, configuration: Configuration) -> int:
        """The smallest limit that would do for it, computed in the leanest way."""
        return self._exact(configuration, self._model.leanest(configuration))

    def observe(self, configuration: Configuration, measured: int, execution: Execution = PLAIN) -> None:
        """Learns from a run that needed more than was predicted (on a device whose kernels keep more)."""
        self._ratio = max(self._ratio, measured / self._model.predict(configuration, execution=execution).bytes)

    def pack_fits(self, configurations: Sequence[Configuration]) -> bool:
        """Whether configurations fit when they are trained together, each in the plain way.

        Sure by far, or else by the exact prediction. What cannot be predicted does not fit.
        """
        if self._limit is None:
            return True
        base = self._corrected(self._model.needed(self._model.base_bytes()))
        for above in (self._bound, self._ceiling):
            most = [above(configuration) for configuration in configurations]
            known = [count for count in most if count is not None]
            if len(known) == len(most) and base + sum(PACK_CAUTION * (c - base) for c in known) <= self._limit:
                return True
        peak = self._model.predict_pack(configurations)
        return peak is not None and self._corrected(peak.bytes) <= self._limit

    def _leaner(self, configuration: Configuration, limit: int) -> Fit:
        """The first way that fits; the leanest one is asked before those between."""
        plain = self._exact(configuration, PLAIN)
        if plain <= limit:
            return Fit(PLAIN, plain, exact=True)
        leanest = self._model.leanest(configuration)
        least = self._exact(configuration, leanest)
        if least > limit:
            return Fit(None, least, exact=True)
        ways = executions(configuration.training.batch_size, checkpoints=leanest.checkpointing)
        for way in ways:
            needed = self._exact(configuration, way)
            if needed <= limit:
                return Fit(way, needed, exact=True)
        return Fit(leanest, least, exact=True)

    def _exact(self, configuration: Configuration, execution: Execution) -> int:
        predicted = self._model.predict(configuration, execution=execution).bytes
        return self._corrected(predicted + self._model.choosing_bytes(configuration))

    def _corrected(self, count: int) -> int:
        return int(count * self._ratio)

    def _referable(self, configuration: Configuration) -> bool:
        """Whether no part is larger than the references."""
        # One set of references, at the largest batch seen and with dropout, bounds the smaller batches as well.
        self._rows = max(self._rows, configuration.training.batch_size)
        return configuration.whole is None and all((p.size or 0) <= REFERENCE_SIZE for _, p in configuration.parts())

    def _bound(self, configuration: Configuration) -> int | None:
        """What no configuration of these methods comes near, where the methods' table says so of all of them."""
        if not self._referable(configuration) or not all(METHODS[method].bounded for method in configuration.methods):
            return None
        dora = self._reference("dora")
        if not dora.sites:
            return None
        bare = self._bare()
        kept = BOUND_CAUTION * (self._model.predict(dora).bytes - bare)
        return self._corrected(bare + int(len(configuration.methods) * kept))

    def _ceiling(self, configuration: Configuration) -> int | None:
        """What no configuration of these methods exceeds; None for parts that are larger than the references."""
        if not self._referable(configuration):
            return None
        bare = self._bare()
        references = (self._model.predict(self._reference(method)).bytes for method in configuration.methods)
        choosing = self._model.choosing_bytes(configuration)
        return self._corrected(bare + choosing + sum(max(0, reference - bare) for reference in references))

    def _bare(self) -> int:
        # Only a head of ours can be trained without any part; what the others lack here is counted with every method.
        if self._model.carrier().head in ("cls", "mean"):
            return self._model.predict(Configuration((), self._training(()))).bytes
        return self._model.needed(self._model.base_bytes())

    def _reference(self, method: str) -> Configuration:
        """One method on every site that it fits, at a size that no smaller part exceeds."""
        row = METHODS[method]
        sites: dict[str, list[Part]] = {}
        for site in self._model.modules.sites:
            if row.fits(site):
                legal = row.sizes(site) if row.size is not None else ()
                size = next((value for value in legal if value >= REFERENCE_SIZE), legal[-1]) if legal else None
                sites[site.name] = [Part.of(method, row.knobs(site, size))]
        return Configuration.of(sites, self._training((method,)))

    def _training(self, methods: tuple[str, ...]) -> Training:
        return Training(tuple((method, 1e-3) for method in methods), 1e-3, self._rows, dropout=0.1)
