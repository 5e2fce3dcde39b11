"""Turn pip's installation report (standard input) into requirements with hashes (standard output)."""

import json
import sys

for item in json.load(sys.stdin)["install"]:
    about, hashes = item["metadata"], item["download_info"].get("archive_info", {}).get("hashes", {})
    if item["download_info"].get("dir_info") is None:  # all but Holdfast itself
        told = " ".join(f"--hash={name}:{value}" for name, value in sorted(hashes.items()))
        sys.stdout.write(f"{about['name']}=={about['version']} {told}\n")
