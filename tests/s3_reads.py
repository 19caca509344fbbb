"""Merges checkpoints from S3 and compares the result with that of local files.

    s3_reads.py PROGRAM      (through tests/with_s3.sh, which installs moto)
"""

import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile

import boto3
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
FIXTURE = pathlib.Path("fixtures/ckpt/all_moe_pretrain.ckpt").resolve()


def main(program):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "s3cr3t-of-the-test", "AWS_REGION": "us-east-1"}
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket="models")
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **keys, "AWS_ENDPOINT_URL": endpoint, "VLMERGE_CACHE": f"{folder}/cache"}

        def run(*arguments, fails=False):
            done = subprocess.run(
                [program, *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
            )
            said = done.stdout + done.stderr
            assert (done.returncode != 0) == fails, said
            assert keys["AWS_SECRET_ACCESS_KEY"] not in said
            return done

        # As parts with an index, and as one file.
        (pathlib.Path(folder) / "parts").mkdir()
        run("convert", str(FIXTURE), "parts/model.safetensors", "--max-shard-size", "200KB")
        for path in sorted(pathlib.Path(folder, "parts").iterdir()):
            client.upload_file(str(path), "models", f"split/{path.name}")
        client.upload_file(str(FIXTURE), "models", "one/model.ckpt")

        def recipe(name, first, second):
            text = f"merge_method: linear\nmodels:\n- model: {first}\n  parameters: {{weight: 0.5}}\n- model: {second}\n  parameters: {{weight: 0.5}}\n"
            pathlib.Path(folder, name).write_text(text)

        recipe("far.yaml", "s3://models/split", "s3://models/one/model.ckpt")
        recipe("near.yaml", "parts", FIXTURE)
        far = json.loads(run("merge", "far.yaml", "--out", "far.safetensors", "--json").stdout)
        assert far["fetched_bytes"] > 0, far
        run("merge", "near.yaml", "--out", "near.safetensors")
        run("diff", "far.safetensors", "near.safetensors")
        again = json.loads(run("merge", "far.yaml", "--out", "again.safetensors", "--json", "--offline").stdout)
        assert again["fetched_bytes"] == 0, again

        said = run("inspect", "s3://models/none.safetensors", fails=True).stderr
        assert "s3://models/none.safetensors" in said and "404" in said, said
        said = run("inspect", "s3://models/one/other.ckpt", "--offline", fails=True).stderr
        assert "offline" in said, said
        print(f"S3: {far['fetched_bytes']} bytes fetched, the merge equals that of local files, and runs offline")
    server.stop()


main(sys.argv[1])
