"""Work for real programs, the same bytes on every machine: a C file for gcc, scripts, texts, SQL."""
import random

C_HEAD = """#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct item { uint32_t key, count; double weight; char name[16]; struct item *next; };
static struct item *table[256];
"""

C_FUNCTION = """
/*
 * Step {n}: mixes the counts of the items with those of table{n},
 * by the remainder of their keys, and goes on with what is in
 * the chain of x.
 */
static const uint32_t table{n}[] = {{
    {a}u, {b}u, {c}u,
    {d}u, {f}u, {n}u,
}};

__attribute__((noinline)) static uint32_t step{n}(uint32_t x, const struct item *items, int count)
{{
    uint32_t sum = {a}u;
    for (int i = 0; i < count; i++) {{
        const struct item *item = &items[i];
        if (item->key % {b}u == x % {c}u)
            sum = (sum ^ item->count) * {d}u;
        else if (strcmp(item->name, "{word}") < 0)
            sum += (uint32_t)(item->weight * {e});
        else
            sum = (sum << {f}) | (sum >> (32 - {f}));
    }}
    switch (sum & 7) {{
    case 0: sum += {a}u; break;
    case 1: sum ^= x; break;
    case 2: sum = sum * {d}u + 1; break;
    case 3: sum -= (uint32_t)count; break;
    case 5: sum = ~sum; break;
    default: sum >>= 1; break;
    }}
    sum += table{n}[sum % 6];
    for (struct item *p = table[x & 255]; p; p = p->next)
        sum += p->key ^ (uint32_t)strlen(p->name);
    return sum;
}}
"""


def c_source(lines, seed=1):
    """A C file of about so many lines, in functions of 36 lines each and a call."""
    r = random.Random(seed)
    count = lines // 37
    parts = [C_HEAD]
    for n in range(count):
        numbers = {"a": r.randrange(1 << 31), "b": r.randrange(3, 99), "c": r.randrange(3, 99), "d": r.randrange(1 << 31) | 1,
                   "e": r.random() * 9, "f": r.randrange(1, 31)}
        parts.append(C_FUNCTION.format(n=n, **numbers, word="".join(r.choices("abcdefgh", k=5))))
    calls = "\n".join(f"    x += step{n}(x, items, count);" for n in range(count))
    parts.append(f"\nuint32_t run{seed}(uint32_t x, const struct item *items, int count)\n{{\n{calls}\n    return x;\n}}\n")
    return "".join(parts).encode()


def words(size):
    """Text that compresses about as real text does."""
    r = random.Random(2)
    vocabulary = ["".join(r.choices("etaoinshrdlucmfwypvbgkjqxz", range(26, 0, -1), k=r.randrange(2, 10))) for _ in range(3000)]
    weights = [1 / (i + 1) for i in range(len(vocabulary))]
    text = " ".join(r.choices(vocabulary, weights, k=size // 4))
    return text[:size].encode()


def inserts(count):
    r = random.Random(3)
    rows = "".join(f"insert into t values({i}, '{r.choice('abcdef') * r.randrange(5, 30)}', {r.random():.6f});\n" for i in range(count))
    return ("create table t(id integer primary key, name text, weight real);\ncreate index t_weight on t(weight);\nbegin;\n"
            + rows + "commit;\nselect count(*), sum(id), round(sum(weight), 3) from t;\n"
            "select count(*) from t where weight < 0.25;\n").encode()


PYTHON = b"""
import collections, hashlib, json, re
class Node:
    def __init__(self, value): self.value, self.left, self.right = value, None, None
    def insert(self, value):
        side = 'left' if value < self.value else 'right'
        child = getattr(self, side)
        if child: child.insert(value)
        else: setattr(self, side, Node(value))
    def walk(self):
        if self.left: yield from self.left.walk()
        yield self.value
        if self.right: yield from self.right.walk()
x, numbers = 1, []
for i in range(12000):
    x = x * 1103515245 + 12345 & 0x7fffffff
    numbers.append(x)
root = Node(numbers[0])
for n in numbers[1:4000]: root.insert(n)
assert list(root.walk()) == sorted(numbers[:4000])
counts = collections.Counter(str(n)[-2:] for n in numbers)
text = json.dumps({k: [v, v / 7] for k, v in sorted(counts.items())})
for _ in range(20): assert json.loads(text) == json.loads(json.dumps(json.loads(text)))
found = re.findall(r'"(\\d)\\d": \\[(\\d+)', text)
grid = [[(i * j) % 17 for j in range(60)] for i in range(60)]
product = [[sum(a * b for a, b in zip(row, column)) for column in zip(*grid)] for row in grid]
total = sum(n / (i + 1) for i, n in enumerate(numbers))
print(hashlib.sha256((text + str(found) + str(product) + repr(total)).encode()).hexdigest())
"""

PERL = b"""
use strict; use warnings;
my (%count, @lines, $x); $x = 1;
for my $i (1 .. 25000) { $x = ($x * 1103515245 + 12345) & 0x7fffffff; push @lines, sprintf("%08x:%d", $x, $i % 97); }
for (@lines) { my ($h, $n) = split /:/; $count{$n} += hex(substr($h, 0, 4)); tr/a-f/A-F/; }
my @sorted = sort { $a cmp $b } @lines;
my $text = join "\\n", @sorted; my $hits = () = $text =~ /A[0-9]B?(\\d+):(1\\d)/g;
$text =~ s/([A-F])(\\d)/$2$1/g;
print join(",", map { "$_=$count{$_}" } (sort { $a <=> $b } keys %count)[0 .. 5]), " $hits ", unpack("%32C*", $text), "\\n";
"""
