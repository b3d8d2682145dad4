"""What a call costs in Python: ../README.md has the jobs."""

from millrace import DROP, KEEP


class Plugin:
    def __init__(self, config):
        self.transform = header if config["job"] == "header" else rewrite


def header(record, output):
    return DROP if record.header("keep") == b"no" else KEEP


def rewrite(record, output):
    output.emit(record.value.upper())
    return DROP
