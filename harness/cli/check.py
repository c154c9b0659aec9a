"""``snnbench check``: hold methods to what they promise."""

from __future__ import annotations

import click

from harness.cli.table import print_table


@click.command(short_help="Hold methods to what they promise.")
@click.argument("methods", metavar="METHOD[:OPTION=VALUE...]...", nargs=-1, required=True)
@click.pass_context
def check(ctx: click.Context, methods: tuple[str, ...]) -> None:
    """Run the conformance kit on methods, built-in or your own; exit code 1 when one breaks a promise.

    Options of a method follow its name after colons: checkpoint-compress:level=O3:compressor=bit.
    """
    from harness import conformance
    from harness.plan.candidates import options_of

    failed = 0
    for method in methods:
        name, *pairs = method.split(":")
        results = conformance.check(name, options_of(pairs, f"check {name}"))
        rows = []
        for result in results:
            word = "-" if result.passed is None else "passed" if result.passed else "FAILED"
            rows.append([word, result.name, result.detail or result.skipped_reason or ""])
        bad = sum(result.passed is False for result in results)
        skipped = sum(result.passed is None for result in results)
        click.echo(f"{method}: {len(results) - bad - skipped} passed, {bad} failed, {skipped} do not apply")
        print_table(["", "check", "detail"], rows)
        failed += bad
    ctx.exit(1 if failed else 0)
