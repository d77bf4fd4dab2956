"What every child of a test would do again: imported once, by the server that they are forked from."

from methods import small

from thesis_repro import records

small().data.images()
small().code()
records.environment()
