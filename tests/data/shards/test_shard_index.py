"""An index read from a file that may be another's, and the paths of members."""

from __future__ import annotations

from pathlib import Path

import pytest
from varalign.data.files import is_there
from varalign.data.shards.shard_copies import state_file
from varalign.data.shards.shard_index import Sample, ShardIndex, safe_name
from varalign.data.shards.shard_members import address_of, member_of, member_path, shards_of, shown_place


def test_an_index_comes_back_and_is_not_believed_where_it_leads_elsewhere() -> None:
    good = ShardIndex(
        [Sample("x/a.jpg", 512, 10, "00", ["a dog", "é"], "train", True)], {"b.txt": ["c"]}, ["n"], 9, "f"
    )
    assert ShardIndex.from_bytes(good.to_bytes()) == good
    for sample in (
        Sample("../a.jpg", 512, 10, "", ["a"]),
        Sample("a.jpg", -1, 10, "", ["a"]),
        Sample("a.jpg", 512, 10, "", []),
        Sample("a.jpg", 512, 10, "", [1]),  # type: ignore[list-item]
    ):
        with pytest.raises(ValueError, match="not of the form|leads out"):
            ShardIndex.from_bytes(ShardIndex([sample], {}, []).to_bytes())
    with pytest.raises(ValueError, match="damaged"):
        ShardIndex.from_bytes(good.to_bytes().replace(b"a dog", b"a cat"))


def test_names_lead_nowhere_else() -> None:
    names = {
        "../../a.jpg": "a.jpg",
        "/x/./a.jpg": "x/a.jpg",
        "C:\\x\\a.jpg": "x/a.jpg",
        "a\nb.jpg": "ab.jpg",
        "..": "image",
    }
    assert {name: safe_name(name) for name in names} == names


def test_paths_of_members_are_read_back_where_the_shard_is_a_file(tmp_path: Path) -> None:
    shard = tmp_path / "a b.tar"
    shard.write_bytes(b"0123456789")
    path = member_path(shard, 3, 4, "x/é.jpg")
    assert member_of(path) == (shard, 3, 4) == member_of(str(path)) and path.name == "é.jpg"
    assert state_file(path) == str(shard) and state_file(shard) == str(shard)
    assert is_there(path) and not is_there(tmp_path / "@3+4" / "a.jpg")
    assert member_of(shard) is None and member_of(tmp_path / "@3+4" / "a.jpg") is None
    (tmp_path / "folder.tar" / "@3+4").mkdir(parents=True)
    assert member_of(tmp_path / "folder.tar" / "@3+4" / "a.jpg") is None
    assert shards_of([tmp_path]) == ([], None)
    shards, numbers = shards_of([path, path])
    assert shards == [shard] and numbers is not None and numbers.tolist() == [0, 0]
    assert shown_place(Path("s3://b/a.tar")) == "s3://b/a.tar" and address_of("a/s3:/b") is None
