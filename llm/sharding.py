"""The frozen base cut up over the processes of a run (torch's FSDP), and what keeps the processes in step.

Each process keeps a share of every layer's frozen weights. A layer is put together where a process computes with it,
and freed after. What is trained is whole everywhere, and so are embeddings, final norm and output head, which the
engine reads itself: adapter, gradients and checkpoints are what they are without it.

A layer's weights come from all processes at once, but each process has work of its own. So before each pass through
the layers, forwards or backwards, every process says what it wants, and all go through the layers in the same
direction. One that wants the other direction, or waits in an exchange, hands out its shares and computes nothing.
"""

from __future__ import annotations

import warnings
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from llm import processes
from llm.errors import UserError

if TYPE_CHECKING:
    import peft
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel


class Pass(IntEnum):
    """What a process wants; where they differ, all do the highest."""

    NONE = 0
    FORWARD = 1
    BACKWARD = 2
    ERROR = 3


def check_cuttable(quantization: str) -> None:
    """Refuse settings and libraries with which the base cannot be cut up.

    Raises:
        UserError: The base is quantised, or torch is too old.
    """
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "reset_iter_state"):
        raise UserError(f"FSDP: torch {torch.__version__} is too old for it; 2.13 is known to work.")
    if quantization != "none":
        raise UserError(
            f"--quantization {quantization} with FSDP: not supported; what bitsandbytes keeps beside the packed "
            "weights would have to be cut up with them. Leave one of the two out; launched with --multi_gpu instead of "
            "--use_fsdp, every GPU holds the whole base."
        )


def devices_of_all(device: str) -> DeviceMesh:
    """Return the devices of all processes; all call this at the same time."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(torch.device(device).type, (processes.count(),))


def cut(model: peft.PeftModel, mesh: DeviceMesh) -> None:
    """Keep this process's share of every layer's frozen weights, and put the model on its device.

    Args:
        model: The base with its adapters, whole, on the CPU.
        mesh: The devices of all processes.

    Raises:
        UserError: The model does not say what its layers are.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    base = model.get_base_model()
    layers = layers_named(base)
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    whole = {parameter for parameter in base.base_model.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(base.base_model, mesh=mesh, ignored_params=whole)
    model.to(mesh.device_type)


def keep_step(base: PreTrainedModel) -> None:
    """Let all processes, whose bases are cut up, go through their layers together from now on.

    Args:
        base: The base; all processes call this at the same time.
    """
    body, layers = base.base_model, layers_of(base)
    # GPT-J's and GPT-2's states are a view in the end, which nothing changes in place.
    view = rf"FSDP2-wrapped module \({type(body).__name__}\) returned a view tensor"
    warnings.filterwarnings("ignore", view, UserWarning)
    step = _Step(body, layers)
    body.register_forward_pre_hook(lambda *_: step.begin(Pass.FORWARD))
    body.register_forward_hook(partial(_at_gradient, partial(step.begin, Pass.BACKWARD)))
    for place, layer in enumerate(layers):
        before = max(place - 1, 0)
        layer.set_modules_to_backward_prefetch([layers[before]])
        layer.register_forward_pre_hook(lambda *_, place=place: step.passed(place))
        layer.register_forward_hook(partial(_at_gradient, partial(step.passed, before)))
    step.hand_out(range(len(layers)))
    processes.while_waiting(step.serve)


def layers_of(base: torch.nn.Module) -> list[Any]:
    """Return the layers that are cut up, from the first to the last; none where the base is whole."""
    from torch.distributed.fsdp import FSDPModule

    return [module for module in base.modules() if isinstance(module, FSDPModule)][1:]


def planned_bytes(base: PreTrainedModel, count: int) -> int:
    """Return the bytes of a base's frozen weights that each of some processes will need at once.

    These are its shares, what stays whole, and four layers: two are together in a pass, and the buffers through which
    they are gathered may be as large again.

    Args:
        base: The base, whole, or without data.
        count: Processes that it is to be cut over.
    """
    frozen = {id(p): p.nbytes for name, p in base.named_parameters() if "lora_" not in name}
    layers = [sum(frozen.get(id(p), 0) for p in layer.parameters()) for layer in layers_named(base)]
    return sum(frozen.values()) - sum(layers) + sum(layers) // count + 4 * max(layers)


def bytes_held(model: torch.nn.Module) -> int:
    """Return the bytes of a model's weights that this process needs at once: its shares, what is whole, two layers."""
    from torch.distributed.tensor import DTensor

    tensors = [*model.parameters(), *model.buffers()]
    held = sum(tensor.to_local().nbytes if isinstance(tensor, DTensor) else tensor.nbytes for tensor in tensors)
    layers = [sum(p.nbytes for p in layer.parameters() if isinstance(p, DTensor)) for layer in layers_of(model)]
    return held + 2 * max(layers, default=0)


class _Step:
    """This process among those that go through the layers together.

    Args:
        body: The model without its head.
        layers: Its layers, from the first to the last.
    """

    def __init__(self, body: Any, layers: list[Any]) -> None:
        self._body, self._layers = body, layers
        self._ahead: list[int] = []
        self._has_begun = False

    def begin(self, wanted: Pass) -> None:
        """Return once all go in the direction that is wanted here.

        Raises:
            UserError: A process failed.
        """
        self._finish()
        while (agreed := processes.highest(wanted)) != wanted:
            if agreed == Pass.ERROR:
                processes.exchange(None)  # where that one says what it is
            self.hand_out(self._places(agreed))
        self._ahead, self._has_begun = [*self._places(wanted)], True

    def passed(self, place: int) -> None:
        """Note that the layers of this pass are put together up to one of them."""
        if place in self._ahead:
            del self._ahead[: self._ahead.index(place) + 1]

    def serve(self, failed: bool) -> None:
        """Hand out shares until no process goes through the layers any more; where this one failed, end the others."""
        self._finish()
        if self._has_begun:
            self._body.reset_iter_state()  # an error may have left a layer as it was
            self._has_begun = False
        wanted = Pass.ERROR if failed else Pass.NONE
        while agreed := processes.highest(wanted):
            self.hand_out(self._places(agreed))
            wanted = Pass.NONE

    def hand_out(self, places: Any) -> None:
        """Take part in putting layers together, and compute nothing."""
        for place in places:
            self._layers[place].unshard()
            self._layers[place].reshard()

    def _finish(self) -> None:
        """Hand out the layers to which the last pass here did not get, as after an error or where no gradient goes."""
        self.hand_out(self._ahead)
        self._ahead = []

    def _places(self, agreed: int) -> range:
        """The places of the layers that are put together in a pass, in its order."""
        places = range(len(self._layers))
        return {Pass.FORWARD: places, Pass.BACKWARD: places[::-1]}.get(Pass(agreed), range(0))


def _at_gradient(note: Any, module: torch.nn.Module, inputs: Any, output: Any) -> None:
    """Forward hook: call `note` when the gradient of the module's output is there."""
    states = output if isinstance(output, torch.Tensor) else output[0]
    if states.requires_grad:
        states.register_hook(lambda _: note())


def layers_named(base: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the modules that the architecture calls its layers.

    Raises:
        UserError: It names none.
    """
    names = base._no_split_modules or ()
    layers = [module for module in base.base_model.modules() if type(module).__name__ in names]
    if not layers:
        raise UserError(
            f"FSDP: {base.config.model_type} does not say what its layers are, so it cannot be cut up. Launch with "
            "--multi_gpu instead; then every process holds the whole base."
        )
    return layers
