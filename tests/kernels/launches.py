"""Compiles the project's kernels as methods really launch them, for GPUs that are not there.

    python -m tests.kernels.launches

Runs every case with its kernels replaced by recorders, then compiles what was recorded for each
compute capability, and prints one JSON object a line. Needs a process without TRITON_INTERPRET.
Gluon's kernels take descriptors, which only Triton's own binder knows: those are compiled through
it, for the one capability that has a copy engine.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import attnbench.kernels
from attnbench.kernels import (
    append,
    distance_backward,
    distance_forward,
    fold,
    products,
    read_bandwidth,
    ring_decode,
    ring_product,
    skinny_product,
    topk_select,
)
from attnbench.kernels.product_launch import ProductLaunch, ProductShape
from attnbench.measure import sums
from attnbench.methods import registry
from attnbench.methods.base import CacheLength, CacheView, KernelConfig, LayerShape
from attnbench.methods.distance_launch import form_of, numbers_of, table_of
from attnbench.methods.split_kv import ring_configurations

CAPABILITIES = (80, 89, 90)
COPY_ENGINE = 90
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
# Kernels that need instructions which earlier GPUs lack.
LEAST_CAPABILITY = {"fp8_decode_kernel": 89}
RING = ring_decode.ring_decode_kernel
SKINNY_PRODUCT = skinny_product.skinny_product_kernel
RING_PRODUCT = ring_product.ring_product_kernel
# Products of a Llama-3.2-1B step and of an 8B one; of the first every launch on offer is compiled.
PRODUCTS = (
    ProductShape(4, 16384, 2048, "norm+gate"),
    ProductShape(16, 2048, 8192, "residual"),
    ProductShape(1, 4096, 14336, "plain"),
)
# (head dimension, query heads, dtype) of the ring kernel, over 8 KV heads.
RING_CASES = (
    (64, 32, torch.bfloat16),
    (128, 24, torch.float16),
    (64, 8, torch.bfloat16),
    (128, 128, torch.bfloat16),
)
# (method, dtype, head dimension, whether to compile every configuration or the default alone)
CASES = (
    ("flash_decode", torch.bfloat16, 64, True),
    ("flash_decode", torch.float16, 128, False),
    ("flash_decode", torch.float32, 256, False),
    ("sink_window,impl=triton", torch.bfloat16, 128, False),
    ("int8_kv,impl=triton", torch.bfloat16, 64, True),
    ("int8_kv,impl=triton", torch.float16, 256, False),
    ("int4_kv,impl=triton", torch.bfloat16, 64, False),
    ("int4_kv,keys=token,values=exact,impl=triton", torch.float16, 128, False),
    ("fp8_kv,impl=triton", torch.bfloat16, 64, False),
    ("coded_topk,dense=0,impl=triton", torch.bfloat16, 64, False),
    ("coded_topk,bits=4,sample=64,dense=0,impl=triton", torch.float32, 128, False),
    ("coded_topk,rows=int8,dense=0,impl=triton", torch.bfloat16, 64, False),
    ("coded_topk,rows=int8,dense=0,impl=triton", torch.float16, 128, False),
    ("waiting,impl=triton,wait_us=5,inner=flash_decode", torch.bfloat16, 64, False),
    ("cy_bias,tau=20,least_weight=0.01,impl=triton", torch.float16, 128, False),
    ("cy_bias,mode=comet,tail=exact,impl=triton", torch.bfloat16, 64, False),
    ("aether,variant=scaled,threshold=share,value=0.15,impl=triton", torch.bfloat16, 64, True),
    ("aether,variant=trt,threshold=mass,value=0.9,sinks=1,impl=triton", torch.float16, 128, False),
    ("aether,variant=rust,heads=own,impl=triton", torch.float32, 128, False),
    ("aether,variant=cone,threshold=relative,block=16,impl=triton", torch.bfloat16, 64, False),
    ("quest,dense_layers=0,impl=triton", torch.bfloat16, 64, False),
    ("dcr_topk,generation=m6", torch.bfloat16, 64, False),
    ("dcr_topk,generation=m6,scorer=cache,sharing=group", torch.float16, 128, False),
)
# Full sequences with a bias, forward and backward: (method, dtype, head dimension).
BIASED = (("cy_bias,mode=holo", torch.bfloat16, 64),)
# (dtype, width) of the scores that a row is chosen by: as many as are held at once, and more.
SELECTED = ((torch.float32, 32768), (torch.bfloat16, 65536))


@dataclass(frozen=True)
class Launch:
    """One recorded launch: a kernel with its arguments by name."""

    kernel: JITFunction
    arguments: dict[str, object]
    grid: tuple[int, ...]


class OnPaper:
    """A driver of a GPU that is not there: Triton compiles for it, and launches nothing."""

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", COPY_ENGINE, 32)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        """The default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where the tensors of this process are."""
        return torch.device("cpu")


@dataclass
class Recorder:
    """Stands in for a kernel and keeps what it is launched with."""

    kernel: JITFunction
    launches: list[Launch]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: object, **kwargs: object) -> None:
            named = dict(zip(self.kernel.arg_names, args, strict=False))
            self.launches.append(Launch(self.kernel, named | kwargs, grid))

        return launch


def entry_points() -> dict[str, JITFunction]:
    """Every kernel of the package that no other one calls, by name."""
    found: dict[str, JITFunction] = {}
    for info in pkgutil.iter_modules(attnbench.kernels.__path__, "attnbench.kernels."):
        module = importlib.import_module(info.name)
        found |= {name: fn for name, fn in vars(module).items() if isinstance(fn, JITFunction)}
    called = {name for fn in found.values() for name in names_in(fn)}
    return {name: fn for name, fn in found.items() if name not in called}


def names_in(kernel: JITFunction) -> set[str]:
    """Names that a kernel's body uses."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kernel.fn)))
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def recorded() -> Iterator[tuple[str, KernelConfig | None, bool, Launch]]:
    """What the cases launch: case, configuration, whether it is the default, launch."""
    launches: list[Launch] = []
    for name, kernel in entry_points().items():
        module = importlib.import_module(kernel.fn.__module__)
        setattr(module, name, Recorder(kernel, launches))
    for spec, dtype, head_dim, every in CASES:
        method = registry.parse(spec)
        shape = shape_of(dtype, head_dim)
        configs = method.configurations(shape)
        for config in configs if every else configs[:1]:
            launches.clear()
            decode_once(method.layer(replace(shape, kernel=config)), shape)
            for launch in launches:
                yield f"{spec} {dtype} D={head_dim}", config, config == configs[0], launch
    for spec, dtype, head_dim in BIASED:
        launches.clear()
        biased_once(spec, shape_of(dtype, head_dim))
        for launch in launches:
            yield f"full {spec} {dtype} D={head_dim}", None, True, launch
    launches.clear()
    fold.fold(
        torch.zeros(64, 16, dtype=torch.int64),
        torch.zeros(16, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
        sums.PLACE_MULTIPLIER,
    )
    for launch in launches:
        yield "fold", None, True, launch
    for dtype, width in SELECTED:
        launches.clear()
        length = torch.zeros(1, dtype=torch.int32)
        topk_select.select_highest(torch.zeros(2, width, dtype=dtype), length, (3, 20, 64, 2), 4800)
        for launch in launches:
            yield f"select {width} of {dtype}", None, True, launch
    launches.clear()
    rows = torch.zeros(1, 8, 2048, 64, dtype=torch.bfloat16)
    append.append_row(rows[:, :, :1], rows[:, :, 1:2], rows, rows.clone(), 1024)
    for launch in launches:
        yield "append", None, True, launch
    launches.clear()
    config = read_bandwidth.configurations(processors=1)[0]
    buffer = torch.zeros(config.tile * config.programs)
    read_bandwidth.read(buffer, torch.zeros(config.programs), config)
    for launch in launches:
        yield "read_bandwidth", None, True, launch


def recorded_rings() -> Iterator[tuple[str, KernelConfig, Launch]]:
    """What the ring kernel is launched with: case, configuration, launch. After `recorded`."""
    launches: list[Launch] = []
    ring_decode.ring_decode_kernel = Recorder(RING, launches)
    method = registry.parse("flash_decode")
    for head_dim, heads, dtype in RING_CASES:
        shape = shape_of(dtype, head_dim, heads)
        for config in ring_configurations(shape, 4 * head_dim):
            decode_once(method.layer(replace(shape, kernel=config)), shape)
            yield f"ring {dtype} D={head_dim} heads={heads}", config, launches.pop()


def recorded_products() -> Iterator[tuple[str, ProductLaunch, bool, Launch]]:
    """What the Triton kernel of products is launched with: case, launch, whether it is the default,
    what was recorded; alone, and as a dependent of the kernel in front."""
    launches: list[Launch] = []
    skinny_product.skinny_product_kernel = Recorder(SKINNY_PRODUCT, launches)
    for shape in PRODUCTS:
        offered = products.triton_launches(shape)
        for launch in offered if shape is PRODUCTS[0] else offered[:1]:
            for dependent in (False, True) if launch == offered[0] else (True,):
                product_once(skinny_product.skinny_product, shape, launch, dependent=dependent)
                case = f"product {shape} {'dependent' if dependent else ''}"
                yield case, launch, launch == offered[0] and not dependent, launches.pop()


def recorded_ring_products() -> Iterator[tuple[str, ProductLaunch, Launch]]:
    """The same of the ring kernel of products."""
    launches: list[Launch] = []
    ring_product.ring_product_kernel = Recorder(RING_PRODUCT, launches)
    for shape in PRODUCTS:
        # Whether the next kernel starts sooner is one constant more.
        offered = [each for each in products.ring_launches(shape) if not each.let_go]
        for launch in offered if shape is PRODUCTS[0] else offered[:1]:
            product_once(ring_product.ring_product, shape, launch, early=True)
            yield f"product {shape}", launch, launches.pop()


def product_once(
    kernel: Callable[..., torch.Tensor], shape: ProductShape, launch: ProductLaunch, **how: bool
) -> None:
    """One product of that shape, of memory that holds anything."""
    gated = "gate" in shape.form

    def some(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.bfloat16)

    kernel(
        some(shape.rows, shape.depth),
        some(shape.columns, shape.depth),
        launch=launch,
        programs=products.ASSUMED_SMS * launch.on_an_sm,
        bias=some(shape.columns),
        residual=some(shape.rows, shape.columns) if "residual" in shape.form else None,
        norm=some(shape.depth) if "norm" in shape.form else None,
        epsilon=1e-5,
        gated=gated,
        **how,
    )


def shape_of(dtype: torch.dtype, head_dim: int, heads: int = 32) -> LayerShape:
    """Llama's heads over a short cache."""
    device = torch.device("cpu")
    return LayerShape(1, heads, 8, head_dim, 2048, dtype, device, 0, head_dim**-0.5)


def decode_once(layer, shape: LayerShape) -> None:
    """Prefill with 1024 zero tokens and append one."""
    rows = torch.zeros(
        (shape.batch, shape.kv_heads, shape.capacity, shape.head_dim), dtype=shape.dtype
    )
    layer.prefill(CacheView(rows, rows.clone(), CacheLength(shape.device, 1024)))
    q = torch.zeros((shape.batch, shape.heads, 1, shape.head_dim), dtype=shape.dtype)
    layer.decode(q, rows[:, :, :1], rows[:, :, :1])


def biased_once(spec: str, shape: LayerShape) -> None:
    """Forward and backward of one sequence of a length that is no multiple of a tile."""
    method = registry.parse(f"{spec},impl=triton")
    bias = method.untrained(shape.heads, shape.device)
    form, numbers = form_of(bias.rule, bias.reach), numbers_of(bias)
    table = table_of(bias.rule, shape.device)
    q = torch.zeros((1, shape.heads, 1000, shape.head_dim), dtype=shape.dtype)
    k = torch.zeros((1, shape.kv_heads, 1000, shape.head_dim), dtype=shape.dtype)
    out, lse = distance_forward.distance_forward(q, k, k, form, numbers, table, shape.scale)
    distance_backward.distance_backward(
        out, q, k, k, out, lse, form, numbers, table, shape.scale, learns=True
    )


def source_of(launch: Launch) -> tuple[ASTSource, dict[str, object]]:
    """What Triton would compile for these arguments, and its launch options."""
    signature, constants, attributes = {}, {}, {}
    arguments = dict(launch.arguments)
    for place, parameter in enumerate(launch.kernel.params):
        value = arguments.pop(parameter.name)
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes), arguments


def main() -> None:
    """Compile every case; every configuration for 9.0, the defaults for the others too."""
    for name in entry_points():
        print(json.dumps({"entry_point": name}))
    for case, config, default, launch in (*recorded(), *recorded_products()):
        source, options = source_of(launch)
        for capability in CAPABILITIES if default else (90,):
            if capability < LEAST_CAPABILITY.get(launch.kernel.fn.__name__, 0):
                print(json.dumps(refusal(launch, capability)), flush=True)
                continue
            compiled = triton.compile(
                source, target=GPUTarget("cuda", capability, 32), options=options
            )
            row = {
                "kernel": launch.kernel.fn.__name__,
                "case": case,
                "config": str(config),
                "capability": capability,
                "shared_bytes": compiled.metadata.shared,
                "async_copies": compiled.asm["ptx"].count("cp.async.c"),
                "barrier_before_ticket": barrier_before_ticket(compiled.asm["ptx"]),
                "spilled": ".local" in compiled.asm["ptx"],
                "waits": compiled.asm["ptx"].count("griddepcontrol.wait"),
            }
            print(json.dumps(row), flush=True)
    triton.runtime.driver.set_active(OnPaper())
    for case, config, launch in (*recorded_rings(), *recorded_ring_products()):
        compiled = launch.kernel.warmup(grid=launch.grid, **launch.arguments)
        ptx = compiled.asm["ptx"]
        row = {
            "kernel": launch.kernel.fn.__name__,
            "on_an_sm": getattr(config, "on_an_sm", 0),
            "case": case,
            "config": str(config),
            "capability": COPY_ENGINE,
            "shared_bytes": compiled.metadata.shared,
            "dependent_launch": compiled.metadata.launch_pdl,
            "bulk_copies": ptx.count("cp.async.bulk.tensor"),
            "waits": ptx.count("griddepcontrol.wait"),
            "lets_go": ptx.count("griddepcontrol.launch_dependents"),
            "spilled": ".local" in ptx,
            "barrier_before_ticket": barrier_before_ticket(ptx),
        }
        print(json.dumps(row), flush=True)


def refusal(launch: Launch, capability: int) -> dict[str, object]:
    """What the compiler says of a kernel that this GPU has no instructions for."""
    source, options = source_of(launch)
    said = ""
    try:
        triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    except Exception as error:  # noqa: BLE001 - whatever it says is the finding
        said = f"{error} {error.__cause__ or ''}"
    return {"refused": launch.kernel.fn.__name__, "refused_by": capability, "said": said}


def barrier_before_ticket(ptx: str) -> bool:
    """Whether threads meet before the atomic that says a program has published."""
    before, atomic, _ = ptx.partition("atom.")
    return not atomic or "bar.sync" in before.rpartition("st.global")[2]


if __name__ == "__main__":
    main()
