"""A contract for import-linter that it does not bring: modules that may import almost nothing."""

from __future__ import annotations

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output
from importlinter.domain.helpers import module_expressions_to_modules

# Clock, IO and processes are handed in. (`random` has the type of what is handed in.)
_IMPURE = frozenset(
    ["asyncio", "os", "secrets", "socket", "ssl", "subprocess", "threading", "time", "uuid"]
)
# Pure libraries: idna is tables and functions over text, typing_extensions is types.
_PURE_LIBRARIES = frozenset(["idna", "typing_extensions"])


class PureContract(Contract):
    """`pure_modules` import each other, the pure part of the standard library and pure libraries."""

    type_name = "pure"

    pure_modules = fields.ListField(subfield=fields.ModuleExpressionField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002
        expressions = self.pure_modules
        pure = {module.name for module in module_expressions_to_modules(graph, expressions)}  # type: ignore[arg-type]
        allowed = pure | _PURE_LIBRARIES | (sys.stdlib_module_names - _IMPURE)
        found = [
            f"{module} imports {imported}"
            for module in sorted(pure)
            for imported in sorted(graph.find_modules_directly_imported_by(module))
            if imported not in allowed
        ]
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["found"]:
            output.print_error(line)
