"""Copies of shipped weights, for tests that spoil them."""
import hashlib, json


def copied(source, folder):
    "Weights and their description, copied; the path of the weights."
    for path in (source, source.with_suffix('.json')):
        (folder/path.name).write_bytes(path.read_bytes())
    return folder/source.name


def rehash(path):
    "Write the hash of the weights into the description."
    about = json.loads(path.with_suffix('.json').read_text())
    path.with_suffix('.json').write_text(json.dumps(about | {'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}))
