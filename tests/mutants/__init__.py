"""Small faults, one at a time, in modules whose answers are numbers: which of them does no test notice?

`python -m tests.mutants` tries all of them (`make mutants`), `python -m tests.mutants layout/fields` those of one
module. The tests of a module are collected once and traced; each fault is put into the living functions of a fork of
that process, which runs the tests that reach the faulty line until one fails.
"""
