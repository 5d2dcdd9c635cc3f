"""The kernels that a captured CUDA graph launches, as the CUDA driver names them.

torch hands out the graph; what its nodes launch, only the driver's library can tell. Types and
numbers are those of cuda.h; drivers for CUDA 12.3 and later give names.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from typing import Any, TypeAlias

from attnbench.errors import Unsupported

Handle: TypeAlias = int | None  # what a c_void_p holds: None is NULL

LIBRARY = "libcuda.so.1"
SUCCESS = 0  # CUresult
KERNEL, CHILD_GRAPH, CONDITIONAL = 0, 4, 13  # CUgraphNodeType: the ones that launch kernels


class KernelNodeParams(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2; `kern` says what is launched where `func` is NULL."""

    _fields_ = (
        ("func", c_void_p),
        ("gridDimX", c_uint),
        ("gridDimY", c_uint),
        ("gridDimZ", c_uint),
        ("blockDimX", c_uint),
        ("blockDimY", c_uint),
        ("blockDimZ", c_uint),
        ("sharedMemBytes", c_uint),
        ("kernelParams", c_void_p),
        ("extra", c_void_p),
        ("kern", c_void_p),
        ("ctx", c_void_p),
    )


ENTRY_POINTS: dict[str, tuple[Any, ...]] = {
    "cuGraphGetNodes": (c_void_p, POINTER(c_void_p), POINTER(c_size_t)),
    "cuGraphNodeGetType": (c_void_p, POINTER(c_int)),
    "cuGraphChildGraphNodeGetGraph": (c_void_p, POINTER(c_void_p)),
    "cuGraphKernelNodeGetParams_v2": (c_void_p, POINTER(KernelNodeParams)),
    "cuFuncGetName": (POINTER(c_char_p), c_void_p),
    "cuKernelGetName": (POINTER(c_char_p), c_void_p),
}


@dataclass(frozen=True)
class KernelList:
    """Names, sorted, each as often as it is launched; or why the driver does not tell them."""

    names: tuple[str, ...] = ()
    unknown: str = ""


class Driver:
    """What is asked of the CUDA driver; graphs and nodes are its handles.

    `library` has the entry points of libcuda. Everything raises `Unsupported` where one of them is
    missing or refuses.
    """

    def __init__(self, library: Any) -> None:
        self._functions = {
            name: _declared(library, name, argtypes) for name, argtypes in ENTRY_POINTS.items()
        }

    def nodes(self, graph: Handle) -> tuple[Handle, ...]:
        """Every node of a graph, without those of its child graphs."""
        count = c_size_t()
        self._call("cuGraphGetNodes", graph, None, byref(count))
        nodes = (c_void_p * count.value)()
        self._call("cuGraphGetNodes", graph, nodes, byref(count))
        return tuple(nodes[: count.value])

    def node_type(self, node: Handle) -> int:
        """A CUgraphNodeType."""
        found = c_int()
        self._call("cuGraphNodeGetType", node, byref(found))
        return found.value

    def child_graph(self, node: Handle) -> Handle:
        """The graph that a node of type CHILD_GRAPH runs."""
        graph = c_void_p()
        self._call("cuGraphChildGraphNodeGetGraph", node, byref(graph))
        return graph.value

    def kernel_name(self, node: Handle) -> str:
        """What a node of type KERNEL launches; of a C++ kernel the mangled name."""
        params = KernelNodeParams()
        self._call("cuGraphKernelNodeGetParams_v2", node, byref(params))
        if params.func:
            return self._name("cuFuncGetName", params.func)
        return self._name("cuKernelGetName", params.kern)

    def _name(self, entry_point: str, handle: Handle) -> str:
        name = c_char_p()
        self._call(entry_point, byref(name), handle)
        if not name.value:
            raise Unsupported(f"{entry_point} of the CUDA driver gave no name")
        return name.value.decode(errors="backslashreplace")

    def _call(self, entry_point: str, *arguments: Any) -> None:
        result = self._functions[entry_point](*arguments)
        if result != SUCCESS:
            raise Unsupported(f"{entry_point} of the CUDA driver returned error {result}")


def cuda_library() -> Any:
    """The library of the CUDA driver; raises `Unsupported` where there is none."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as e:
        raise Unsupported(f"the CUDA driver's library cannot be loaded: {e}") from e


def kernel_list(graph: int, library: Any = None) -> KernelList:
    """The kernels of a graph, a cudaGraph_t, and of its child graphs.

    Copies and fills (memcpy and memset nodes) are no kernels. `library`: libcuda, by default.
    """
    try:
        driver = Driver(cuda_library() if library is None else library)
        return KernelList(names=tuple(sorted(_kernel_names(driver, graph))))
    except Unsupported as refusal:
        return KernelList(unknown=refusal.message)


def _kernel_names(driver: Driver, graph: Handle) -> Iterator[str]:
    for node in driver.nodes(graph):
        node_type = driver.node_type(node)
        if node_type == KERNEL:
            yield driver.kernel_name(node)
        elif node_type == CHILD_GRAPH:
            yield from _kernel_names(driver, driver.child_graph(node))
        elif node_type == CONDITIONAL:
            raise Unsupported("what a conditional node launches is decided at each replay")


def _declared(library: Any, name: str, argtypes: tuple[Any, ...]) -> Any:
    try:
        function = getattr(library, name)
    except AttributeError as e:
        raise Unsupported(f"the CUDA driver has no {name}: CUDA 12.3 or later has it") from e
    function.argtypes, function.restype = argtypes, c_int
    return function
