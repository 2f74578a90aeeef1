import base64
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from couponflow.config import KEYS, SECRETS, SENDER_SECTIONS, SOURCE_SECRETS, Settings
from couponflow.config_loading import (
    ConfigurationInvalid,
    ConfigurationProblem,
    describe_settings,
    load_settings,
    load_with_sources,
)
from couponflow.config_sources import GenericSettings, RazorpaySettings, SendgridSettings
from couponflow.messages import CHANNELS
from couponflow.webhooks.contract import Delivery, SendersInvalid
from couponflow.worker_wiring import Senders

SECRET = "hunter2"
SHOP = {"secrets": [SECRET], "signature_header": "X-Signature"}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads a `couponflow.toml` that happens to lie in the current folder."""
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)


def problems(environment: dict[str, str], file: Path | None = None) -> list[ConfigurationProblem]:
    with pytest.raises(ConfigurationInvalid) as raised:
        load_settings(file, environment)
    assert SECRET not in str(raised.value)
    return raised.value.problems


def tables(by_name: dict[str, object]) -> dict[str, str]:
    return {"COUPONFLOW_GENERIC_WEBHOOKS": msgspec.json.encode(by_name).decode()}


def generic(name: str = "shop", **changes: object) -> dict[str, str]:
    return tables({name: {**SHOP, **changes}})


def secret_of(settings: Settings, path: str) -> tuple[str, ...]:
    section, _, name = path.partition(".")
    value = getattr(getattr(settings, section), name)
    return value if isinstance(value, tuple) else (value,)


# Secrets


@pytest.mark.parametrize(("path", "variable"), SOURCE_SECRETS.items())
def test_a_secret_is_taken_from_the_customary_variable_and_from_a_file(
    tmp_path: Path, path: str, variable: str
) -> None:
    own = "COUPONFLOW_" + path.replace(".", "_").upper()
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    for environment in ({variable: SECRET}, {own: SECRET}, {f"{variable}_FILE": str(file)}):
        assert secret_of(load_settings(None, environment), path) == (SECRET,)


@pytest.mark.parametrize(
    "path", [path for path in SOURCE_SECRETS if isinstance(KEYS[path].default, tuple)]
)
def test_several_live_secrets_stand_between_commas(tmp_path: Path, path: str) -> None:
    file = tmp_path / "secrets"
    file.write_text("new,old\n")
    variable = SOURCE_SECRETS[path]
    for environment in ({variable: " new , old,"}, {f"{variable}_FILE": str(file)}):
        assert secret_of(load_settings(None, environment), path) == ("new", "old")


def test_every_sender_is_a_section_and_its_secrets_are_secret() -> None:
    assert set(SOURCE_SECRETS) <= SECRETS
    assert set(SENDER_SECTIONS) == {path.partition(".")[0] for path in SOURCE_SECRETS}
    for section in SENDER_SECTIONS:
        assert {f"{section}.silence_seconds", f"{section}.rate_per_second"} <= set(KEYS)


def test_secrets_are_never_described() -> None:
    environment = {**dict.fromkeys(SOURCE_SECRETS.values(), SECRET), **generic()}
    described = describe_settings(load_with_sources(None, environment))
    assert SECRET not in repr(described)
    secrets = {*SOURCE_SECRETS.values(), "COUPONFLOW_GENERIC_WEBHOOKS"}
    shown = [setting.value for setting in described if setting.variable in secrets]
    assert shown == ["***"] * len(secrets)
    # Whether one is set can be seen.
    unset = describe_settings(load_with_sources(None, {}))
    assert {each.value for each in unset if each.variable in SOURCE_SECRETS.values()} == {""}


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("COUPONFLOW_GENERIC_WEBHOOKS", f'{{"shop": {{"secrets": "{SECRET}"}}}}'),
        ("COUPONFLOW_GENERIC_WEBHOOKS", f'{{"shop": "{SECRET}'),
        ("COUPONFLOW_GENERIC_WEBHOOKS", f'"{SECRET}"'),
    ],
)
def test_a_value_that_cannot_be_read_is_not_shown(variable: str, text: str) -> None:
    found = problems({variable: text})
    assert all(variable in problem.key for problem in found)


def test_a_secret_of_another_kind_in_the_file_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'[razorpay]\nwebhook_secret = "{SECRET}"\n')
    (problem,) = problems({}, file)
    assert problem.problem == "must be a list of texts"


# Senders that need no code


def test_they_are_tables_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        """
        [razorpay]
        webhook_secret = ["new", "old"]
        [generic_webhooks.shop]
        secrets = ["hunter2"]
        signature_header = "X-Signature"
        prefix = "sha256="
        [generic_webhooks.till-2]
        secrets = ["a", "b"]
        algorithm = "sha1"
        encoding = "base64"
        signature_header = "X-Till"
        signed = "{timestamp}.{body}"
        timestamp_header = "X-Time"
        channel = "orders"
        rate_per_second = 10
        """
    )
    settings = load_settings(file, {})
    assert settings.razorpay == RazorpaySettings(webhook_secret=("new", "old"))
    assert settings.generic_webhooks == {
        "shop": GenericSettings(
            secrets=(SECRET,), signature_header="X-Signature", prefix="sha256="
        ),
        "till-2": GenericSettings(
            secrets=("a", "b"),
            algorithm="sha1",
            encoding="base64",
            signature_header="X-Till",
            signed="{timestamp}.{body}",
            timestamp_header="X-Time",
            channel="orders",
            rate_per_second=10,
        ),
    }


def test_they_are_a_json_object_in_the_environment(tmp_path: Path) -> None:
    expected = {"shop": GenericSettings(secrets=(SECRET,), signature_header="X-Signature")}
    assert load_settings(None, generic()).generic_webhooks == expected
    file = tmp_path / "generic.json"
    file.write_text(generic()["COUPONFLOW_GENERIC_WEBHOOKS"])
    by_file = {"COUPONFLOW_GENERIC_WEBHOOKS_FILE": str(file)}
    assert load_settings(None, by_file).generic_webhooks == expected


@pytest.mark.parametrize("text", ["[]", "shop", '"shop"', "3"])
def test_what_is_no_tables_at_all_is_a_problem_of_the_key(text: str) -> None:
    (problem,) = problems({"COUPONFLOW_GENERIC_WEBHOOKS": text})
    assert problem.key == "generic_webhooks (COUPONFLOW_GENERIC_WEBHOOKS)"


@pytest.mark.parametrize(
    ("changes", "field", "problem", "example"),
    [
        ({"algorithm": SECRET}, "algorithm", "must be one of sha1, sha256, sha512", "'sha256'"),
        ({"encoding": SECRET}, "encoding", "must be one of base64, hex", "'hex'"),
        ({"signature_header": 1}, "signature_header", "must be a text", "'x-signature'"),
        (
            {"secrets": SECRET},
            "secrets",
            "must be a list of texts",
            "['what the sender signs with']",
        ),
        ({"allowed_addresses": 1}, "allowed_addresses", "must be a list of texts", ""),
        (
            {"rate_per_second": -1},
            "rate_per_second",
            "must be a whole number of at least 0",
            "5000",
        ),
        (
            {"tolerance_seconds": -0.1},
            "tolerance_seconds",
            "must be a number of at least 0",
            "300.0",
        ),
        ({"secret": SECRET}, "secret", "is unknown: did you mean secrets?", ""),
        ({"signatur_header": SECRET}, "signatur_header", "is unknown: did you mean", ""),
        ({"qqq": SECRET}, "qqq", "is unknown; there are: allowed_addresses, silence_seconds,", ""),
    ],
)
def test_a_wrong_field_of_a_sender_is_named_with_what_would_be_right(
    changes: dict[str, object], field: str, problem: str, example: str
) -> None:
    (found,) = problems(tables({"shop": {**SHOP, **changes}}))
    assert found.key == f"[generic_webhooks.shop] {field} (COUPONFLOW_GENERIC_WEBHOOKS)"
    assert found.problem.startswith(problem)
    assert found.example == example


@pytest.mark.parametrize("missing", ["secrets", "signature_header"])
def test_a_field_that_a_sender_must_have_is_named_in_the_file_too(
    tmp_path: Path, missing: str
) -> None:
    file = tmp_path / "settings.toml"
    lines = {"secrets": '["hunter2"]', "signature_header": '"X-Signature"', "id_field": '"id"'}
    rest = [f"{name} = {text}" for name, text in lines.items() if name != missing]
    file.write_text("\n".join(["[generic_webhooks.'our shop']", *rest]))
    found = problems({}, file)
    keys = [each.key.partition(" (")[0] for each in found]
    # Of its name the rules have something to say, but not before it is whole.
    assert keys == [f"[generic_webhooks.'our shop'] {missing}"]
    assert found[0].problem == "is missing"


def test_numbers_of_the_file_must_be_numbers_and_finite(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    table = '[generic_webhooks.shop]\nsecrets = ["hunter2"]\nsignature_header = "x"\n'
    file.write_text(f'{table}rate_per_second = "10"\ntolerance_seconds = nan\n')
    assert [each.problem for each in problems({}, file)] == [
        "must be a whole number of at least 0",
        "must be a number of at least 0",
    ]
    text = generic(rate_per_second="10")
    assert load_settings(None, text).generic_webhooks["shop"].rate_per_second == 10


def test_all_that_is_wrong_with_all_senders_is_told_at_once(tmp_path: Path) -> None:
    environment = tables(
        {
            "one": {"algorithm": "md5"},
            "two": SECRET,
            "three": {**SHOP, "signed": "x"},
            "four": SHOP,
        }
    )
    assert [str(each).partition(" (")[0] for each in problems(environment)] == [
        "[generic_webhooks.one] secrets",
        "[generic_webhooks.one] algorithm",
        "[generic_webhooks.one] signature_header",
        "[generic_webhooks.two]",
        "generic_webhooks",
    ]
    assert problems(environment)[3].problem == "must be a table with secrets and signature_header"


def test_a_misspelt_section_of_senders_gets_a_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[generic_webhook.shop]\nsecrets = ["hunter2"]\n')
    (problem,) = problems({}, file)
    assert problem.problem == "is unknown: did you mean [generic_webhooks]?"


# Rules


@pytest.mark.parametrize(
    ("environment", "key", "problem"),
    [
        *(
            (
                {f"COUPONFLOW_{section.upper()}_ALLOWED_ADDRESSES": "10.0.0.0/8,10.0.0.1/8"},
                f"[{section}] allowed_addresses",
                "must hold addresses and networks only (10.0.0.1/8 has host bits set)",
            )
            for section in SENDER_SECTIONS
        ),
        (
            {"COUPONFLOW_SHIPROCKET_ALIAS": "our/parcels"},
            "[shiprocket] alias",
            "must be one part of a path, without slashes",
        ),
        (
            {"COUPONFLOW_SHIPROCKET_ALIAS": "/parcels"},
            "[shiprocket] alias",
            "must be one part of a path, without slashes",
        ),
        *(
            (
                {"COUPONFLOW_SHIPROCKET_ALIAS": taken},
                "[shiprocket] alias",
                f"is '{taken}', which is somebody else's path",
            )
            for taken in (*SENDER_SECTIONS, "generic", "health", "ready")
        ),
        *(
            (
                generic(name),
                "generic_webhooks",
                f"{name!r} must be a name of letters, digits, - and _: it is the last part of a "
                "path",
            )
            for name in ("", "a/b", "a b", "a%20b", "é", "a.b", "x" * 65)
        ),
        *(
            (generic(secrets=secrets), "generic_webhooks", "'shop' has no secret in secrets")
            for secrets in ([], [""], ["", ""])
        ),
        *(
            (
                generic(signed=signed),
                "generic_webhooks",
                f"'shop' signs {signed!r}; that must hold {{body}}, {{timestamp}} and {{id}} only",
            )
            for signed in ("", "body", "{id}", "{body}{url}", "{body}{}", "{ body }")
        ),
        *(
            (
                tables({"shop": {**SHOP, field: header}}),
                "generic_webhooks",
                f"'shop' has no name of a header in {field}: letters, digits and - without spaces",
            )
            for field, header in (
                *(("signature_header", header) for header in ("x y", "", "x:", "é", "x\n", " x")),
                ("timestamp_header", "x y"),
                ("id_header", "x y"),
                ("type_header", "x y"),
            )
        ),
        (
            generic(signed="{timestamp}.{body}"),
            "generic_webhooks",
            "'shop' signs {timestamp} and names no timestamp_header",
        ),
        (
            generic(timestamp_header="x"),
            "generic_webhooks",
            "'shop' names a timestamp_header and does not sign {timestamp}: anybody could write it",
        ),
        (
            generic(signed="{id}.{body}"),
            "generic_webhooks",
            "'shop' signs {id} and names no id_header",
        ),
        (
            generic(allowed_addresses=["shop.example"]),
            "generic_webhooks",
            "'shop' must hold addresses and networks only ('shop.example' does not appear to be an "
            "IPv4 or IPv6 network)",
        ),
    ],
)
def test_a_broken_rule_names_the_key_and_a_way_out(
    environment: dict[str, str], key: str, problem: str
) -> None:
    (found,) = problems(environment)
    assert found.key.startswith(f"{key} (COUPONFLOW_")
    assert found.problem == problem
    assert found.example


@pytest.mark.parametrize("channel", ["order", "Orders", "webhooks", "clicks"])
def test_a_channel_must_be_one_that_a_sender_may_speak_on(channel: str) -> None:
    (found,) = problems(generic(channel=channel))
    names, _, there_are = found.problem.partition("; there are: ")
    assert names == f"'shop' names the channel {channel!r}"
    assert set(there_are.split(", ")) == set(CHANNELS) - {"webhooks", "clicks"}


def test_every_sender_that_is_wrong_is_named() -> None:
    found = problems(
        tables({"one": {**SHOP, "signed": "x"}, "two": SHOP, "three": {**SHOP, "secrets": [""]}})
    )
    assert [each.problem.partition(" ")[0] for each in found] == ["'one'", "'three'"]


@pytest.mark.parametrize(
    "environment",
    [
        {"COUPONFLOW_SHIPROCKET_ALIAS": "Our_parcels-2"},
        {"COUPONFLOW_STRIPE_ALLOWED_ADDRESSES": "192.0.2.1,2001:db8::/32"},
        generic("x" * 64),
        generic(secrets=["", SECRET]),
        generic(signed="v1:{timestamp}:{id}:{body}", timestamp_header="t", id_header="i"),
        generic(id_header="i"),
        generic(signature_header="X_Signature.v1"),
        generic(channel="orders", message_field="data"),
        generic(allowed_addresses=["192.0.2.0/24"]),
    ],
)
def test_values_at_the_edge_of_a_rule_keep_it(environment: dict[str, str]) -> None:
    assert len(load_with_sources(None, environment).sources) == 1


def test_shiprocket_may_have_no_other_path(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[shiprocket]\nalias = ""\n')
    assert load_settings(file, {}).shiprocket.alias == ""


# Senders


def public_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


def test_a_sender_without_a_secret_is_off() -> None:
    senders = Senders(Settings())
    assert (senders.on, senders.by_path) == ((), {})
    # What others believed is translated here all the same.
    assert set(senders.by_name) == set(SENDER_SECTIONS)
    stranger = Delivery(method="POST", body=b"{}", received_at=0.0)
    assert all(source.verify(stranger) for source in senders.by_name.values())
    # What is expected of it is known all the same.
    assert set(SENDER_SECTIONS) <= set(senders.settings)


def test_a_sender_with_a_secret_is_on() -> None:
    environment = {**dict.fromkeys(SOURCE_SECRETS.values(), SECRET), **generic("till")}
    environment["SENDGRID_WEBHOOK_PUBLIC_KEY"] = public_key()
    environment["COUPONFLOW_QSTASH_CORS_ORIGINS"] = "https://shop.example"
    senders = Senders(load_settings(None, environment))
    assert set(senders.by_name) == {*SENDER_SECTIONS, "generic/till"}
    own_paths = {*senders.by_name} - {"qstash"}
    assert set(senders.by_path) == {*own_paths, "api/webhook", "parcels"}
    assert senders.by_path["parcels"] is senders.by_path["shiprocket"]
    assert set(senders.settings) == set(senders.by_name)
    assert senders.cors == {"api/webhook": ("https://shop.example",)}


@pytest.mark.parametrize("key", [SECRET, "", "AAAA", "é", public_key()[:-8]])
def test_a_key_that_is_none_is_told_of_and_not_shown(key: str) -> None:
    settings = Settings(sendgrid=SendgridSettings(webhook_public_key=(public_key(), key)))
    if not key:
        assert "sendgrid" in Senders(settings).by_name
        return
    with pytest.raises(SendersInvalid) as raised:
        Senders(settings)
    said = str(raised.value)
    assert said.startswith("[sendgrid] webhook_public_key (SENDGRID_WEBHOOK_PUBLIC_KEY): number 2")
    assert key not in said


@pytest.mark.parametrize(
    ("variable", "value", "label"),
    [
        ("COUPONFLOW_CJ_PARAMETERS", "x=y", "[cj] parameters"),
        ("COUPONFLOW_CJ_PARAMETERS", "status=secret", "[cj] parameters"),
        ("COUPONFLOW_ADMITAD_STATUSES", "x", "[admitad] statuses"),
        ("COUPONFLOW_CUELINKS_ACCOUNT", "x" * 201, "[cuelinks] account"),
    ],
)
def test_what_a_sender_cannot_use_is_told_with_its_variable(
    variable: str, value: str, label: str
) -> None:
    with pytest.raises(SendersInvalid) as raised:
        Senders(load_settings(None, {variable: value}))
    assert str(raised.value).startswith(f"{label} ({variable})")
