import pytest

from sandbox.capabilities import capability_mask, capability_names


@pytest.mark.parametrize("name", ["CAP_NET_ADMIN", "NET_ADMIN", "net_admin", "cap_net_admin"])
def test_capability_mask_takes_names_with_and_without_prefix(name):
    assert 1 << 12 == capability_mask([name])


def test_capability_mask_joins():
    assert 0b11 == capability_mask(["chown", "dac_override", "chown"])
    assert 0 == capability_mask([])


def test_capability_mask_of_unknown_name_lists_near_ones():
    with pytest.raises(ValueError, match=r"ambient must be .* got 'net_admim': did you mean CAP_NET_ADMIN"):
        capability_mask(["net_admim"], "ambient")


@pytest.mark.parametrize("names", ["NET_ADMIN", b"NET_ADMIN", [12]])
def test_capability_mask_of_no_names_is_a_type_error(names):
    with pytest.raises(TypeError, match="keep"):
        capability_mask(names)


def test_capability_names_and_mask_are_inverse():
    assert {"CHOWN", "CHECKPOINT_RESTORE"} == capability_names(1 | 1 << 40)
    assert (1 << 41) - 1 == capability_mask(capability_names((1 << 41) - 1))


def test_capability_newer_than_the_table_is_its_number():
    assert {"63"} == capability_names(1 << 63)
