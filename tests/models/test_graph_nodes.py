"""The kernels of a graph, as a driver tells them that keeps its graphs in Python."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_void_p
from types import SimpleNamespace

import pytest

from attnbench.models import graph_nodes
from attnbench.models.graph_nodes import ENTRY_POINTS, KernelList, KernelNodeParams, kernel_list

KERNEL, MEMCPY, MEMSET, HOST, CHILD, EMPTY, CONDITIONAL = 0, 1, 2, 3, 4, 5, 13
INVALID_VALUE, INVALID_HANDLE = 1, 400
GRAPH, WITHIN = 0x7F0000001000, 0x7F0000002000  # handles are pointers: wider than 32 bits
FUNCTION, LAUNCHED = 0x7F00000A0000, 0x7F00000B0000
MANGLED = b"_ZN2at6native29vectorized_elementwise_kernelILi4EEEvi"


class FakeDriver:
    """Entry points with the types of cuda.h, over graphs written as lists of (type, payload).

    The payload of a kernel is (func, kern), of a child graph its handle. `refuses`: entry points
    and the CUresult that they return.
    """

    def __init__(self, graphs, names, refuses=None):
        self._graphs, self._names, self._refuses = graphs, names, refuses or {}
        self._nodes = {
            graph + 16 * (place + 1): node
            for graph, nodes in graphs.items()
            for place, node in enumerate(nodes)
        }
        out = POINTER(c_void_p)
        self._export("cuGraphGetNodes", self._get_nodes, c_void_p, out, POINTER(c_size_t))
        self._export("cuGraphNodeGetType", self._get_type, c_void_p, POINTER(c_int))
        self._export("cuGraphChildGraphNodeGetGraph", self._get_child, c_void_p, out)
        params = POINTER(KernelNodeParams)
        self._export("cuGraphKernelNodeGetParams_v2", self._get_params, c_void_p, params)
        self._export("cuFuncGetName", self._get_name, POINTER(c_char_p), c_void_p)
        self._export("cuKernelGetName", self._get_name, POINTER(c_char_p), c_void_p)

    def _export(self, name, answer, *types):
        def called(*arguments):
            return self._refuses.get(name) or answer(*arguments)

        setattr(self, name, CFUNCTYPE(c_int, *types)(called))

    def _get_nodes(self, graph, nodes, count):
        here = [node for node in self._nodes if graph < node < graph + 0x1000]
        if nodes:
            assert count[0] == len(here)
            for place, node in enumerate(here):
                nodes[place] = node
        count[0] = len(here)
        return 0

    def _get_type(self, node, found):
        found[0] = self._nodes[node][0]
        return 0

    def _get_child(self, node, graph):
        graph[0] = self._nodes[node][1]
        return 0

    def _get_params(self, node, params):
        params[0].func, params[0].kern = self._nodes[node][1]
        return 0

    def _get_name(self, name, handle):
        if handle not in self._names:
            return INVALID_HANDLE
        name[0] = self._names[handle]
        return 0


def driver(*nodes, within=(), refuses=None):
    names = {FUNCTION: b"spin_kernel", FUNCTION + 1: MANGLED, LAUNCHED: b"library_kernel"}
    return FakeDriver({GRAPH: nodes, WITHIN: within}, names, refuses)


SPIN, ADD = (KERNEL, (FUNCTION, None)), (KERNEL, (FUNCTION + 1, None))
LIBRARY = (KERNEL, (None, LAUNCHED))
INSIDE = (CHILD, WITHIN)


def test_the_parameters_of_a_kernel_lie_where_the_driver_writes_them():
    offsets = {
        name: getattr(KernelNodeParams, name).offset for name, _ in KernelNodeParams._fields_
    }
    assert offsets == {
        "func": 0,
        "gridDimX": 8, "gridDimY": 12, "gridDimZ": 16,
        "blockDimX": 20, "blockDimY": 24, "blockDimZ": 28,
        "sharedMemBytes": 32,
        "kernelParams": 40, "extra": 48, "kern": 56, "ctx": 64,
    }  # fmt: skip
    assert ctypes.sizeof(KernelNodeParams) == 72


def test_every_kernel_is_named_as_often_as_it_is_launched_and_nothing_else_is():
    copies = ((MEMCPY, None), (MEMSET, None), (HOST, None), (EMPTY, None))
    found = kernel_list(GRAPH, driver(SPIN, ADD, *copies, SPIN))
    assert found == KernelList(names=(MANGLED.decode(), "spin_kernel", "spin_kernel"))


def test_a_kernel_without_a_function_is_named_by_its_own_handle():
    assert kernel_list(GRAPH, driver(LIBRARY)).names == ("library_kernel",)


def test_the_kernels_of_child_graphs_count_each_time_that_the_child_runs():
    within = (LIBRARY, SPIN)
    found = kernel_list(GRAPH, driver(INSIDE, SPIN, INSIDE, within=within))
    assert found.names == ("library_kernel",) * 2 + ("spin_kernel",) * 3


def test_a_graph_without_nodes_has_no_kernels_and_that_is_known():
    assert kernel_list(GRAPH, driver()) == KernelList()


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_an_entry_point_that_refuses_is_named_with_its_error_and_no_kernel_is(entry_point):
    refusing = driver(SPIN, LIBRARY, INSIDE, refuses={entry_point: INVALID_VALUE})
    found = kernel_list(GRAPH, refusing)
    assert found.names == ()
    assert f"{entry_point} of the CUDA driver returned error 1" in found.unknown


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_a_driver_that_lacks_an_entry_point_is_told_with_the_version_that_has_it(entry_point):
    exported = {name: getattr(driver(SPIN), name) for name in ENTRY_POINTS if name != entry_point}
    found = kernel_list(GRAPH, SimpleNamespace(**exported))
    assert found.names == ()
    assert f"no {entry_point}: CUDA 12.3" in found.unknown


@pytest.mark.parametrize("handle", [FUNCTION, LAUNCHED])
def test_a_name_that_is_not_given_is_unknown_and_not_an_empty_name(handle):
    nameless = FakeDriver({GRAPH: [SPIN, LIBRARY]}, {FUNCTION: b"a", LAUNCHED: b"b", handle: None})
    found = kernel_list(GRAPH, nameless)
    assert found.names == ()
    assert "gave no name" in found.unknown


def test_a_list_that_would_miss_the_kernels_of_a_conditional_node_is_not_told_at_all():
    found = kernel_list(GRAPH, driver(SPIN, (CONDITIONAL, None)))
    assert found.names == ()
    assert "conditional" in found.unknown


def test_a_machine_without_the_drivers_library_says_so(monkeypatch):
    monkeypatch.setattr(graph_nodes, "LIBRARY", "libcuda-of-nobody.so.1")
    found = kernel_list(GRAPH)
    assert found.names == ()
    assert "libcuda-of-nobody.so.1" in found.unknown
