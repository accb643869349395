"""Make kubernetes.json: of Kubernetes' published JSON schemas what the manifests under deploy/ use.

    pip install kubernetes-validate==1.37.0      # Apache-2.0; carries the schemas that Kubernetes publishes with each release
    python tests/deploy/trim_schema.py .../site-packages/kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict/_definitions.json

Definitions that a manifest reaches keep all their fields, so that a misspelt one is refused. Fields that no manifest uses keep their type
and must be empty: who begins to use one makes the file anew, and does not go unchecked meanwhile.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
DEPLOY = HERE.parents[1] / "deploy"
PREFIX = "kubernetes.json#/$defs/"
ROOTS = {
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "Namespace": "io.k8s.api.core.v1.Namespace",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
}
Schema = dict[str, Any]


class Trimmer:
    """Walks manifests along the whole schemas, and gathers the definitions and fields that they touch."""

    def __init__(self, definitions: Schema, kuberay: Schema) -> None:
        self._definitions, self._kuberay = definitions, kuberay
        self._used: dict[str, set[str]] = {}

    def walk(self, value: Any, schema: Schema) -> None:
        reference = schema.get("$ref", "")
        name = reference.rpartition("/")[2]
        if reference and (reference.startswith(PREFIX) or name not in self._kuberay):
            schema = self._definitions[name]
            self._used.setdefault(name, set())
        elif reference:
            schema = self._kuberay[name]
        if isinstance(value, dict):
            for key, inner in value.items():
                field = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
                if isinstance(field, dict):
                    self._used.get(name, set()).add(key)
                    self.walk(inner, field)
        elif isinstance(value, list):
            for inner in value:
                self.walk(inner, schema.get("items", {}))

    def trimmed(self) -> Schema:
        return {name: self._definition(name, used) for name, used in sorted(self._used.items())}

    def _definition(self, name: str, used: set[str]) -> Schema:
        whole = self._definitions[name]
        out = {
            key: whole[key] for key in ("type", "required", "oneOf", "additionalProperties") if key in whole
        }
        if "properties" in whole:
            fields = whole["properties"].items()
            out["properties"] = {
                key: _bare(field) if key in used else self._unused(field) for key, field in fields
            }
        return out

    def _unused(self, field: Schema) -> Schema:
        whole = self._definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field
        kinds = whole.get("type", "object")
        empty = (
            {"maxProperties": 0, "maxItems": 0}
            if {"object", "array"} & set([kinds] if isinstance(kinds, str) else kinds)
            else {}
        )
        return {key: whole[key] for key in ("type", "enum", "oneOf") if key in whole} | empty


def _bare(schema: Any) -> Any:
    """Without descriptions."""
    if isinstance(schema, dict):
        kept = ("$ref", "type", "items", "enum", "oneOf", "additionalProperties", "required", "properties")
        return {
            key: _bare(schema[key]) if key != "properties" else {k: _bare(v) for k, v in schema[key].items()}
            for key in kept
            if key in schema
        }
    return [_bare(one) for one in schema] if isinstance(schema, list) else schema


def main(source: Path) -> None:
    definitions = json.loads(source.read_text(encoding="utf-8"))["$defs"]
    kuberay = yaml.safe_load((HERE / "kuberay.yaml").read_text(encoding="utf-8"))["$defs"]
    trimmer = Trimmer(definitions, kuberay)
    for file in ("network-policy.yaml", "rayjob.yaml", "rayservice.yaml"):
        for manifest in yaml.safe_load_all((DEPLOY / file).read_text(encoding="utf-8")):
            kind = manifest["kind"]
            root = f"{PREFIX}{ROOTS[kind]}" if kind in ROOTS else f"#/$defs/{kind}"
            trimmer.walk(manifest, {"$ref": root})
    told = f"Made by tests/deploy/trim_schema.py from Kubernetes' schemas (Apache-2.0), {source.parent.name}: fields and types alone."
    text = json.dumps({"$comment": told, "$defs": trimmer.trimmed()}, indent=1, sort_keys=True)
    (HERE / "kubernetes.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
