"""Entries sorted into the tree that every launch shares and what each launch mounts."""

import pytest

from sandbox.rootfs import Bind, Dir, File, Filesystem, Mask, Readonly, Root, Symlink, sort


def tree(*entries):
    return {node.target: node for node in sort(entries).tree.nodes}


def test_directories_above_are_made_before():
    nodes = list(tree(File("/a/b/c", b"x")))
    assert ["/a", "/a/b", "/a/b/c"] == nodes


def test_directories_above_do_not_replace_what_is_there():
    nodes = tree(Dir("/a", 0o700), File("/a/b", b""))
    assert 0o700 == nodes["/a"].mode


def test_later_entry_replaces_an_earlier_one_and_comes_after():
    nodes = sort((File("/a", b"1"), Dir("/b"), File("/a", b"2"))).tree.nodes
    assert [("/b", None), ("/a", b"2")] == [(n.target, getattr(n, "content", None)) for n in nodes]


def test_links_of_the_tree_are_followed():
    nodes = tree(Symlink("usr/bin", "/bin"), Dir("/usr"), File("/bin/x", b""))
    assert "/usr/bin/x" in nodes
    assert "/bin/x" not in nodes
    nodes = tree(Symlink("/run", "/var/run"), File("/var/run/x", b""))
    assert "/run/x" in nodes


def test_link_itself_is_replaced_not_followed():
    nodes = tree(Symlink("/a", "/l"), Symlink("/b", "/l"))
    assert "/b" == nodes["/l"].points_to


def test_loop_of_links_is_refused():
    with pytest.raises(ValueError, match="symbolic links"):
        sort((Symlink("/b", "/a"), Symlink("/a", "/b"), File("/a/x", b"")))


def test_link_out_of_the_root_stays_inside():
    assert "/x" in tree(Symlink("../../..", "/l"), File("/l/x", b""))


def test_bind_has_a_mount_point_of_its_kind_in_the_tree():
    nodes = tree(Bind("/s", "/d"), Bind("/f", "/x/f", is_file=True))
    assert isinstance(nodes["/d"], Dir)
    assert isinstance(nodes["/x/f"], File)


def test_system_binds_are_of_the_tree_and_others_are_mounted():
    layout = sort((Bind("/usr", "/usr", system=True), Bind("/srv", "/srv")))
    assert isinstance({n.target: n for n in layout.tree.nodes}["/usr"], Bind)
    assert ["/srv"] == [path for _, path in layout.mounted]
    assert {"/": "own", "/usr": "foreign", "/srv": "foreign"} == layout.regions


def test_what_lies_below_a_mount_is_never_of_the_tree():
    layout = sort((Filesystem("tmpfs", "/t"), File("/t/a", b""), Bind("/s", "/b"), Dir("/b/c"), Bind("/u", "/t/u")))
    assert {"/t", "/b"} == {node.target for node in layout.tree.nodes}
    assert ["/t", "/t/a", "/b", "/b/c", "/t/u"] == [path for _, path in layout.mounted]
    assert ("tmpfs", "foreign", "foreign") == tuple(layout.regions[path] for path in ("/t", "/b", "/t/u"))


def test_links_below_a_mount_are_not_believed():
    layout = sort((Bind("/s", "/b"), Symlink("/etc", "/b/l"), File("/b/l/x", b"")))
    assert ["/b", "/b/l", "/b/l/x"] == [path for _, path in layout.mounted]


def test_masks_and_readonly_come_in_their_order():
    layout = sort((Mask("/a"), Filesystem("proc", "/proc"), Readonly("/proc")))
    assert [Mask, Filesystem, Readonly] == [type(entry) for entry, _ in layout.mounted]
    assert "foreign" == layout.regions["/proc"]


def test_foreign_root_has_no_tree():
    layout = sort((Root("/srv"), Dir("/a"), File("/a/b", b""), Filesystem("tmpfs", "/tmp")))
    assert () == layout.tree.nodes
    assert ["/a", "/a/b", "/tmp"] == [path for _, path in layout.mounted]


def test_equal_entries_make_equal_trees():
    entries = (Dir("/a"), File("/a/b", b"x"), Symlink("x", "/l"))
    assert sort(entries).tree == sort(entries).tree
    assert hash(sort(entries).tree) == hash(sort(entries).tree)
