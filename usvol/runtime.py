"""Make one fast callable of a network: OpenVINO on a CPU, torch on CUDA, checked against eager torch.

The precision is always explicit, for OpenVINO's own default follows the CPU (bf16 on some, f32 on others),
and the same file must give the same numbers everywhere.
"""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from usvol.errors import ConfigError, UsvolError
from usvol.supervision import check

if TYPE_CHECKING:
    import openvino

Precision = Annotated[
    Literal["f32", "bf16"], Field(description="arithmetic of the network: f32, or bf16 where it is faster")
]
Output = Tensor | tuple[Tensor, ...]

# |compiled - eager| / |eager| (Euclidean) that rounding explains: on U-Nets 1e-4 in f32, 1e-2 in bf16.
TOLERANCE: dict[str, float] = {"f32": 1e-3, "bf16": 3e-2}
_PATIENCE_MS = 50  # between two looks at whether a network call was cancelled

logger = logging.getLogger(__name__)


class ParityError(UsvolError):
    """A compiled network does not answer as the network it was made from."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network ready to run: call it with tensors on any device, get float32 tensors on ``device``.

    Attributes:
        engine: ``"openvino"`` or ``"torch"``.
        device: where outputs lie, such as ``"cpu"`` or ``"cuda:0"``.
        precision: ``"f32"`` or ``"bf16"``.
        error: relative error against eager torch found when it was compiled; 0.0 for eager itself.
    """

    run: Callable[..., Output]
    engine: str
    device: str
    precision: Precision
    error: float

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the network; the output has the structure of the module's own."""
        return self.run(*inputs)


def resolve_device(device: str = "auto") -> torch.device:
    """Return the torch device of ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; auto takes CUDA where it works.

    Raises:
        ConfigError: no such device here, or not a device name.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, index = device.partition(":")
    if device != "cpu" and (kind != "cuda" or (index and not index.isdecimal())):
        raise ConfigError(f"No device {device!r}. Use auto, cpu, cuda or cuda:N.")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise ConfigError(
                f"Device {device!r} asked for, but torch sees {count} CUDA devices. Use cpu or auto."
            )
        return torch.device("cuda", int(index or 0))
    return torch.device("cpu")


def compile_network(
    module: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    device: str = "auto",
    precision: Precision = "f32",
    threads: int | None = None,
    dynamic_dims: tuple[int, ...] = (0,),
) -> Network:
    """Return ``module`` as a callable for inference, after checking that it answers as eager torch does.

    Without OpenVINO, or where it cannot convert the network, torch runs it and a warning is logged.
    On CUDA the module is moved there.

    Args:
        module: returns a tensor or a tuple of tensors; set to evaluation mode.
        example: input of the shape to expect, or a tuple of inputs.
        device: as ``resolve_device``.
        precision: of weights and activations; inputs and outputs are float32 either way.
        threads: CPU threads of OpenVINO; None leaves the choice to it.
        dynamic_dims: dimensions of the inputs whose size may differ from the example's.

    Raises:
        ParityError: the relative error on the example, or on noise of other dynamic sizes, exceeds
            ``TOLERANCE[precision]``.
        ConfigError: unknown device or precision.
    """
    if precision not in TOLERANCE:
        raise ConfigError(f"No precision {precision!r}. Use {' or '.join(TOLERANCE)}.")
    place = resolve_device(device)
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    module.eval().to(place)
    eager = _torch_callable(module, place, "f32")
    run, engine = None, "torch"
    if place.type == "cpu":
        run = _openvino_callable(
            module, inputs, precision=precision, threads=threads, dynamic_dims=dynamic_dims
        )
    if run is not None:
        engine = "openvino"
    elif precision != "f32":
        run = _torch_callable(module, place, precision)
    if run is None:
        return Network(eager, engine, str(place), precision, 0.0)
    error = max(relative_error(run(*probe), eager(*probe)) for probe in _probes(inputs, dynamic_dims))
    if not error <= TOLERANCE[precision]:
        raise ParityError(
            f"{type(module).__name__} in {precision} on {engine} differs from torch by {error:.2g} "
            f"(relative); {TOLERANCE[precision]:.2g} is allowed. Use precision f32, or fewer dynamic_dims."
        )
    return Network(run, engine, str(place), precision, error)


def relative_error(answer: Output, expected: Output) -> float:
    """Return the largest |answer - expected| / |expected| (Euclidean norms) over the outputs.

    Infinite where an answer or the expectation is not a number.
    """
    pairs = zip(_as_tuple(answer), _as_tuple(expected), strict=True)
    errors = [float(((a - e).norm() / e.norm().clamp_min(1e-12)).detach()) for a, e in pairs]
    return math.inf if any(math.isnan(error) for error in errors) else max(errors)


def _torch_callable(module: nn.Module, device: torch.device, precision: Precision) -> Callable[..., Output]:
    def numerics() -> AbstractContextManager[Any]:
        if precision == "bf16":
            return torch.autocast(device.type, torch.bfloat16)
        # f32 means f32: cuDNN would round convolutions to TF32.
        if device.type == "cuda":
            return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        return nullcontext()

    def run(*inputs: Tensor) -> Output:
        check()
        with torch.inference_mode(), numerics():
            output = module(*(x.to(device) for x in inputs))
        return output.float() if isinstance(output, Tensor) else tuple(part.float() for part in output)

    return run


def _openvino_callable(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    precision: Precision,
    threads: int | None,
    dynamic_dims: tuple[int, ...],
) -> Callable[..., Output] | None:
    try:
        import openvino
    except ImportError:
        logger.warning("OpenVINO is not installed: torch runs %s, slower.", type(module).__name__)
        return None
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        model = _convert(module, inputs)
        model.reshape({i: _shape(x, dynamic_dims) for i, x in enumerate(inputs)})
        compiled = openvino.Core().compile_model(model, "CPU", options)
    except (RuntimeError, openvino.frontend.OpConversionFailure, openvino.frontend.GeneralFailure) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        logger.warning("OpenVINO cannot convert %s (%s): torch runs it.", type(module).__name__, cause)
        return None
    request = compiled.create_infer_request()
    count = len(compiled.outputs)
    single = isinstance(_eager_output(module, inputs), Tensor)
    # One request serves one call at a time; batch workers and the GUI call from several threads.
    lock = threading.Lock()

    def run(*values: Tensor) -> Output:
        with lock:
            _infer(request, [x.detach().cpu().contiguous().numpy() for x in values])
            parts = tuple(torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in range(count))
        return parts[0] if single else parts

    return run


def _infer(request: openvino.InferRequest, inputs: list[Any]) -> None:
    """Run a request to its end, or stop it midway when the run is cancelled."""
    check()
    request.start_async(inputs)
    try:
        while not request.wait_for(_PATIENCE_MS):
            check()
    except BaseException:
        # A request left running would refuse the next call.
        request.cancel()
        with suppress(RuntimeError):  # how OpenVINO says that it stopped
            request.wait()
        raise


def _convert(module: nn.Module, inputs: tuple[Tensor, ...]) -> openvino.Model:
    """Convert by the front end itself: ``openvino.convert_model`` reports its use over the network."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.no_grad(), warnings.catch_warnings():
        # Tracing warns of everything that a trace freezes; the parity check decides instead.
        warnings.simplefilter("ignore")
        decoder = TorchScriptPythonDecoder(module, example_input=inputs, trace_kwargs={"check_trace": False})
        front_end = FrontEndManager().load_by_framework("pytorch")
        return front_end.convert(front_end.load(decoder))


def _shape(value: Tensor, dynamic_dims: tuple[int, ...]) -> openvino.PartialShape:
    import openvino

    return openvino.PartialShape([-1 if i in dynamic_dims else n for i, n in enumerate(value.shape)])


def _probes(inputs: tuple[Tensor, ...], dynamic_dims: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
    """Return the example, and noise of its range that is larger along the dynamic dimensions."""
    generator = torch.Generator().manual_seed(0)
    noise = []
    for value in inputs:
        shape = [n + (i in dynamic_dims) for i, n in enumerate(value.shape)]
        low, high = float(value.min()), float(value.max())
        span = high - low if high > low else 1.0
        noise.append((low + span * torch.rand(shape, generator=generator)).to(value.dtype))
    return [inputs, tuple(noise)]


def _eager_output(module: nn.Module, inputs: tuple[Tensor, ...]) -> Output:
    with torch.inference_mode():
        return module(*inputs)


def _as_tuple(output: Output) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)
