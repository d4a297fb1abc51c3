import math

from sandbox.readback import Mount, confinement, parse_cgroup, parse_limits, parse_mountinfo, parse_status

STATUS = """Name:\tcat
Uid:\t1000\t1000\t1000\t1000
Groups:\t4 24
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t3
"""
LIMITS = """Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max open files            1024                 1048576              files     
Max nice priority         0                    0                    
"""  # noqa: W291  # the kernel pads


def test_parse_status_keeps_each_line_by_name():
    assert "4 24" == parse_status(STATUS)["Groups"]


def test_confinement_counts_filters():
    assert (True, 3) == confinement(parse_status(STATUS))


def test_confinement_of_a_kernel_that_does_not_count_is_one():
    assert (False, 1) == confinement({"NoNewPrivs": "0", "Seccomp": "2"})


def test_confinement_of_nothing_is_none():
    assert (False, 0) == confinement({"NoNewPrivs": "0", "Seccomp": "0", "Seccomp_filters": "0"})


def test_parse_limits_speaks_the_words_of_limit():
    assert {"cpu_time": math.inf, "open_files": 1024.0, "nice": 0.0} == parse_limits(LIMITS)


def test_parse_mountinfo_joins_both_kinds_of_options_and_unescapes():
    text = (
        "23 28 0:21 / /mnt/a\\040b rw,nosuid shared:7 master:1 - tmpfs tmpfs rw,size=4k\n"
        "24 28 0:22 / /ro ro,relatime - ext4 /dev/vda rw\n"
    )
    assert (
        Mount("/mnt/a b", "tmpfs", frozenset({"rw", "nosuid", "size=4k"})),
        Mount("/ro", "ext4", frozenset({"ro", "relatime"})),
    ) == parse_mountinfo(text)


def test_parse_cgroup_prefers_the_unified_hierarchy_where_it_is_used():
    assert "/a" == parse_cgroup("0::/a\n")
    assert "/m" == parse_cgroup("5:memory:/m\n1:name=systemd:/s\n0::/\n")
    assert "/" == parse_cgroup("0::/\n")
    assert None is parse_cgroup("")
