"""Does what the headers of a record say: the Python guest of the conformance suite. ../README.md has the commands."""

from millrace import DROP, KEEP, Permanent, Refuse, Retry, log


class Plugin:
    def __init__(self, config):
        pass

    def transform(self, record, output):
        verdict, item = KEEP, None
        for command, value in record.headers():
            argument = (value or b"").decode(errors="replace")
            match command:
                case "emit":
                    item = output.emit(record.value, argument)
                case "emit-text":
                    item = output.emit(argument)
                case "emit-null":
                    item = output.emit(None, argument)
                case "copies":
                    for _ in range(int(argument)):
                        output.emit(record.value)
                case "rebuild":
                    item = rebuild(record, output)
                case "describe":
                    item = output.emit(describe(record))
                case "key" | "topic":
                    getattr(item, command)(argument)
                case "key-null":
                    item.key(None)
                case "timestamp" | "partition":
                    getattr(item, command)(int(argument))
                case "header" | "add-header":
                    getattr(item, command.replace("-", "_"))(*argument.split("=", 1))
                case "add-null-header":
                    item.add_header(argument, None)
                case "remove-header":
                    item.remove_header(argument)
                case "forward":
                    output.forward(argument)
                case "drop":
                    verdict = DROP
                case "refuse":
                    raise Refuse(argument)
                case "retry":
                    raise Retry(argument)
                case "permanent":
                    raise Permanent(argument)
                case "log":
                    level, message = argument.split(" ", 1)
                    getattr(log, level)(message)
                case "print":
                    print(argument)
                case "trap":
                    raise RuntimeError(argument)
        return verdict


def rebuild(record, output):
    item = output.emit(record.value).key(record.key)
    if record.timestamp is not None:
        item.timestamp(record.timestamp)
    headers = record.headers()
    for name, _ in headers:
        item.remove_header(name)
    for name, value in headers:
        item.add_header(name, value)
    return item


def describe(record):
    def show(value):
        return "null" if value is None else value.decode()

    timestamp = "null" if record.timestamp is None else record.timestamp
    key, tag = show(record.key), show(record.header("t"))
    return f"{record.topic}/{record.partition}/{record.offset} {timestamp} {key} {tag}"
