"""The registry: bundles come whole or not at all, names point to what is there, nothing that is needed is removed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from sbdzsl import bundle as bundles
from sbdzsl import lake
from sbdzsl.errors import BundleError, ConfigError, LakeError, RegistryError, SbdzslError
from sbdzsl.registry import Registry, locate, split, store

Draw = Callable[[int], str]


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(SbdzslError) as caught:
        call()
    return caught.value.code


def age(registry: Registry, below: str, days: float) -> None:
    """Let local files be as old as this."""
    then = time.time() - days * 86400
    for file in lake.list_files(lake.join(registry.url, below)):
        os.utime(file.uri, (then, then))


def promote(registry: Registry, digest: str, alias: str = "production", **kwargs: object) -> None:
    registry.promote(digest, alias, "anna", "because", **kwargs)  # type: ignore[arg-type]


class TestPush:
    def test_a_bundle_is_copied_whole_and_under_its_digest(self, registry: Registry, draw: Draw) -> None:
        digest = registry.push(draw(1))
        assert digest == bundles.digest_of(bundles.read_card(draw(1)))
        assert not list(bundles.damage(registry.bundle_url(digest)))
        assert lake.read_bytes(lake.join(registry.bundle_url(digest), bundles.CARD)) == lake.read_bytes(
            lake.join(draw(1), bundles.CARD)
        )
        assert registry.push(draw(1)) == digest
        (version,) = registry.versions()
        assert (version.digest, version.aliases, version.is_signed, version.problem) == (digest, (), False, None)
        assert version.num_bytes == sum(file.size_bytes or 0 for file in lake.list_files(draw(1)))

    def test_what_is_damaged_is_not_taken(self, local: Registry, draw: Draw) -> None:
        (Path(draw(1)) / "router.safetensors").write_bytes(b"other")
        assert code_of(lambda: local.push(draw(1))) == "damaged-bundle"
        assert local.versions() == ()

    def test_what_was_damaged_in_there_is_mended(self, local: Registry, draw: Draw) -> None:
        digest = local.push(draw(1))
        weights = Path(local.bundle_url(digest)) / "router.safetensors"
        weights.write_bytes(b"other")
        (Path(local.bundle_url(digest)) / "backbone.safetensors").unlink()
        (first, second) = local.verify()
        assert "backbone.safetensors" in first
        assert "router.safetensors is not the file that bundle.json lists" in second
        local.push(draw(1))
        assert local.verify() == ()

    def test_a_name_that_leads_out_of_the_folder_is_refused(self, local: Registry, draw: Draw) -> None:
        card = Path(draw(1)) / bundles.CARD
        card.write_text(card.read_text().replace('"router.safetensors"', '"../router.safetensors"'))
        assert code_of(lambda: local.push(draw(1))) == "unsafe-file"

    def test_killed_before_the_card_there_is_no_bundle_and_the_next_push_completes_it(
        self, local: Registry, draw: Draw
    ) -> None:
        code = (
            "import os, signal, sys\n"
            "from sbdzsl import lake\n"
            "from sbdzsl.registry import Registry\n"
            "lake.write_once = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "Registry(sys.argv[1]).push(sys.argv[2])\n"
        )
        died = subprocess.run([sys.executable, "-c", code, local.url, draw(1)], check=False)
        assert died.returncode == -9
        digest = bundles.digest_of(bundles.read_card(draw(1)))
        assert len(lake.list_files(local.bundle_url(digest))) == 3, "all files but the card"
        assert local.versions() == ()
        assert code_of(lambda: local.resolve(digest)) == "no-version"
        assert code_of(lambda: bundles.read_card(local.bundle_url(digest))) == "no-bundle"
        assert "no bundle.json" in local.verify()[0]
        assert local.push(draw(1)) == digest
        assert local.verify() == ()

    def test_another_bundle_in_its_place_is_never_replaced(self, local: Registry, draw: Draw) -> None:
        with pytest.raises(BundleError) as caught:
            bundles.copy(draw(1), draw(2))
        assert caught.value.code == "bundle-exists"


class TestResolve:
    def test_names(self, registry: Registry, draw: Draw) -> None:
        first, second = registry.push(draw(1)), registry.push(draw(2))
        promote(registry, first)
        promote(registry, second[:12], "candidate")
        assert registry.aliases() == ("candidate", "production")
        found = registry.resolve("production")
        assert (found.digest, found.url) == (first, registry.bundle_url(first))
        assert found.record is not None
        assert found.record.by == "anna"
        assert registry.resolve(second[:6]).digest == second
        assert registry.resolve(second).record is None
        assert {one.digest: one.aliases for one in registry.versions()} == {
            first: ("production",),
            second: ("candidate",),
        }

    def test_a_promotion_may_name_an_alias(self, local: Registry, draw: Draw) -> None:
        digest = local.push(draw(1))
        promote(local, digest, "candidate")
        assert local.promote("candidate", "production", "anna", "tried").bundle == digest

    @pytest.mark.parametrize(
        ("name", "code"),
        [("production", "no-version"), ("abcdef", "no-version"), ("Production", "bad-config"), ("a/b", "bad-config")],
    )
    def test_what_names_nothing(self, registry: Registry, name: str, code: str) -> None:
        assert code_of(lambda: registry.resolve(name)) == code

    def test_a_beginning_of_two(self, local: Registry, draw: Draw) -> None:
        digest = local.push(draw(1))
        twin = digest[:20] + "0" * 44
        bundles.copy(draw(2), local.bundle_url(twin))
        assert code_of(lambda: local.resolve(digest[:10])) == "ambiguous-version"
        assert local.resolve(digest[:24]).digest == digest
        assert local.verify() == (f"bundles/{twin}: its card is that of another bundle",)

    @pytest.mark.parametrize(
        ("url", "found"),
        [
            ("s3://bucket/registry@production", ("s3://bucket/registry", "production")),
            ("registry@0a1b2c", ("registry", "0a1b2c")),
            ("/lake/registry@0a1b2", None),
            ("registry@production/", None),
            ("sftp://anna@host/bundle", None),
            ("@production", None),
            ("bundle", None),
        ],
    )
    def test_which_urls_name_a_version(self, url: str, found: tuple[str, str] | None) -> None:
        assert split(url) == found

    def test_the_place_that_is_meant_stays_when_the_alias_moves(self, registry: Registry, draw: Draw) -> None:
        first, second = registry.push(draw(1)), registry.push(draw(2))
        promote(registry, first)
        meant = locate(f"{registry.url}@production")
        promote(registry, second)
        assert meant == registry.bundle_url(first) == locate(f"{registry.url}@{first[:8]}")
        assert locate(f"{registry.url}@production") == registry.bundle_url(second)
        assert locate(meant) == meant
        with pytest.raises(RegistryError, match="put a slash at its end"):
            locate(f"{registry.url}@line7")


class TestPromotion:
    def test_history_and_the_way_back(self, registry: Registry, draw: Draw) -> None:
        a, b, c = (registry.push(draw(seed)) for seed in (1, 2, 3))
        for digest in (a, b, c):
            promote(registry, digest)
        assert registry.rollback("production", "berta", "worse").bundle == b
        assert registry.rollback("production", "berta", "worse still").bundle == a
        assert code_of(lambda: registry.rollback("production", "berta", "x")) == "no-version"
        promote(registry, c)
        assert registry.rollback("production", "berta", "again").bundle == a
        line = registry.history("production")
        assert [record.number for record in line] == list(range(1, 8))
        assert [record.bundle for record in line] == [a, b, c, b, a, c, a]
        assert [record.replaces for record in line] == [None, a, b, c, b, a, c]
        assert [record.restores for record in line] == [None, None, None, 2, 1, None, 5]
        assert [record.previous for record in line] == [None, *(record.seal for record in line[:-1])]
        assert (line[3].action, line[3].by, line[3].reason) == ("rollback", "berta", "worse")
        assert registry.verify() == ()

    def test_to_promote_what_is_in_force_changes_nothing(self, local: Registry, draw: Draw) -> None:
        digest = local.push(draw(1))
        promote(local, digest)
        assert local.promote(digest, "production", "berta", "again").by == "anna"
        assert len(local.history("production")) == 1

    def test_a_decision_on_what_was_in_force_before_is_refused(self, registry: Registry, draw: Draw) -> None:
        a, b, c = (registry.push(draw(seed)) for seed in (1, 2, 3))
        promote(registry, a, after=0)
        promote(registry, b, after=1)
        with pytest.raises(RegistryError, match=f"anna pointed it to {b[:16]} by record 2") as caught:
            promote(registry, c, after=1)
        assert caught.value.code == "promoted-meanwhile"
        assert registry.resolve("production").digest == b

    def test_what_is_not_there_is_not_promoted(self, local: Registry) -> None:
        assert code_of(lambda: promote(local, "0" * 64)) == "no-version"
        assert code_of(lambda: local.rollback("production", "anna", "x")) == "no-version"
        assert local.aliases() == ()

    @pytest.mark.parametrize("alias", ["", "Production", "facade", "7", "a b", "../x", "x" * 64])
    def test_names_that_no_alias_may_have(self, local: Registry, draw: Draw, alias: str) -> None:
        digest = local.push(draw(1))
        with pytest.raises(ConfigError, match="expected a lower-case letter"):
            promote(local, digest, alias)

    def test_a_store_that_lets_two_win_is_refused(
        self, local: Registry, draw: Draw, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = local.push(draw(1))

        def careless(url: str, data: bytes) -> bool:
            lake.write_bytes(url, data)
            return True

        monkeypatch.setattr("sbdzsl.lake.store.write_once", careless)
        with pytest.raises(LakeError, match="ignores conditional writes"):
            promote(local, digest)
        assert local.aliases() == ()


class TestVerify:
    @pytest.fixture
    def line(self, local: Registry, draw: Draw) -> Path:
        for seed in (1, 2, 3):
            promote(local, local.push(draw(seed)))
        return Path(local.url) / "aliases" / "production"

    def test_a_record_that_was_changed(self, local: Registry, line: Path) -> None:
        record = line / "00000002.json"
        record.write_text(record.read_text().replace("anna", "emil"))
        assert local.verify() == (
            "aliases/production: record 3 does not follow from the one before: one of the two was changed",
        )

    def test_a_record_that_was_removed(self, local: Registry, line: Path) -> None:
        (line / "00000002.json").unlink()
        assert local.verify() == ("aliases/production: record 2 is missing",)
        assert code_of(lambda: local.history("production")) == "damaged-registry"
        assert code_of(lambda: local.rollback("production", "anna", "x")) == "damaged-registry"

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"number": 3', '"number": 4'),
            ('"alias": "production"', '"alias": "line7"'),
            ('"restores": null', '"restores": 3'),
            ('"bundle": "', '"bundle": "../'),
            ('"record_version": 1', '"record_version": 2'),
            ('"by": "anna",', ""),
            ("{", ""),
        ],
    )
    def test_a_record_that_is_none(self, local: Registry, line: Path, old: str, new: str) -> None:
        record = line / "00000003.json"
        text = record.read_text()
        assert old in text
        record.write_text(text.replace(old, new, 1))
        (problem,) = local.verify()
        assert problem.startswith("aliases/production: damaged-registry:")
        assert code_of(lambda: local.resolve("production")) == "damaged-registry"
        assert code_of(lambda: local.gc()) == "damaged-registry"

    def test_an_alias_whose_bundle_is_gone(self, local: Registry, line: Path) -> None:
        digest = local.resolve("production").digest
        (Path(local.bundle_url(digest)) / bundles.CARD).unlink()
        assert f"aliases/production: points to bundle {digest}, which is not there" in local.verify()
        assert code_of(lambda: local.resolve("production")) == "damaged-registry"

    def test_a_card_of_another_version_is_listed_with_its_problem(self, local: Registry, draw: Draw) -> None:
        digest = local.push(draw(1))
        card = Path(local.bundle_url(digest)) / bundles.CARD
        card.write_text(card.read_text().replace('"schema_version": 4', '"schema_version": 3'))
        (version,) = local.versions()
        assert version.card is None
        assert version.problem is not None
        assert version.problem.startswith("wrong-version")


class TestGc:
    def test_what_an_alias_points_to_or_pointed_to_lately_stays(self, local: Registry, draw: Draw) -> None:
        digests = [local.push(draw(seed)) for seed in range(6)]
        for digest in digests[:4]:
            promote(local, digest)
        promote(local, digests[4], "candidate")
        lake.write_bytes(local.signature_url(digests[5]), b"a signature")
        for below in ("bundles", "claims"):
            age(local, below, 60)
        assert local.gc(keep_days=30, keep_last=1, dry_run=True) == (digests[5],), "pointed to a moment ago"
        assert len(local.versions()) == 6
        removed = local.gc(keep_days=0, keep_last=2)
        assert set(removed) == {digests[0], digests[1], digests[5]}
        assert not lake.exists(local.signature_url(digests[5]))
        assert {version.digest for version in local.versions()} == {digests[2], digests[3], digests[4]}
        assert local.rollback("production", "anna", "x").bundle == digests[2]
        assert local.verify() == ()
        assert code_of(lambda: local.rollback("production", "anna", "x")) == "damaged-registry"
        assert local.push(draw(1)) == digests[1], "what was removed may come again"
        assert local.rollback("production", "anna", "x").bundle == digests[1]

    def test_what_came_lately_or_is_claimed_stays(self, local: Registry, draw: Draw) -> None:
        old, new = local.push(draw(1)), local.push(draw(2))
        age(local, f"bundles/{old}", 60)
        assert local.gc() == (), "its claim is fresh"
        age(local, "claims", 60)
        local.push(draw(1))
        assert local.gc() == (), "claimed again"
        age(local, "claims", 60)
        assert local.gc() == (old,)
        assert [version.digest for version in local.versions()] == [new]
        assert not list((Path(local.url) / "claims").rglob("*/*"))

    def test_a_broken_off_copy_goes_after_a_day(self, local: Registry, draw: Draw) -> None:
        digest = local.push(draw(1))
        (Path(local.bundle_url(digest)) / bundles.CARD).unlink()
        age(local, "claims", 60)
        assert local.gc(keep_days=0) == ()
        age(local, "bundles", 2)
        assert local.gc(keep_days=90) == (digest,)
        assert lake.list_files(lake.join(local.url, "bundles")) == []

    def test_on_every_store(self, registry: Registry, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store, "GRACE", timedelta(0))
        a, b, c = (registry.push(draw(seed)) for seed in (1, 2, 3))
        promote(registry, a)
        promote(registry, b)
        time.sleep(1.1)  # S3 says whole seconds
        assert registry.gc(keep_days=0, keep_last=2) == (c,)
        assert registry.gc(keep_days=0, keep_last=1) == (a,)
        assert [version.digest for version in registry.versions()] == [b]
        assert lake.list_files(registry.url)
        assert registry.verify() == ()

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_a_promotion_at_the_moment_of_removal(
        self, local: Registry, draw: Draw, monkeypatch: pytest.MonkeyPatch, moment: str
    ) -> None:
        """Promoted just before the card goes: it comes back. Just after: the promotion finds no bundle."""
        first, second = local.push(draw(1)), local.push(draw(2))
        promote(local, first)
        for below in ("bundles", "claims"):
            age(local, below, 60)
        real, said = lake.remove, list[str]()

        def remove(uri: str) -> None:
            if not uri.endswith(bundles.CARD):
                real(uri)
                return
            if moment == "after":
                real(uri)
            try:
                promote(local, second)
            except RegistryError as error:
                said.append(error.code)
            if moment == "before":
                real(uri)

        monkeypatch.setattr(lake, "remove", remove)
        removed = local.gc()
        monkeypatch.undo()
        assert (removed, said) == (((), []) if moment == "before" else ((second,), ["no-version"]))
        assert local.resolve("production").digest == (second if moment == "before" else first)
        assert local.verify() == ()

    def test_settings_that_would_remove_too_much(self, local: Registry) -> None:
        assert code_of(lambda: local.gc(keep_last=0)) == "bad-config"
        assert code_of(lambda: local.gc(keep_days=-1)) == "bad-config"
