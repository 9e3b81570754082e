"""The command line: `crosscope COMMAND`. Everything goes through the SDK.

Exit codes: 0 done · 1 the server answered with an error · 2 wrong usage or input · 3 no server answers · 4 the job
failed or was cancelled · 130 Ctrl-C · 141 the reader of the output has ended. Errors are one sentence on stderr, or one
JSON document there with --json; never a traceback.
"""

import errno
import os
import sys
from typing import NoReturn

import click

from crosscope.cli.group import ReaderGone, crosscope
from crosscope.cli.output import report_error, report_usage

_INTERRUPTED = 130
_READER_GONE = 141
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def main() -> NoReturn:
    """Runs the command line and exits."""
    code = run(sys.argv[1:])
    if code == _INTERRUPTED:
        # A usual exit waits for gRPC's threads, and one of them may hang if Ctrl-C interrupted a call.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    try:
        result = crosscope.main(arguments, prog_name="crosscope", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 0
    except click.ClickException as error:
        report_usage(error, as_json="--json" in arguments)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except (BrokenPipeError, ReaderGone):
        _write_no_more()
        return _READER_GONE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            _write_no_more()
            click.echo(f"error: the output cannot be written: {error.strerror}", err=True)
            return 1
        code = report_error(error, as_json="--json" in arguments)
        if code is None:
            raise
        return code


def _write_no_more() -> None:
    """Sends what is left in stdout nowhere, so that its flush at exit raises no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
