"""What no schema says of the files below deploy/: that they fit one another, and Granary.

Called by deploy/check, which has the tools. Prints a line for each fault, and fails if there is one.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

import yaml

# Granary's own figures: src/config. drain_grace, hard_stop and 10 s; answer_within; a whole form; idle_timeout.
STOP_SECONDS = 5 + 180 + 10
ANSWER_SECONDS = 28
FORM_BYTES = 3_670_016 + 16 * 1024
SECRETS = "/run/secrets/granary/"

faults = []


def want(holds, fault):
    if not holds:
        faults.append(fault)


def seconds(text):
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", str(text))
    return int(match[1] or 0) * 60 + int(match[2] or 0) if match else 0


def is_pinned(image):
    return ":" in image.rsplit("/", 1)[-1] and not image.endswith(":latest")


def within(selector, labels):
    return all(labels.get(name) == value for name, value in selector.items())


def check_image(root, context):
    """What the compiler will read besides the sources is among what the builder gets."""
    manifest = tomllib.loads((root / "Cargo.toml").read_text())
    for kind, folder in (("bench", "benches"), ("test", "tests"), ("example", "examples")):
        for target in manifest.get(kind, []):
            path = target.get("path", f"{folder}/{target['name']}.rs")
            want((context / path).exists(), f"Dockerfile.dockerignore: Cargo.toml names {path}")
    for source in [*(root / "src").rglob("*.rs"), *(root / "engine/src").rglob("*.rs")]:
        if "tests" in source.parts or source.name == "tests.rs":
            continue
        for name in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
            read = (source.parent / name).resolve().relative_to(root.resolve())
            want((context / read).exists(), f"Dockerfile.dockerignore: {source.name} includes {read}")


def check_compose(root):
    deploy = root / "deploy"
    compose = yaml.safe_load((deploy / "compose.yaml").read_text())
    made = (deploy / ".gitignore").read_text()
    for name, service in compose["services"].items():
        want(is_pinned(service["image"]), f"{name}: the image {service['image']} has no version")
        want("healthcheck" in service or name in ("granary", "bucket"), f"{name}: no healthcheck")
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            if not source.startswith("."):
                want(source in compose["volumes"], f"{name}: the volume {source} is not declared")
                continue
            place = (deploy / source).resolve()
            inside = f"/{place.relative_to(deploy.resolve())}" if place.is_relative_to(deploy.resolve()) else ""
            is_made = any(inside.startswith(entry.rstrip("/")) for entry in made.split() if entry.startswith("/compose"))
            want(place.exists() or is_made, f"{name}: {source} is neither in the repository nor made by prepare")
            want(mode == ["ro"] or target == "/var/lib/granary", f"{name}: {source} can be written to")
        for port in service.get("ports", []):
            want(str(port).startswith("127.0.0.1:"), f"{name}: {port} is open to other machines")
        for variable, value in (service.get("environment") or {}).items():
            want(not re.search("PASSWORD|SECRET|TOKEN|KEY$", variable), f"{name}: {variable} is written here: {value}")
    granary = compose["services"]["granary"]
    grace = seconds(granary.get("stop_grace_period", "10s"))
    want(grace > STOP_SECONDS, f"granary: stop_grace_period is less than {STOP_SECONDS} s")
    want(granary.get("read_only") is True, "granary: read_only is not set")
    for job in yaml.safe_load((deploy / "compose/prometheus.yaml").read_text())["scrape_configs"]:
        want(job["job_name"].startswith("granary"), f"prometheus.yaml: rules and boards know no job {job['job_name']}")
        for target in (target for group in job["static_configs"] for target in group["targets"]):
            want(target.split(":")[0] in compose["services"], f"prometheus.yaml: there is no service {target}")
    named = set(re.findall(SECRETS + r"([\w.-]+)", uncommented(deploy / "compose/granary.toml")))
    prepared = set(re.findall(r"secrets/granary/([\w.-]+)", (deploy / "compose/prepare").read_text()))
    want(named <= prepared, f"compose/granary.toml names {sorted(named - prepared)}, which prepare does not make")


def uncommented(path):
    return "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))


def check_kubernetes(root, rendered):
    folder = root / "deploy/kubernetes"
    present = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml", "secrets.example.yaml"}
    named = set(yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"])
    if present != named:
        return want(False, f"kustomization.yaml and the folder differ in {sorted(present ^ named)}")
    every = [document for document in yaml.safe_load_all(rendered.read_text()) if document]
    secret = yaml.safe_load((folder / "secrets.example.yaml").read_text())
    of = {}
    for document in every:
        of.setdefault(document["kind"], {})[document["metadata"]["name"]] = document
    pods = of["StatefulSet"]["granary"]["spec"]["template"]
    check_pods(pods, of, secret, folder)
    labels = pods["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in pods["spec"]["containers"][0]["ports"]}
    state = of["StatefulSet"]["granary"]["spec"]
    want(within(state["selector"]["matchLabels"], labels), "StatefulSet: the selector misses its own pods")
    want(state["serviceName"] in of["Service"], "StatefulSet: there is no Service of its serviceName")
    for name, service in of["Service"].items():
        want(within(service["spec"]["selector"], labels), f"Service {name}: the selector misses the pods")
        for port in service["spec"]["ports"]:
            want(port["targetPort"] in ports, f"Service {name}: no port of the pods is named {port['targetPort']}")
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        want(within(of[kind]["granary"]["spec"][field]["matchLabels"], labels), f"{kind}: the selector misses the pods")
    for rule in of["NetworkPolicy"]["granary"]["spec"]["ingress"]:
        for port in rule["ports"]:
            want(port["port"] in ports, f"NetworkPolicy: no port of the pods is named {port['port']}")
    check_ingress(of)
    check_monitor(of)


def check_pods(pods, of, secret, folder):
    spec, container = pods["spec"], pods["spec"]["containers"][0]
    want(spec["terminationGracePeriodSeconds"] > STOP_SECONDS, f"terminationGracePeriodSeconds: less than {STOP_SECONDS} s")
    want(is_pinned(container["image"]), f"the image {container['image']} has no version")
    want(container["securityContext"].get("readOnlyRootFilesystem") is True, "readOnlyRootFilesystem is not set")
    want(spec["securityContext"].get("runAsNonRoot") is True, "runAsNonRoot is not set")
    for mount in container["volumeMounts"]:
        want("subPath" not in mount, f"subPath: {mount['mountPath']} would never change while it runs")
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    named = volumes["secrets"]["secret"]["secretName"]
    want(named == secret["metadata"]["name"], f"secrets.example.yaml does not make the Secret {named}")
    want(volumes["secrets"]["secret"].get("defaultMode", 0o644) & 0o006 == 0, "defaultMode: everybody may read the secrets")
    configuration = volumes["configuration"]["configMap"]["name"]
    want(configuration in of.get("ConfigMap", {}), f"there is no ConfigMap {configuration}")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    for name in container["args"][2:]:
        folder_of, file = name.rsplit("/", 1)
        in_map = file in of.get("ConfigMap", {}).get(configuration, {}).get("data", {})
        want(in_map and folder_of == mounts["configuration"], f"{name} is not what the ConfigMap mounts")
    settings = uncommented(folder / "granary.toml")
    for name in re.findall(re.escape(mounts["secrets"]) + r"/([\w.-]+)", settings):
        want(name in secret["stringData"], f"granary.toml reads {name}, which secrets.example.yaml does not have")
    want(f'path = "{mounts["state"]}"' in settings, f"granary.toml: state.path is not {mounts['state']}, which is mounted")
    claims = {claim["metadata"]["name"] for claim in of["StatefulSet"]["granary"]["spec"]["volumeClaimTemplates"]}
    want("state" in claims, "state is on no volume that outlives the pod")


def check_ingress(of):
    ingress = of["Ingress"]["granary"]
    notes = {name.rsplit("/", 1)[-1]: value for name, value in ingress["metadata"]["annotations"].items()}
    size = notes.get("proxy-body-size", "1m")
    want(int(size.rstrip("mk")) * (1 << 20 if size.endswith("m") else 1 << 10) > FORM_BYTES, f"proxy-body-size: {size} is too small")
    for name in ("proxy-read-timeout", "proxy-send-timeout"):
        want(int(notes.get(name, "60")) > ANSWER_SECONDS + 2, f"{name}: less than Granary takes")
    for rule in ingress["spec"]["rules"]:
        for path in rule["http"]["paths"]:
            backend = path["backend"]["service"]
            service = of["Service"].get(backend["name"])
            served = service and {port["name"] for port in service["spec"]["ports"]}
            want(served and backend["port"]["name"] in served, f"Ingress: there is no such backend: {backend}")
            want(backend["port"]["name"] != "admin", "Ingress: the admin listener is not for the public")


def check_monitor(of):
    """Against models that are generated from the operator's own CRD; they ignore what they do not know,
    so what is lost on the way through them is what the CRD does not have."""
    from cloudcoil.models.prometheus_operator import v1

    monitor = of["ServiceMonitor"]["granary"]
    try:
        known = json.loads(v1.ServiceMonitor.model_validate(monitor).model_dump_json(by_alias=True, exclude_unset=True))
    except ValueError as error:
        return want(False, f"ServiceMonitor: {error}")
    for path in sorted(set(leaves(monitor)) - set(leaves(known))):
        want(False, f"ServiceMonitor: the operator knows no {path}")
    matching = [
        service
        for service in of["Service"].values()
        if within(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
    ]
    want(len(matching) == 1, f"ServiceMonitor: the selector matches {len(matching)} Services and not one")
    for service in matching:
        for endpoint in monitor["spec"]["endpoints"]:
            served = {port["name"] for port in service["spec"]["ports"]}
            want(endpoint["port"] in served, f"ServiceMonitor: no port is named {endpoint['port']}")


def leaves(value, path=""):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{path}[]")
    else:
        yield path.lstrip(".")


def check_systemd(root):
    unit = dict(re.findall(r"^(\w+)=(.*)$", (root / "deploy/granary.service").read_text(), re.MULTILINE))
    want(seconds(unit.get("TimeoutStopSec", "90") + "s") > STOP_SECONDS, f"TimeoutStopSec is less than {STOP_SECONDS} s")
    want(unit.get("KillSignal", "SIGTERM") == "SIGTERM", "KillSignal is not SIGTERM")
    want("-HUP" in unit.get("ExecReload", ""), "ExecReload does not send SIGHUP")
    example = (root / "deploy/granary.example.toml").read_text()
    for path in re.findall(r'^path = "([^"]*)"', example, re.MULTILINE):
        want(path.startswith(f"/var/lib/{unit['StateDirectory']}/"), f"StateDirectory: {path} is elsewhere, and cannot be written to")
    key = re.search(r'^api_key_file = "([^"]*)"', example, re.MULTILINE)[1]
    want(unit["LoadCredential"].endswith(f":{key}"), f"LoadCredential is not {key}, as in granary.example.toml")


def check_bucket(root):
    """The rules' shape against AWS's own description of the call; and that no result ever expires."""
    import botocore.session
    import botocore.validate

    rules = json.loads((root / "deploy/bucket-lifecycle.json").read_text())
    call = botocore.session.Session().get_service_model("s3").operation_model("PutBucketLifecycleConfiguration")
    report = botocore.validate.ParamValidator().validate({"Bucket": "b", "LifecycleConfiguration": rules}, call.input_shape)
    want(not report.has_errors(), f"bucket-lifecycle.json: {report.generate_report()}")
    kept = ("results/", "records/", "archive")
    for rule in rules["Rules"]:
        prefix = rule["Filter"].get("Prefix", "")
        reaches = [name for name in kept if name.startswith(prefix) or prefix.startswith(name)]
        for action in ("Expiration", "Transitions"):
            want(not (reaches and set(rule.get(action, {})) - {"ExpiredObjectDeleteMarker"}), f"{action} reaches {reaches}")
        if "NoncurrentVersionExpiration" in rule:
            want("results/" not in reaches, "NoncurrentVersionExpiration reaches results/")
    policy = json.loads((root / "deploy/bucket-policy.json").read_text())
    denied = [statement for statement in policy["Statement"] if statement["Effect"] == "Deny" and statement["Principal"] == "*"]
    forbidden = {action for statement in denied for action in listed(statement["Action"])}
    want({"s3:DeleteObject", "s3:DeleteObjectVersion"} <= forbidden, "bucket-policy.json: results may be deleted")
    unconditional = [s for s in denied if s.get("Condition", {}).get("Null") == {"s3:if-none-match": "true", "s3:if-match": "true"}]
    want(unconditional, "bucket-policy.json: results may be overwritten")


def listed(value):
    return value if isinstance(value, list) else [value]


if __name__ == "__main__":
    part, root, *rest = sys.argv[1:]
    globals()[f"check_{part}"](Path(root), *map(Path, rest))
    print("\n".join(faults))
    sys.exit(bool(faults))
