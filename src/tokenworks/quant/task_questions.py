"""Sixty questions with four answers each: facts, arithmetic, code. Written for the audit; the right answer comes first.

They are plain text to go on with, so that models that are no assistants can be asked too, and short. The wrong answers
are of the right kind and of about the same length: a model has to know, not only to write well.
"""

from typing import Literal, NamedTuple

Kind = Literal["facts", "arithmetic", "code"]


class Task(NamedTuple):
    """`prompt` + one of `answers` is a text; the first answer is the right one."""

    kind: Kind
    prompt: str
    answers: tuple[str, str, str, str]


_FACTS = """
The capital of France is| Paris| Rome| Madrid| Vienna
The capital of Japan is| Tokyo| Beijing| Seoul| Bangkok
The capital of Egypt is| Cairo| Tunis| Nairobi| Baghdad
The largest planet of the solar system is| Jupiter| Saturn| Neptune| Mars
The planet closest to the Sun is| Mercury| Venus| Earth| Mars
Water freezes at zero degrees| Celsius| Fahrenheit| Kelvin| Newton
The chemical symbol of gold is| Au| Ag| Fe| Go
A water molecule is made of hydrogen and| oxygen| nitrogen| carbon| helium
Plants turn sunlight into sugar by| photosynthesis| fermentation| respiration| evaporation
Blood is pumped through the body by the| heart| liver| lungs| kidneys
The author of Romeo and Juliet is William| Shakespeare| Wordsworth| Blake| Faulkner
The theory of relativity is the work of Albert| Einstein| Newton| Darwin| Curie
The opposite of hot is| cold| warm| wet| tall
A week has seven| days| hours| months| years
The month after June is| July| May| August| April
The ocean between Europe and America is the| Atlantic| Pacific| Indian| Arctic
Spiders have eight| legs| wings| arms| tails
Honey is made by| bees| ants| cows| birds
The Great Wall is in| China| India| Japan| Russia
A triangle has three| sides| wheels| circles| centres
"""

_ARITHMETIC = """
2 + 3 =| 5| 6| 4| 8
7 + 6 =| 13| 14| 12| 15
9 - 4 =| 5| 6| 4| 3
15 - 8 =| 7| 8| 6| 9
3 * 4 =| 12| 14| 10| 16
6 * 7 =| 42| 48| 36| 49
8 * 8 =| 64| 72| 56| 81
20 / 4 =| 5| 4| 6| 8
10 + 20 =| 30| 40| 20| 50
25 + 25 =| 50| 45| 60| 55
100 - 1 =| 99| 101| 98| 90
12 * 10 =| 120| 102| 210| 112
50 / 2 =| 25| 20| 30| 52
Half of 18 is| 9| 8| 6| 12
Twice 16 is| 32| 36| 28| 30
1, 2, 3, 4,| 5| 7| 6| 8
2, 4, 6, 8,| 10| 9| 12| 11
5, 10, 15, 20,| 25| 30| 22| 24
10, 9, 8, 7,| 6| 5| 8| 9
1, 2, 4, 8,| 16| 12| 10| 9
"""

_CODE = """
def add(a, b):\\n    return a +| b| a| c| 1
def square(x):\\n    return x *| x| 2| y| 1
def is_even(n):\\n    return n % 2 ==| 0| 1| 2| n
def first(items):\\n    return items[|0]|1]|2]|n]
def last(items):\\n    return items[-|1]|0]|2]|n]
def double(number):\\n    return 2 *| number| double| items| self
for i in range(10):\\n    print(|i)|n)|x)|j)
for name in names:\\n    print(|name)|names)|range)|i)
if x > 0:\\n    print("positive")\\nelse:\\n    print("|negative|positive|infinite|hello
while not| done| for| import| def
import numpy as| np| pd| os| plt
import pandas as| pd| np| sys| plt
class Dog:\\n    def __init__(|self|cls|dog|this
try:\\n    run()\\nexcept| ValueError| range| import| print
with open("data.txt") as| file| open| with| data.txt
total = 0\\nfor x in values:\\n    total +=| x| total| values| i
def greet(name):\\n    return "Hello, " +| name| greet| hello| self
a = [1, 2, 3]\\nprint(len(|a|b|1|3
if x is| None| while| for| print
numbers = [3, 1, 2]\\nnumbers.|sort()|upper()|keys()|strip()
"""


def _read(kind: Kind, table: str) -> list[Task]:
    tasks = []
    for line in table.strip().splitlines():
        prompt, right, *wrong = line.split("|")
        first, second, third = wrong
        tasks.append(Task(kind, prompt.replace("\\n", "\n"), (right, first, second, third)))
    return tasks


TASKS: tuple[Task, ...] = (*_read("facts", _FACTS), *_read("arithmetic", _ARITHMETIC), *_read("code", _CODE))
