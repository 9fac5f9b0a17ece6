"""Files of skeletons: written and read back, by others as well; hostile ones are refused in one sentence."""

import json
import os
import pickle
import sys

import numpy as np
import pytest

from emcore import segment
from emcore.blocks import skeletons as command
from emcore.errors import InputError, run_command
from emcore.segment import plain_pickle
from emcore.segment.skeletons import Skeleton
from emcore.volumes import create_volume

RESOLUTION = (40.0, 8.0, 8.0)
CYCLE = Skeleton(np.array([[0, 0, 0], [0, 0, 8], [0, 8, 8], [0, 8, 0], [40, 0, 0]], np.float32),
                 np.array([[0, 1], [1, 2], [2, 3], [3, 0]]), np.array([4, 5, 6, 7.25, 8], np.float32))


def bodies():
    """A bar, a Y and two pieces of one id beyond 32 bits."""
    labels = np.zeros((6, 24, 40), np.uint64)
    labels[1:3, 2:6, 2:38] = 3
    labels[1:3, 10:14, 2:20], labels[1:3, 6:18, 20:24] = 9, 9
    labels[4:6, 2:6, 2:12], labels[4:6, 14:18, 2:30] = 2**40, 2**40
    return labels


def traced():
    return segment.skeletonize(bodies(), RESOLUTION, scale=1, const_nm=20)


def same(found, expected):
    """Whether skeletons have the same nodes with radii, and the same edges between places, in whatever order."""
    assert found.keys() == expected.keys()
    for label, one in expected.items():
        other = found[label]
        nodes = [sorted(map(tuple, np.column_stack([each.vertices, each.radius]).tolist())) for each in (one, other)]
        assert nodes[0] == nodes[1]
        edges = [sorted(tuple(sorted(map(tuple, each.vertices[pair].tolist()))) for pair in each.edges)
                 for each in (one, other)]
        assert edges[0] == edges[1]


@pytest.mark.parametrize("kind", ["swc", "precomputed"])
def test_written_skeletons_are_read_back_to_the_bit(tmp_path, kind):
    skeletons = traced()
    assert [len(one.edges) for one in skeletons.values()] == [len(one.vertices) - trees for one, trees in
                                                             zip(skeletons.values(), (1, 1, 2))]
    segment.write_skeletons(tmp_path / "out", skeletons, kind)
    same(segment.read_skeletons(tmp_path / "out"), skeletons)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == ({"info", "3", "9", str(2**40)} if kind == "precomputed" else
                     {"3.swc", "9.swc", f"{2**40}-1.swc", f"{2**40}-2.swc"})
    with pytest.raises(InputError, match="exists already"):
        segment.write_skeletons(tmp_path / "out", skeletons, kind)


def test_an_swc_file_is_one_tree_whose_cycles_are_broken(tmp_path):
    segment.write_skeletons(tmp_path / "out", {7: CYCLE})
    assert (tmp_path / "out" / "7-1.swc").read_text().splitlines()[1:] == [
        "1 0 0.0 0.0 0.0 4.0 -1", "2 0 8.0 0.0 0.0 5.0 1", "3 0 0.0 8.0 0.0 7.25 1", "4 0 8.0 8.0 0.0 6.0 2"]
    assert (tmp_path / "out" / "7-2.swc").read_text().splitlines()[1:] == ["1 0 0.0 0.0 40.0 8.0 -1"]
    assert len(segment.read_skeletons(tmp_path / "out")[7].edges) == 3
    segment.write_skeletons(tmp_path / "all", {7: CYCLE}, "precomputed")
    assert len(segment.read_skeletons(tmp_path / "all")[7].edges) == 4


def test_names_without_numbers_are_numbered(tmp_path):
    for name in ("b.swc", "a.swc"):
        (tmp_path / name).write_text("# made by hand\n\n1 2 10 20 30 1.5 -1\n5 2 11 20 30 1.5 1\n")
    found = segment.read_skeletons(tmp_path)
    assert list(found) == [1, 2]
    assert found[1].vertices.tolist() == [[30, 20, 10], [30, 20, 11]]
    assert found[1].edges.tolist() == [[1, 0]]
    assert list(segment.read_skeletons(tmp_path / "a.swc")) == [1]


def test_a_table_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("skeleton,node,x,y,z,parent,radius\n4,1,1,2,3,,5\n4,2,4,5,6,1,7\n9,1,0,0,0,-1,1\n")
    found = segment.read_skeletons(tmp_path / "a.csv")
    assert found[4].vertices.tolist() == [[3, 2, 1], [6, 5, 4]]
    assert (found[4].edges.tolist(), found[4].radius.tolist(), len(found[9].edges)) == ([[1, 0]], [5, 7], 0)


NML = """<?xml version="1.0" encoding="utf-8"?>
<things><parameters><scale x="11.24" y="11.24" z="0.025" unit="UNIT"/></parameters>
<thing id="2" name="axon &lt;1&gt;"><nodes>
<node id="1" radius="1.5" x="10" y="20" z="30"/>
<node id="4" x="11" y="20" z="30"/></nodes>
<edges><edge source="1" target="4"/></edges></thing>
<thing id="5"><nodes/><edges/></thing></things>"""


def test_trees_of_webknossos_are_read_in_nm(tmp_path):
    (tmp_path / "a.nml").write_text(NML.replace(' unit="UNIT"', "").replace("0.025", "25"))
    found = segment.read_skeletons(tmp_path / "a.nml")
    np.testing.assert_allclose(found[2].vertices, [[750, 224.8, 112.4], [750, 224.8, 123.64]])
    assert found[2].edges.tolist() == [[0, 1]]
    assert len(found[5].vertices) == 0
    (tmp_path / "a.nml").write_text(NML.replace("UNIT", "um").replace("11.24", "0.01124"))
    np.testing.assert_allclose(segment.read_skeletons(tmp_path / "a.nml")[2].vertices[0], [750, 224.8, 112.4])


@pytest.mark.parametrize("text, sentence", [
    ('<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><things>&b;</things>', "declares a document type"),
    ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><things/>', "declares a document type"),
    ("<things>", "not XML that can be read"), ("", "not XML that can be read"), ("<things/>", "size of a voxel"),
    ('<?xml version="1.0" encoding="x-none"?><things/>', "not XML that can be read"),
    (NML, "has the unit 'UNIT'"), (NML.replace("UNIT", "nm").replace('target="4"', 'target="3"'), "edge to node 3"),
    (NML.replace("UNIT", "nm").replace('x="10"', 'x="1e400"'), "whose x is no number"),
    (NML.replace("UNIT", "nm").replace('id="4"', 'id="1"'), "two nodes of the id 1"),
    (NML.replace("UNIT", "nm").replace('id="5"', f'id="{"9" * 30}"'), "whose id is no whole number"),
])
def test_damaged_nml_is_refused(tmp_path, text, sentence):
    (tmp_path / "a.nml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        segment.read_skeletons(tmp_path / "a.nml")


# ---- pickles


class Graph:
    """What networkx pickles: the class by its name, and its attributes."""

    __module__ = "networkx.classes.graph"

    def __init__(self, nodes, links):
        self.graph, self._node, self._adj = {}, nodes, links


def pickled(nodes, links, protocol=4):
    """The bytes that networkx would give, without networkx."""
    Graph.__qualname__ = "Graph"
    module = type(sys)("networkx.classes.graph")
    module.Graph = Graph
    kept = {name: sys.modules.get(name) for name in ("networkx", "networkx.classes", "networkx.classes.graph")}
    try:
        for name in kept:
            sys.modules[name] = module
        return pickle.dumps(Graph(nodes, links), protocol)
    finally:
        for name, value in kept.items():
            sys.modules.pop(name)
            if value is not None:
                sys.modules[name] = value


def two():
    """Skeleton 5 of three nodes and skeleton 2**40 of one."""
    shared = {"edge_length": 3.5}
    nodes = {0: {"id": 5, "index_position": (1, 2, 3), "nm_position": np.array([9.0, 18.0, 60.0])},
             7: {"id": np.int64(5), "nm_position": (np.float64(18), 18, 60)},
             8: {"id": 5, "nm_position": [27, 18.5, 60]}, np.int64(9): {"id": 2**40, "nm_position": (0, 0, 0)}}
    return nodes, {0: {7: shared}, 7: {0: shared, 8: {}}, 8: {7: {}}, 9: {}}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickled_graph_is_read_as_data(tmp_path, protocol):
    (tmp_path / "skeleton.pkl").write_bytes(pickled(*two(), protocol))
    found = segment.read_skeletons(tmp_path / "skeleton.pkl")
    assert found[5].vertices.tolist() == [[9, 18, 60], [18, 18, 60], [27, 18.5, 60]]
    assert sorted(map(tuple, found[5].edges.tolist())) == [(0, 1), (1, 2)]
    assert found[2**40].vertices.tolist() == [[0, 0, 0]]


def test_networkx_pickles_are_read(tmp_path):
    networkx = pytest.importorskip("networkx")
    graph = networkx.Graph()
    graph.add_node(1, id=3, nm_position=np.array([1, 2, 3]))
    graph.add_node(2, id=3, nm_position=np.array([1, 2, 4]))
    graph.add_edge(1, 2, edge_length=1.0)
    assert len(graph.nodes) == len(graph.edges) + 1  # after which the graph keeps views of itself
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(graph, protocol))
        assert segment.read_skeletons(tmp_path / "a.pkl")[3].edges.tolist() == [[0, 1]]


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("data, sentence", [
    (pickle.dumps(Evil()), "it asks for '(posix|nt) system'"),
    (pickle.dumps([1, 2]), "no graph of networkx"),
    (pickle.dumps(np.float64(1)), "no graph of networkx"),
    (pickled({1: {"id": 1}}, {}), "lacks id or nm_position"),
    (pickled({1: {"id": -1, "nm_position": (1, 2, 3)}}, {}), "no whole number"),
    (pickled({1: {"id": 1, "nm_position": (1, 2)}}, {}), "not three numbers"),
    (pickled({1: {"id": 1, "nm_position": (1, 2, float("nan"))}}, {}), "not three numbers"),
    (pickled({1: {"id": 1, "nm_position": (1, 2, 3)}}, {1: {2: {}}}), "not there"),
    (pickled({(1, 2): {}}, {}), "keys are neither"),
    (pickled({1: Evil()}, {}), "it asks for"),
    (pickled({1: {"id": 1, "nm_position": np.array(["a", "b", "c"])}}, {}), "of the type"),
    (pickled({n: {"id": n, "nm_position": (1, 2, 3)} for n in (1, 2)}, {1: {2: {}}}), "joins the skeletons 1 and 2"),
    (b"", "damaged|no end"), (b"\x80\x04.", "left over"), (b"\x80\x04N", "damaged|no end"), (b"no pickle", "damaged"),
    (b"\x80\x04" + b"c" + b"builtins\neval\n" + b".", "it asks for 'builtins eval'"),
    (b"\x80\x02r\xff\xff\xff\x7f.", "damaged"),
])
def test_other_pickles_are_refused_and_nothing_runs(tmp_path, monkeypatch, data, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(InputError, match=sentence):
        segment.read_skeletons(tmp_path / "a.pkl")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


def test_one_list_of_edges_for_all_nodes_is_refused(tmp_path):
    nodes = {n: {"id": 1, "nm_position": (1, 2, 3)} for n in range(300)}
    others = dict.fromkeys(range(300))
    (tmp_path / "a.pkl").write_bytes(pickled(nodes, dict.fromkeys(nodes, others)))
    with pytest.raises(InputError, match="again and again"):
        segment.read_skeletons(tmp_path / "a.pkl")


# ---- other files that do not fit


@pytest.mark.parametrize("name, data, sentence", [
    ("a.swc", "1 0 1 2 3\n", "not an SWC file"), ("a.swc", "1 0 1 2 x 1 -1\n", "not an SWC file"),
    ("a.swc", "1 0 1 2 3 1 5\n", "names the parent 5"), ("a.swc", "1 0 1 2 3 1 -1\n1 0 1 2 3 1 -1\n", "one number"),
    ("a.swc", "1 0 1 nan 3 1 -1\n", "no finite numbers"), ("a.csv", "skeleton,node,x\n", "it lacks z"),
    ("a.csv", "skeleton,node,z,y,x,parent\n1,2\n", "not made of numbers"), ("a.txt", "", "no file of skeletons"),
    ("a.csv", "skeleton,node,z,y,x,parent\n-1,2,1,1,1,\n", "named by ids from 0"),
])
def test_tables_that_do_not_fit_are_refused(tmp_path, name, data, sentence):
    (tmp_path / name).write_text(data)
    with pytest.raises(InputError, match=sentence):
        segment.read_skeletons(tmp_path / name)
    with pytest.raises(InputError, match="there is no file"):
        segment.read_skeletons(tmp_path / f"other_{name.replace('txt', 'swc')}")


@pytest.mark.parametrize("change, sentence", [
    ({"@type": "x"}, "does not describe skeletons"), ({"sharding": {}}, "in shards"),
    ({"transform": [1]}, "12 numbers"),
    ({"vertex_attributes": [{"id": "radius"}]}, "without a name, a known type"),
    ({"vertex_attributes": []}, "should have"), ({"transform": [1e11] * 12}, None),
])
def test_precomputed_folders_that_do_not_fit_are_refused(tmp_path, change, sentence):
    folder = segment.write_skeletons(tmp_path / "out", {3: CYCLE}, "precomputed")
    info = json.loads((folder / "info").read_text()) | change
    (folder / "info").write_text(json.dumps(info))
    if sentence is None:
        assert segment.read_skeletons(folder)[3].vertices.min() == 1e11
        return
    with pytest.raises(InputError, match=sentence):
        segment.read_skeletons(folder)


@pytest.mark.parametrize("change", [
    {"vertices": np.zeros((5, 2))}, {"radius": np.zeros(4)}, {"edges": np.array([[0, 5]])},
    {"radius": np.full(5, np.nan)}, {"edges": np.array([[0.5, 1]])},
])
def test_unsound_skeletons_are_not_written(tmp_path, change):
    with pytest.raises(InputError):
        segment.write_skeletons(tmp_path / "out", {1: Skeleton(**{**vars(CYCLE), **change})})
    with pytest.raises(InputError, match="ids from 0"):
        segment.write_skeletons(tmp_path / "out", {-1: CYCLE})
    with pytest.raises(InputError, match="swc or precomputed"):
        segment.write_skeletons(tmp_path / "out", {1: CYCLE}, "obj")
    assert not list(tmp_path.iterdir())


# ---- the command, and other programs


def test_the_command_writes_skeletons_where_the_volume_lies(tmp_path, capsys):
    with create_volume(tmp_path / "a.h5", bodies().shape, np.uint64, RESOLUTION, (400, 80, 0)) as out:
        out[...] = bodies()
    arguments = [str(tmp_path / "a.h5"), str(tmp_path / "out"), "--scale", "1", "--const-nm", "20"]
    assert run_command(command.main, arguments) == 0
    middle = np.array([400.0, 80, 0]) + np.array(RESOLUTION) / 2
    expected = {label: Skeleton(one.vertices + middle, one.edges, one.radius)
                for label, one in traced().items()}
    same(segment.read_skeletons(tmp_path / "out"), expected)
    assert "3 skeletons" in capsys.readouterr().out
    assert run_command(command.main, arguments) == 2
    assert "exists already" in capsys.readouterr().err
    np.save(tmp_path / "a.npy", bodies())
    assert run_command(command.main, [str(tmp_path / "a.npy"), str(tmp_path / "b")]) == 2
    assert "does not say its resolution" in capsys.readouterr().err


def test_navis_reads_our_swc(tmp_path):
    navis = pytest.importorskip("navis")
    segment.write_skeletons(tmp_path / "out", traced())
    skeleton = traced()[9]
    found = navis.read_swc(str(tmp_path / "out" / "9.swc"))
    nodes = found.nodes.sort_values(["z", "y", "x"])[["z", "y", "x", "radius"]].to_numpy()
    expected = np.column_stack([skeleton.vertices, skeleton.radius])
    np.testing.assert_allclose(nodes, expected[np.lexsort(expected[:, 2::-1].T)], rtol=1e-6)
    assert found.cable_length == pytest.approx(skeleton.length, rel=1e-5)


def test_cloud_volume_reads_our_precomputed_skeletons(tmp_path):
    cloudvolume = pytest.importorskip("cloudvolume")
    info = cloudvolume.CloudVolume.create_new_info(1, "segmentation", "uint64", "raw", [8, 8, 40], [0, 0, 0],
                                                   [40, 24, 6], skeletons="skeletons")
    cloudvolume.CloudVolume(f"file://{tmp_path}", info=info).commit_info()
    segment.write_skeletons(tmp_path / "skeletons", traced(), "precomputed")
    for label, skeleton in traced().items():
        found = cloudvolume.CloudVolume(f"file://{tmp_path}").skeleton.get(label)
        np.testing.assert_array_equal(found.vertices, skeleton.vertices[:, ::-1])
        np.testing.assert_array_equal(found.edges, skeleton.edges)
        np.testing.assert_array_equal(found.radius, skeleton.radius)


def test_kimimaros_files_and_ours_are_read_by_each_other(tmp_path):
    """osteoid reads and writes the files of kimimaro."""
    theirs = pytest.importorskip("osteoid").Skeleton
    expected = {label: one for label, one in traced().items() if label != 2**40}  # one tree each
    segment.write_skeletons(tmp_path / "ours", expected)
    (tmp_path / "theirs").mkdir()
    for label, one in expected.items():
        tree = theirs.from_swc((tmp_path / "ours" / f"{label}.swc").read_text())
        assert len(tree.vertices) == len(one.vertices)
        assert tree.cable_length() == pytest.approx(one.length)
        (tmp_path / "theirs" / f"{label}.swc").write_text(tree.to_swc())
    found = segment.read_skeletons(tmp_path / "theirs")
    for label, one in expected.items():
        nodes = [sorted(map(tuple, np.column_stack([each.vertices, each.radius]).tolist()))
                 for each in (found[label], one)]
        np.testing.assert_allclose(*nodes, rtol=1e-5)
        assert found[label].length == pytest.approx(one.length, rel=1e-5)


@pytest.mark.parametrize("code", ["i12", "f1", "i", 7, ("i4",) * 3])
def test_arrays_in_pickles_are_of_plain_numbers(code):
    with pytest.raises(plain_pickle.Refused):
        plain_pickle.dtype_of(plain_pickle.Made("numpy dtype", (code,), []))


def test_skeletons_that_are_packed_are_no_empty_folder(tmp_path):
    segment.write_skeletons(tmp_path / "out", traced(), "precomputed")
    for label in traced():
        (tmp_path / "out" / str(label)).rename(tmp_path / "out" / f"{label}.gz")
    with pytest.raises(InputError, match="unpack them"):
        segment.read_skeletons(tmp_path / "out")
