"""What the component is made of: the plugin, and the router's interfaces. Only here are they named (`wit_world` is made
when the component is), so that tests run without them."""

import io
import linecache
import logging
import sys

import redact_fields
from componentize_py_types import Err
from wit_world.imports import log as host_log, output as host_output, types

import millrace
from millrace import BadConfig, Component, Permanent, Retry, log, pack


class Output:
    """The router's interface `output`, with lists for columns."""

    def emit(self, destination, sources, values):
        return host_output.emit(destination, sources, types.Column(*pack(values)))

    def set_keys(self, first, keys):
        host_output.set_keys(first, types.Column(*pack(keys)))

    def set_header(self, first, name, values):
        host_output.set_header(first, name, types.Column(*pack(values)))

    def add_header(self, first, name, values):
        host_output.add_header(first, name, types.Column(*pack(values)))

    forward = staticmethod(host_output.forward)
    set_timestamps = staticmethod(host_output.set_timestamps)
    set_partitions = staticmethod(host_output.set_partitions)
    set_topics = staticmethod(host_output.set_topics)


def failing(run, *arguments):
    """The interface's failures, made of the exceptions that stand for them."""
    try:
        return run(*arguments)
    except BadConfig as error:
        raise Err(types.Failure_BadConfig(str(error))) from None
    except Retry as error:
        raise Err(types.Failure_Retry(str(error))) from None
    except Permanent as error:
        raise Err(types.Failure_Permanent(str(error))) from None


component = Component(redact_fields.Plugin, Output())


class WitWorld:
    def process(self, records):
        return failing(component.process, records)


class Lifecycle:
    def configure(self, config):
        failing(component.configure, config)

    def shutdown(self):
        component.shutdown()


class Lines(io.TextIOBase):
    """A stream whose lines are logged."""

    def __init__(self, write):
        self._write = write
        self._begun = ""

    def write(self, text):
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._write(line)
        return len(text)


class Handler(logging.Handler):
    """Lines of the standard `logging`."""

    def emit(self, record):
        levels = ((logging.ERROR, log.error), (logging.WARNING, log.warn), (logging.INFO, log.info), (0, log.debug))
        next(write for least, write in levels if record.levelno >= least)(self.format(record))


# A traceback shows lines of the source, for which there is no file where the plugin runs: these are taken along.
for module in (redact_fields, millrace):
    linecache.getlines(module.__file__)
linecache.checkcache = lambda *_: None
linecache.updatecache = lambda *_: []

# (what is printed while the component is made is for its author's terminal; the router's streams do not exist)
LEVELS = {name: getattr(host_log.Level, name.upper()) for name in log.LEVELS}
log.write = lambda level, message, about: host_log.log(LEVELS[level], message, about)
sys.stdout = Lines(lambda line: log.info(line))
sys.stderr = Lines(lambda line: log.warn(line))
logging.basicConfig(level=logging.DEBUG, handlers=[Handler()])
