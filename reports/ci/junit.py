"""What a gate found as JUnit XML, which CI servers show: a test case for each cell.

A regression is a failure, a measurement that failed an error, a cell that vanished skipped. The form is that of the Jenkins xUnit
plugin's junit-10.xsd, which GitLab, Jenkins and GitHub's actions read.
"""

from __future__ import annotations

from xml.etree import ElementTree

from vrambench.bench.gate.check import Check
from vrambench.reports.checked import headline, lines
from vrambench.reports.units import printable


def junit_of(found: Check) -> str:
    """The XML document as text."""
    counts = {"tests": len(found.cells), "failures": len(found.of("regressed")), "errors": len(found.of("failed"))}
    if found.not_comparable:
        counts = {"tests": 1, "failures": 0, "errors": 1}
    numbers = {name: str(count) for name, count in counts.items()}
    suites = ElementTree.Element("testsuites", {"name": "vrambench"} | numbers)
    more = {"name": f"vrambench {found.device}", "skipped": str(len(found.of("vanished")))}
    suite = ElementTree.SubElement(suites, "testsuite", more | numbers)
    if found.not_comparable:
        case = ElementTree.SubElement(suite, "testcase", classname="vrambench", name="comparable")
        ElementTree.SubElement(case, "error", message=_clean(headline(found)))
    for cell in found.cells:
        case = ElementTree.SubElement(suite, "testcase", classname=f"vrambench.{found.device}", name=_clean(cell.name))
        told = [_clean(line) for line in lines(cell)]
        kind = {"regressed": "failure", "failed": "error", "vanished": "skipped"}.get(cell.outcome)
        if kind is not None:
            element = ElementTree.SubElement(case, kind, message=told[0] if told else cell.outcome)
            element.text = "\n".join(told)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    """Without what XML cannot hold."""
    return printable(text)
