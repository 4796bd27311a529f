"""`tsc encrypt` and `tsc decrypt`: the same file, with and without a lock on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.options import File, KeyFile, Overwrite
from tsc_cli.cli.output import Output
from tsc_cli.text_format import printable, size

if TYPE_CHECKING:
    from formats.file.header import TierHeader
    from formats.file.reader import TraceFile

Target = Annotated[
    str, typer.Option("--output", "-o", metavar="OUT.tsc", help="The file to write; - is stdout.", show_default=False)
]


@with_groups
def encrypt(*, file: File, output: Target, key_file: KeyFile = None, overwrite: Overwrite = False, out: Output) -> None:
    """Write an encrypted copy of a .tsc file.

    Each record is encrypted with AES-256-GCM. The key comes from --key-file (32 bytes or 64
    hexadecimal digits) or TSC_KEY; otherwise scrypt derives it from the passphrase in
    TSC_PASSPHRASE, or from one that is typed. Commands that read the copy take the key in the same
    ways, and encrypt the files that they make from it.

    The numbers of tokens, snapshots, layers and bytes stay readable. The original is kept, unless
    it is also the output.
    """
    from formats.file.reader import TraceFile
    from formats.file.rewrite import encrypt as write
    from tsc_cli.cli.files import check_output, open_output
    from tsc_cli.cli.keys import Keys

    check_output(output, overwrite=overwrite, read=(key_file,))
    keys = Keys(key_file)
    opened = TraceFile(file, keys)
    secret = keys.new()
    with out.progress("encrypting"), open_output(output, overwrite=overwrite) as sink:
        header, length = write(opened, sink, secret)
    say_tier(opened, header, out)
    if output != "-":
        facts = {"path": file, "output": output, "file_bytes": length, "scheme": secret.scheme.name.lower()}
        out.report("tsc.encrypt/1", facts, f"{printable(output)}: encrypted, {size(length)}", output)


@with_groups
def decrypt(*, file: File, output: Target, key_file: KeyFile = None, overwrite: Overwrite = False, out: Output) -> None:
    """Write a copy of an encrypted .tsc file that anybody can read.

    Every record is authenticated; if the file was changed, it is refused and no output is written.
    """
    from formats.file.reader import TraceFile
    from formats.file.rewrite import decrypt as write
    from tsc_cli.cli.files import check_output, open_output
    from tsc_cli.cli.keys import Keys

    check_output(output, overwrite=overwrite, read=(key_file,))
    opened = TraceFile(file, Keys(key_file).source)
    with out.progress("decrypting"), open_output(output, overwrite=overwrite) as sink:
        header, length = write(opened, sink)
    say_tier(opened, header, out)
    if output != "-":
        facts = {"path": file, "output": output, "file_bytes": length}
        out.report("tsc.decrypt/1", facts, f"{printable(output)}: not encrypted, {size(length)}", output)


def say_tier(before: TraceFile, after: TierHeader, out: Output) -> None:
    """A longer file may miss the ratio that it promised."""
    if before.header.tier != after.tier:
        out.note(not_kept(before.header.tier))


def not_kept(tier: str) -> str:
    """Of a file that was made anew and states its tier no more."""
    return f"the file does not keep its tier {printable(tier)} as it is now: it states none"
